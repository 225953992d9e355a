"""LVIS v1: COCO's pictures with 1203 classes, in COCO's format, many of them rare.

    annotations/lvis_v1_train.json, lvis_v1_val.json    train2017/*.jpg, val2017/*.jpg

The annotation is federated: of an image it is known which classes were annotated, which are surely absent
(`neg_category_ids`) and of which not every object is annotated (`not_exhaustive_category_ids`). That matters to the
evaluation alone, which reads the file by itself.
"""
from __future__ import annotations

from pathlib import Path

from detcore.data.coco import CocoDataset
from detcore.data.dataset import ReadOptions


def open_lvis(root: Path, split: str, options: ReadOptions) -> CocoDataset:
    """LVIS's training or validation images; pictures are where COCO has them."""
    return CocoDataset.read(root, f"annotations/lvis_v1_{split}.json", "", options, layout="lvis")
