"""A few drawn pictures in the form in which each labelling tool exports COCO's format."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIDE = 64
NAMES = ("cup", "plate", "fork")
COLOURS = ((40, 40, 220), (40, 220, 40), (220, 40, 40))


def rectangle(label: int, picture: int) -> list[int]:
    """The box (x, y, w, h) of a class's object in a picture."""
    return [4 + 18 * label, 6 + 3 * picture % 30, 16, 20]


def content(pictures: range, name: Callable[[int], str] = "{}.png".format, *, first: int = 1,
            categories: list[dict] | None = None) -> dict[str, Any]:
    """An annotation file: an object of each class in each picture."""
    annotations = []
    for picture in pictures:
        for label in range(len(NAMES)):
            x, y, w, h = rectangle(label, picture)
            annotations.append(dict(
                id=len(annotations) + 1, image_id=picture, category_id=first + label, bbox=[x, y, w, h], area=w * h,
                iscrowd=0, segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
    return dict(images=[dict(id=i, file_name=name(i), width=SIDE, height=SIDE) for i in pictures],
                categories=categories or [dict(id=first + i, name=n) for i, n in enumerate(NAMES)],
                annotations=annotations)


def draw(folder: Path, pictures: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        image = np.full((SIDE, SIDE, 3), 200, np.uint8)
        for label, colour in enumerate(COLOURS):
            x, y, w, h = rectangle(label, picture)
            image[y:y + h, x:x + w] = colour
        cv2.imwrite(str(folder / f"{picture}.png"), image)


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


TRAIN, VAL = range(1, 9), range(9, 13)


def roboflow(root: Path) -> None:
    """`train`, `valid` and `test` with the file among the pictures, and a category 0 with the project's name."""
    categories = [dict(id=0, name="table", supercategory="none"),
                  *(dict(id=1 + i, name=n, supercategory="table") for i, n in enumerate(NAMES))]
    for folder, pictures in ("train", TRAIN), ("valid", VAL), ("test", VAL):
        write(root / folder / "_annotations.coco.json", content(pictures, categories=categories))
        draw(root / folder, pictures)


def cvat(root: Path) -> None:
    """One file for all, numbers with a point."""
    every = content(range(1, 13))
    every["annotations"] = [a | dict(area=float(a["area"]), attributes=dict(occluded=False)) for a in
                            every["annotations"]]
    write(root / "annotations/instances_default.json", every)
    draw(root / "images", range(1, 13))


def cvat_subset(root: Path) -> None:
    write(root / "annotations/instances_default.json", content(range(1, 13)))
    draw(root / "images/default", range(1, 13))


def label_studio(root: Path) -> None:
    """Windows' separators, categories from 0 on."""
    write(root / "result.json", content(range(1, 13), "images\\{}.png".format, first=0))
    draw(root / "images", range(1, 13))


def datumaro(root: Path) -> None:
    for split, pictures in ("train", TRAIN), ("val", VAL):
        write(root / f"annotations/instances_{split}.json", content(pictures))
        draw(root / "images" / split, pictures)


def coco(root: Path) -> None:
    for split, pictures in ("train", TRAIN), ("val", VAL):
        write(root / f"annotations/instances_{split}2017.json", content(pictures))
        draw(root / f"{split}2017", pictures)


EXPORTERS: dict[str, tuple[Callable[[Path], None], dict[str, Any], str]] = {  # with options, and what it is called
    "roboflow": (roboflow, {}, "Roboflow"), "cvat": (cvat, dict(holdout=0.3), "CVAT"),
    "cvat_subset": (cvat_subset, dict(holdout=0.3), "CVAT"),
    "label_studio": (label_studio, dict(holdout=0.3), "Label Studio"), "datumaro": (datumaro, {}, "Datumaro"),
    "coco": (coco, {}, "COCO")}
