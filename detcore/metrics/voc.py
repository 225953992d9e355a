"""PASCAL VOC's evaluation: average precision at an IoU of 0.5.

Everingham et al., "The PASCAL visual object classes (VOC) challenge", 2010, section 4.2. A detection counts as right if
the object of its class that it overlaps most is not difficult and no better detection has it; on a difficult object
it counts neither way. VOC 2007 reads the precision at eleven recalls; a box is x2 - x1 + 1 pixels wide there.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detcore.metrics.ranking import Boxes, Result, best, first_of_each, summary

IOU = 0.5


def evaluate_voc(gt: Boxes, detections: Boxes, class_names: Sequence[str], *, images: int,
                 eleven_points: bool = True, pixels: bool = True, progress: bool = False) -> Result:
    """Compare detections with the ground truth.

    Args:
        gt: its flags mark difficult objects.
        detections: with scores.
        images: how many were looked at.
        eleven_points: VOC 2007's precision at eleven recalls; else the area below the curve.
        pixels: boxes end with their last pixel.
    """
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    index, overlap = best(detections, gt, pixels=pixels, progress=progress)
    difficult = gt.flags if len(gt.flags) else np.zeros(len(gt), bool)
    hit = overlap >= IOU
    counted = ~(hit & np.append(difficult, False)[index])  # index -1 is no object
    right = first_of_each(index, hit & counted)
    return summary(detections[counted], right[counted], gt.labels[~difficult], class_names, images,
                   eleven_points=eleven_points)
