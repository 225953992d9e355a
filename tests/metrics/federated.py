"""A small data set in LVIS's form with detections, drawn from a seed, for the official evaluation and ours."""
from __future__ import annotations

from typing import Any

import numpy as np

from detcore.structures import encode_rle

SIZE, IMAGES, CLASSES, CROWDED = 160, 48, 14, 5


def ellipse(box: np.ndarray) -> np.ndarray:
    """bool [SIZE, SIZE], an ellipse in a box (x1, y1, x2, y2)."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    middle, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return ((x - middle[0]) / radius[0]) ** 2 + ((y - middle[1]) / radius[1]) ** 2 < 1


def described(box: np.ndarray, **more: Any) -> dict[str, Any]:
    """An ellipse as a COCO record."""
    mask = ellipse(box)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = int(columns[0]), int(rows[0])
    return dict(bbox=[x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y], segmentation=encode_rle(mask[None])[0],
                **more)


def draw(seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of an annotation file, and results; one image has more than 300."""
    rng = np.random.default_rng(seed)
    weights = 0.75 ** np.arange(CLASSES)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def random_box(low: float, high: float) -> np.ndarray:
        side = rng.uniform(low, high, 2)
        corner = rng.uniform(0, SIZE - side)
        return np.concatenate([corner, corner + side])

    for image in range(1, IMAGES + 1):
        labels = rng.choice(CLASSES, 6, p=weights / weights.sum()) + 1
        absent = np.setdiff1d(np.arange(1, CLASSES + 1), labels)
        negative, there = rng.choice(absent, 3, replace=False), np.unique(labels)
        images.append(dict(id=image, width=SIZE, height=SIZE, neg_category_ids=sorted(negative.tolist()),
                           not_exhaustive_category_ids=there[rng.random(len(there)) < 0.3].tolist()))
        for label in labels.tolist():
            box = random_box(10, 130)
            record = described(box, id=len(annotations) + 1, image_id=image, category_id=label)
            record["area"] = int(ellipse(box).sum())
            annotations.append(record)
            for _ in range(rng.integers(0, 3)):
                moved = np.sort((box + rng.normal(0, 5, 4)).clip(0, SIZE).reshape(2, 2), 0).ravel()
                if (moved[2:] - moved[:2] > 6).all():
                    named = label if rng.random() < 0.8 else int(rng.integers(1, CLASSES + 1))
                    results.append(described(moved, image_id=image, category_id=named, score=float(rng.random())))
        for _ in range(320 if image == CROWDED else 12):
            results.append(described(random_box(8, 80), image_id=image, score=float(rng.random()) * 0.8,
                                     category_id=int(rng.integers(1, CLASSES + 1))))
    categories = [dict(id=c, name=f"class {c}", frequency="fcr"[min((c - 1) // 5, 2)], image_count=1, synset="",
                       synonyms=[], instance_count=1) for c in range(1, CLASSES + 1)]
    return dict(images=images, annotations=annotations, categories=categories), results
