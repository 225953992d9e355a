"""Cityscapes: streets of German cities, with a map of instances for each picture.

    leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png
    annotations/instancesonly_filtered_gtFine_train.json    in COCO's format, made from the maps where it is not there

A pixel of a map holds 1000 times the number of its class plus the instance's own, or the class's number alone where a
group of objects is not told apart.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from detcore.data import images as pictures
from detcore.data.coco import CocoDataset
from detcore.data.dataset import ReadOptions
from detcore.errors import DataError, UsageError
from detcore.records import write_text
from detcore.structures import encode_rle

# The classes of the instance task with their official numbers.
CLASSES = {24: "person", 25: "rider", 26: "car", 27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}
INSTANCE = 1000  # what a class's number is multiplied by in a map of instances
MOST_OBJECTS = 1000  # of a map
PICTURE, MAP = "_leftImg8bit.png", "_gtFine_instanceIds.png"


class CityscapesDataset(CocoDataset):
    """Cityscapes' images with their objects; groups that are not told apart are ignored."""

    @classmethod
    def open(cls, root: str | Path, split: str, options: ReadOptions) -> CityscapesDataset:
        """The training or validation images; makes the annotation file where it is not there."""
        file = annotation_file(Path(root), split)
        if split not in ("train", "val") and not file.exists():
            raise UsageError(f"Cityscapes has no split {split!r} with objects: it has train, val.")
        if not file.exists() and (Path(root) / "gtFine" / split).is_dir():
            convert(root, split)
        data = cls.read(root, str(file.relative_to(root)), f"leftImg8bit/{split}", options, layout="cityscapes")
        assert isinstance(data, CityscapesDataset)
        data.split = split
        return data

    split: str

    def instance_map(self, image_id: int) -> np.ndarray:
        """int64 [h, w], the official map of an image; DataError where there is none."""
        index = int(np.flatnonzero(self.image_ids == image_id)[0])
        return read_map(self.root / "gtFine" / self.split / self.files[index].replace(PICTURE, MAP),
                        tuple(self.sizes[index].tolist()))


def annotation_file(root: Path, split: str) -> Path:
    """The objects of a split in COCO's format."""
    return root / f"annotations/instancesonly_filtered_gtFine_{split}.json"


def read_map(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """int64 [h, w] map of instances; DataError where it is missing, broken or not of `size` (h, w)."""
    return pictures.read_map(path, "map of instances", size).astype(np.int64)


def convert(root: str | Path, split: str, classes: Mapping[int, str] = CLASSES) -> Path:
    """Write the objects of all maps of a split as a file in COCO's format; DataError where that cannot be done."""
    root = Path(root)
    maps = sorted((root / "gtFine" / split).glob(f"*/*{MAP}"))
    if not maps:
        raise DataError(f"There are no maps of instances (*{MAP}) in {root / 'gtFine' / split}.")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, path in enumerate(tqdm(maps, desc=f"objects of {split}", unit="img", leave=False, delay=3), 1):
        values = read_map(path)
        images.append(dict(id=image_id, file_name=f"{path.parent.name}/{path.name.replace(MAP, PICTURE)}",
                           height=values.shape[0], width=values.shape[1]))
        found = np.unique(values[values >= min(classes)]).tolist()
        if len(found) > MOST_OBJECTS:
            raise DataError(f"The map of instances {path} has {len(found)} objects, more than {MOST_OBJECTS:,}: it is "
                            f"damaged.")
        for value in found:
            category = value // INSTANCE if value >= INSTANCE else value
            if category in classes:
                mask = values == value
                annotations.append(dict(
                    id=len(annotations) + 1, image_id=image_id, category_id=category, iscrowd=int(value < INSTANCE),
                    area=int(mask.sum()), bbox=list(cv2.boundingRect(mask.astype(np.uint8))),
                    segmentation=encode_rle(mask[None])[0]))
    return write_text(annotation_file(root, split), json.dumps(dict(
        images=images, annotations=annotations, categories=[dict(id=i, name=name) for i, name in classes.items()])))
