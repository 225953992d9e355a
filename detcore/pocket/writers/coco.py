"""Pocket Zoo in COCO's layout, with panoptic maps."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detcore.pocket.drawn import STUFF_ID, Drawn, Set, Writer, png, write


def write_image(root: Path, drawn: Drawn) -> dict[str, Any]:
    """Write a picture and its panoptic map; its objects and segments as COCO's records without running numbers."""
    h, w = drawn.ids.shape
    # COCO's panoptic maps hold a segment's number as R + 256 G + 65536 B.
    panoptic = np.stack([np.zeros_like(drawn.ids), np.zeros_like(drawn.ids), drawn.ids], 2)
    write(root / f"{drawn.split}2017/{drawn.name}.jpg", drawn.jpeg)
    write(root / f"annotations/panoptic_{drawn.split}2017/{drawn.name}.png", png(panoptic))
    return dict(image=dict(id=drawn.image_id, file_name=f"{drawn.name}.jpg", width=w, height=h),
                objects=drawn.objects, segments=drawn.segments)


def instances(records: Sequence[dict[str, Any]], whole: Set) -> dict[str, Any]:
    """The content of an annotation file, from the images and objects of `records`."""
    objects = [dict(o, image_id=r["image"]["id"]) for r in records for o in r["objects"]]
    return dict(info=whole.info, images=[r["image"] for r in records],
                categories=[dict(id=i, name=name, supercategory="animal") for i, name in enumerate(whole.classes, 1)],
                annotations=[dict(id=i, **o) for i, o in enumerate(objects, 1)])


def write_split(root: Path, split: str, records: list[dict[str, Any]], whole: Set) -> None:
    """Write the two annotation files of a split."""
    content = instances(records, whole)
    stuff = [dict(id=STUFF_ID + i, name=name, supercategory="scene", isthing=0)
             for i, name in enumerate(whole.stuff, 1)]
    panoptic = content | dict(
        categories=[c | dict(isthing=1) for c in content["categories"]] + stuff,
        annotations=[dict(image_id=r["image"]["id"], file_name=r["image"]["file_name"][:-3] + "png",
                          segments_info=r["segments"]) for r in records])
    for kind, files in ("instances", content), ("panoptic", panoptic):
        write(root / f"annotations/{kind}_{split}2017.json", json.dumps(files))


COCO = Writer(("annotations", "train2017", "val2017"), write_image, write_split)
