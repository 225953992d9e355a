"""LVIS's evaluation: COCO's average precision for classes of which each image is annotated with some only.

Gupta et al., "LVIS: A dataset for large vocabulary instance segmentation", 2019, section 3. An image tells for some
classes that they are there (their objects are annotated) or surely not there; detections of other classes are left
out. Where not every object of a class is annotated, detections without a match count neither way.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detcore.errors import DataError
from detcore.metrics.coco import DEFAULT_BACKEND, CocoResult, count, mean, read_ground_truth

LIMIT = 300  # detections of an image, of all classes together
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # in up to 10, up to 100, more training images


def evaluate_lvis(gt: str | Path | Mapping[str, Any], results: Sequence[Mapping[str, Any]],
                  kind: Literal["bbox", "segm"] = "bbox", *, image_ids: Sequence[int] | None = None,
                  progress: bool = False) -> CocoResult:
    """Compare detections with the ground truth of an LVIS annotation file; arguments as in `evaluate_coco`.

    Returns:
        A result with the metrics AP, AP50, AP75, APs, APm, APl, APr, APc, APf (of rare, common and frequent classes),
        AR300, ARs, ARm, ARl.

    Raises:
        DataError: the annotation file cannot be read, does not say how frequent a class is, or lacks a result's image.
    """
    content = read_ground_truth(gt, results)
    order = sorted(content["categories"], key=lambda category: category["id"])
    unknown = next((c["name"] for c in order if c.get("frequency") not in FREQUENCIES), None)
    if unknown is not None:
        raise DataError(f"The annotations do not say how frequent the class {unknown!r} is: they are not LVIS's.")
    counts = count(content, best_of_image(results), kind, DEFAULT_BACKEND, None, image_ids, (LIMIT,), progress,
                   lvis_style=True)
    frequency = np.array([c["frequency"] for c in order])
    precision = counts.precision[..., 0, -1]
    rates = {f"AP{key}": mean(precision[:, :, frequency == key]) for key in FREQUENCIES}
    return counts.result(kind, counts.average_precision() | rates | counts.average_recall())


def best_of_image(results: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The `LIMIT` results of each image with the highest scores."""
    image = np.array([r["image_id"] for r in results])
    order = np.lexsort((-np.array([r["score"] for r in results]), image))
    _, first, number = np.unique(image[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, number)
    return [results[i] for i in np.sort(order[place < LIMIT])]
