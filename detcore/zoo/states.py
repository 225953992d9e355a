"""Which models a file of weights can be of, by the names of its entries: `states.json`, which this module writes.

Building every model to compare its entries takes most of a minute; looking up a digest takes none.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch

from detcore.zoo.entries import ModelEntry

FILE = Path(__file__).with_name("states.json")


def names_digest(names: Iterable[str]) -> str:
    """Twelve hexadecimal digits of the names of a state's entries; older files lack batch norm's counter."""
    told = sorted(n for n in names if not n.endswith("num_batches_tracked"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]


def entry_digest(entry: ModelEntry, profile: str) -> str:
    """The digest of a model's entries."""
    with torch.device("meta"):
        return names_digest(entry.build(2, profile).state_dict())


@cache
def candidates() -> dict[str, list[tuple[str, str]]]:
    """For each digest of names the models, and their profiles, whose entries have these names."""
    return {digest: [(name, profile) for name, profile in models]
            for digest, models in json.loads(FILE.read_text("utf-8")).items()}


def main() -> None:
    """Write the file anew; of models that are built alike, all are in it."""
    from detcore.zoo.index import all_entries

    found: dict[str, list[tuple[str, str]]] = {}
    known: dict[tuple[object, ...], str] = {}
    for name, entry in all_entries().items():
        for profile in ("coco", "pocket"):
            kind = entry.builder, entry.backbone, str(entry.options), str(entry.pocket), profile
            if kind not in known:
                known[kind] = entry_digest(entry, profile)
            found.setdefault(known[kind], []).append((name, profile))
    lines = [f" {json.dumps(digest)}: {json.dumps(models)}" for digest, models in sorted(found.items())]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main()
