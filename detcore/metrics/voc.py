"""PASCAL VOC's evaluation: average precision at an IoU of 0.5.

Everingham et al., "The PASCAL visual object classes (VOC) challenge", 2010, section 4.2. A detection counts as right if
the object of its class that it overlaps most is not difficult and no better detection has it; on a difficult object
it counts neither way. VOC 2007 reads the precision at eleven recalls; a box is x2 - x1 + 1 pixels wide there.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detcore.metrics.ranking import Boxes, Curve, Result, best, curves, first_of_each

IOU = 0.5


def evaluate_voc(gt: Boxes, detections: Boxes, class_names: Sequence[str], *, images: int,
                 iou: float = IOU, eleven_points: bool = True, pixels: bool = True,
                 progress: bool = False) -> Result:
    """Compare detections with the ground truth.

    Args:
        gt: its flags mark difficult objects.
        detections: with scores.
        images: how many were looked at.
        eleven_points: VOC 2007's precision at eleven recalls; else the area below the curve.
        pixels: boxes end with their last pixel.
        progress: show a bar.
    """
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    index, overlap = best(detections, gt, pixels=pixels, progress=progress)
    difficult = gt.flags if len(gt.flags) else np.zeros(len(gt), bool)
    hits = np.flatnonzero((index >= 0) & (overlap >= iou))
    counted = np.ones(len(detections), bool)
    counted[hits] = ~difficult[index[hits]]
    hits = hits[counted[hits]]
    right = np.zeros(len(detections), bool)
    right[hits[first_of_each(index[hits])]] = True
    objects = np.bincount(gt.labels[~difficult], minlength=len(class_names))
    ranked = curves(detections.labels[counted], detections.scores[counted], right[counted], objects)
    return summary(class_names, ranked, eleven_points, images)


def summary(class_names: Sequence[str], ranked: Sequence[Curve], eleven_points: bool, images: int) -> Result:
    """Average precision of each class, and its mean."""
    value = Curve.eleven_points if eleven_points else Curve.area
    per_class = {name: value(c) if c.objects else None for name, c in zip(class_names, ranked)}
    known = [v for v in per_class.values() if v is not None]
    return Result({"AP50": float(np.mean(known)) if known else None}, per_class, images,
                  sum(c.objects for c in ranked), dict(zip(class_names, ranked)))
