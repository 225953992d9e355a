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
from detcore.metrics.coco import DEFAULT_BACKEND, CocoResult, count, mean
from detcore.metrics.entries import GroundTruth, read_ground_truth, read_results, told

LIMIT = 300  # detections of an image, of all classes together
LISTS = "neg_category_ids", "not_exhaustive_category_ids"  # of an image's classes: absent, annotated in part
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}  # in up to 10, up to 100, more training images


def evaluate_lvis(gt: str | Path | Mapping[str, Any], results: Sequence[Mapping[str, Any]],
                  kind: Literal["bbox", "segm"] = "bbox", *, image_ids: Sequence[int] | None = None,
                  progress: bool = False) -> CocoResult:
    """Compare detections with the ground truth of an LVIS annotation file; arguments as in `evaluate_coco`.

    Returns:
        A result with the metrics AP, AP50, AP75, APs, APm, APl, APr, APc, APf (of rare, common and frequent classes),
        AR300, ARs, ARm, ARl.

    Raises:
        DataError: as in `evaluate_coco`, or the annotation file does not say how frequent a class is, or which classes
            an image was searched for.
    """
    truth = read_ground_truth(gt, masks=kind == "segm")
    unknown = next((c["name"] for c in truth.categories if c.get("frequency") not in FREQUENCIES), None)
    if unknown is not None:
        raise DataError(f"The annotations do not say how frequent the class {unknown!r} is: they are not LVIS's.")
    looked_for = federate(truth)
    detections = [d for d in best_of_image(read_results(results, truth, masks=kind == "segm"))
                  if (d["image_id"], d["category_id"]) in looked_for]
    counts = count(truth, detections, kind, DEFAULT_BACKEND, None, image_ids, (LIMIT,), progress, lvis_style=True)
    frequency = np.array([c["frequency"] for c in truth.categories])
    precision = counts.precision[..., 0, -1]
    rates = {f"AP{key}": mean(precision[:, :, frequency == key]) for key in FREQUENCIES}
    return counts.result(kind, counts.average_precision() | rates | counts.average_recall())


def federate(truth: GroundTruth) -> set[tuple[int, int]]:
    """The pairs of image and class of which it is known what there is; the images' lists of classes get the new ids.

    Raises:
        DataError: an image has no such list. Without them a wrong detection could not be told from one of a class that
            nobody looked for, so the official evaluation does not count either.
    """
    known = {(a["image_id"], a["category_id"]) for a in truth.annotations}
    for image in truth.images:
        for key in LISTS:
            listed = image.get(key)
            if not isinstance(listed, (list, tuple)):
                raise DataError(f"Image {told(truth.image_numbers.ids[image['id'] - 1])} of {truth.title} has no list "
                                f"{key}, by which LVIS tells what was annotated: evaluate it as COCO's data.")
            image[key] = [n for i in listed if (n := truth.category_numbers.get(i)) is not None]
        known.update((image["id"], category) for category in image[LISTS[0]])
    return known


def best_of_image(results: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The `LIMIT` results of each image with the highest scores."""
    image = np.array([r["image_id"] for r in results])
    order = np.lexsort((-np.array([r["score"] for r in results]), image))
    _, first, number = np.unique(image[order], return_index=True, return_counts=True)
    place = np.arange(len(order)) - np.repeat(first, number)
    return [results[i] for i in np.sort(order[place < LIMIT])]
