"""What the book is made of: `_toc.yml` says which pages there are, and in which order."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def pages() -> list[str]:
    """The files of all pages, the start page first, relative to the root."""
    def files(node: Any) -> Iterator[str]:
        for value in node.values() if isinstance(node, dict) else node:
            if isinstance(value, (dict, list)):
                yield from files(value)
            elif isinstance(node, dict) and value in (node.get("root"), node.get("file")):
                yield value

    return list(files(yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))))


def chapters() -> dict[str, list[str]]:
    """The chapters in the book's order, each with those before it that it reads from.

    These are the chapters whose folder `runs/NAME` or whose model its code names; all before it, where it reads the
    records of a whole folder.
    """
    found: dict[str, list[str]] = {}
    models: dict[str, str] = {}
    for page in pages():
        if page.startswith("notebooks/"):
            name = Path(page).stem
            code = _code(name)
            folders = set(re.findall(r"\bruns/(\w+)", code))
            found[name] = [other for other in found if "read_records(" in code or other in folders
                           or re.search(rf"[\"']{re.escape(models.get(other, '?'))}[\"']", code)]
            if model := re.search(r"^model = [\"'](.+)[\"']", code, re.MULTILINE):
                models[name] = model[1]
    return found


def file_needs(name: str) -> list[str]:
    """The chapters before this one whose files in `runs/NAME/` it reads: these must have run on the same machine."""
    folders = set(re.findall(r"\bruns/(\w+)/", _code(name)))
    return [other for other in chapters()[name] if other in folders]


def _code(name: str) -> str:
    """A chapter's text without comments and prose."""
    text = (ROOT / "notebooks" / f"{name}.py").read_text("utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
