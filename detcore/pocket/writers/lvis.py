"""Pocket Zoo in LVIS's layout."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detcore.pocket.drawn import Drawn, Set, Writer, write
from detcore.pocket.writers.coco import instances

RARE, COMMON = 0.05, 0.2  # of LVIS's images up to 10 of 100,000 have a rare class, up to 100 a common one


def write_image(root: Path, drawn: Drawn) -> dict[str, Any]:
    """Write a picture. What Pocket Zoo draws as a crowd is here a class of which not every object is annotated."""
    h, w = drawn.ids.shape
    write(root / f"{drawn.split}2017/{drawn.name}.jpg", drawn.jpeg)
    crowds = sorted({o["category_id"] for o in drawn.objects if o["iscrowd"]})
    objects = [{k: v for k, v in o.items() if k != "iscrowd"} for o in drawn.objects if not o["iscrowd"]]
    return dict(objects=objects, image=dict(
        id=drawn.image_id, coco_url=f"http://images.cocodataset.org/{drawn.split}2017/{drawn.name}.jpg", width=w,
        height=h, not_exhaustive_category_ids=crowds))


def write_split(root: Path, split: str, records: list[dict[str, Any]], whole: Set) -> None:
    """Write the annotation file; what is rare and what is common is decided by the training images."""
    content = instances(records, whole)
    present = [{o["category_id"] for o in r["objects"]} | set(r["image"]["not_exhaustive_category_ids"])
               for r in records]
    for image, there in zip(content["images"], present):
        # Somebody has looked for every second class that is not there.
        image["neg_category_ids"] = [c["id"] for c in content["categories"]
                                     if c["id"] not in there and (image["id"] + c["id"]) % 2 == 0]
    if split == "train":
        for category in content["categories"]:
            count = sum(category["id"] in there for there in present)
            share = count / max(len(records), 1)
            category |= dict(frequency="r" if share < RARE else "c" if share < COMMON else "f", image_count=count)
    else:
        content["categories"] = json.loads((root / "annotations/lvis_v1_train.json").read_text())["categories"]
    write(root / f"annotations/lvis_v1_{split}.json", json.dumps(content))


LVIS = Writer(("annotations", "train2017", "val2017"), write_image, write_split)
