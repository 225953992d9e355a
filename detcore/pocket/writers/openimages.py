"""Pocket Zoo in the layouts of Open Images and its challenge."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detcore.data.openimages import (
    BOXES,
    CHALLENGE_BOXES,
    CHALLENGE_CLASSES,
    CHALLENGE_HIERARCHY,
    CHALLENGE_VERIFIED,
    CLASSES,
    FOLDERS,
    HIERARCHY,
    VERIFIED,
)
from detcore.pocket.drawn import Drawn, Set, Writer, write

KINDS = {"Mammal": ("elephant", "giraffe", "zebra", "lion"), "Bird": ("penguin", "flamingo"),
         "Reptile": ("crocodile", "tortoise")}


def write_image(root: Path, drawn: Drawn) -> dict[str, Any]:
    """Write a picture."""
    h, w = drawn.ids.shape
    write(root / f"{FOLDERS[drawn.split]}/{drawn.name}.jpg", drawn.jpeg)
    return dict(name=drawn.name, objects=[
        (o["category_id"] - 1, *(v / side for v, side in zip(_corners(o["bbox"]), (w, h, w, h))), o["iscrowd"])
        for o in drawn.objects])


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, w, h = box
    return x, y, x + w, y + h


def write_split(root: Path, split: str, records: list[dict[str, Any]], whole: Set) -> None:
    """Write the tables of a split, of Open Images and of the challenge. Crowds are groups; above the animals stand
    their kinds, and above these "Animal"."""
    names = [*whole.classes, *KINDS, "Animal"]
    codes = [f"/m/zoo{i:02}" for i in range(len(names))]

    def node(name: str, *children: dict[str, Any]) -> dict[str, Any]:
        return dict(LabelName=codes[names.index(name)]) | (dict(Subcategory=list(children)) if children else {})

    tree = dict(LabelName="/m/0bl9f", Subcategory=[
        node("Animal", *(node(kind, *map(node, animals)) for kind, animals in KINDS.items()))])
    for classes, numbered in (CLASSES, False), (CHALLENGE_CLASSES, True):
        write(root / classes, "".join(f"{code},{name}{f',{i}' if numbered else ''}\n"
                                      for i, (code, name) in enumerate(zip(codes, names), 1)))
    write(root / HIERARCHY, json.dumps(tree))
    write(root / CHALLENGE_HIERARCHY, json.dumps(tree))

    table = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,"
             "IsInside"]
    blocks = []
    for number, record in enumerate(records):
        blocks += [f"{record['name']}.jpg", f"# {number}", str(len(record["objects"]))]
        for label, x1, y1, x2, y2, group in record["objects"]:
            table.append(f"{record['name']},drawn,{codes[label]},1,{x1:.6f},{x2:.6f},{y1:.6f},{y2:.6f},0,0,{group},1,0")
            blocks.append(f"{label + 1} {x1:.6f} {y1:.6f} {x2:.6f} {y2:.6f} {group}")
    write(root / BOXES[split], "\n".join(table) + "\n")
    write(root / CHALLENGE_BOXES[split], "\n".join(blocks) + "\n")
    if split == "val":
        # Somebody has looked for every second class that is not there.
        looked = [(r["name"], label, int(label in there)) for i, r in enumerate(records)
                  for there in ({o[0] for o in r["objects"]},) for label in range(len(whole.classes))
                  if label in there or (i + label) % 2 == 0]
        write(root / VERIFIED, "ImageID,Source,LabelName,Confidence\n" + "".join(
            f"{name},verification,{codes[label]},{sure}\n" for name, label, sure in looked))
        write(root / CHALLENGE_VERIFIED, "ImageID,LabelName,Confidence\n" + "".join(
            f"{name},{codes[label]},{sure}\n" for name, label, sure in looked))


OPENIMAGES = Writer(("OpenImages", "annotations", "challenge2019"), write_image, write_split)
