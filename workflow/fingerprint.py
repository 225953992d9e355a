"""What a chapter depends on, as a short hash of content: dates of files play no part, so a fresh clone runs everything
and a checkout that brings back the same text runs nothing."""
from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from detcore.runs import code
from workflow.contents import ROOT

LENGTH = 12


def digest(*parts: Any) -> str:
    """A short hash of strings, bytes and JSON values."""
    total = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:LENGTH]


@cache
def library(room: str = ".") -> str:
    """The code and data files of `detcore`, or of one of its rooms."""
    parts: list[Any] = []
    for path in sorted((ROOT / "detcore" / room).rglob("*")):
        if path.suffix == ".py":
            parts += [str(path.relative_to(ROOT)), code(path.read_text("utf-8"))]
        elif path.suffix in (".csv", ".safetensors"):
            parts += [str(path.relative_to(ROOT)), path.read_bytes()]
    return digest(*parts)


def run(name: str, chapters: dict[str, list[str]], parameters: dict[str, Any]) -> str:
    """What decides a chapter's results: its code, the library, its parameters and the chapters that it reads from.

    Args:
        chapters: the chapters that each chapter needs.
    """
    source = code((ROOT / "notebooks" / f"{name}.py").read_text("utf-8"))
    return digest(source, library(), parameters, *(run(other, chapters, parameters) for other in chapters[name]))


def chapter(name: str, chapters: dict[str, list[str]], parameters: dict[str, Any]) -> str:
    """What decides a chapter's page: its results and its text."""
    return digest(run(name, chapters, parameters), (ROOT / "notebooks" / f"{name}.py").read_bytes())
