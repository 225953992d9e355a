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
    """The chapters in the book's order, each with those that it reads files of.

    These are the chapters whose folder `runs/NAME/` its text names; and all before it, where it reads their records.
    """
    found: dict[str, list[str]] = {}
    for page in pages():
        if page.startswith("notebooks/"):
            name = Path(page).stem
            text = (ROOT / "notebooks" / f"{name}.py").read_text("utf-8")
            named = set(re.findall(r"\bruns/(\w+)/", text))
            found[name] = [other for other in found if other in named or "read_records(" in text]
    return found
