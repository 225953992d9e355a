"""Open Images' evaluation: average precision at an IoU of 0.5 in a hierarchy of classes, with boxes around groups.

Kuznetsova et al., "The Open Images dataset V4", 2020, and the rules of its challenge. Who finds a cat has found an
animal: objects and detections count for their class and all above it. An image is labelled for some classes only;
detections of others are left out. Where several objects stand too close, one box holds the group: the best detection
inside counts as right, the others inside count neither way.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detcore.metrics.ranking import Boxes, Result, best, first_of_each, key, summary

IOU = 0.5
INSIDE = 0.5  # share of a detection that must lie in a group's box


def evaluate_openimages(gt: Boxes, detections: Boxes, class_names: Sequence[str], ancestors: np.ndarray,
                        verified: Boxes, *, images: int, progress: bool = False) -> Result:
    """Compare detections with the ground truth.

    Args:
        gt: its flags mark boxes around groups.
        detections: with scores.
        ancestors: bool [C, C]: [i, j] where j is i or above it.
        verified: image and label of what people have looked for in an image (boxes do not matter).
        images: how many were looked at.
    """
    gt, detections = spread(gt, ancestors), spread(detections, ancestors)
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    seen, known, looked_for = key(detections, gt, verified)
    detections = detections[np.isin(seen, np.concatenate([known, looked_for]))]
    group = gt.flags if len(gt.flags) else np.zeros(len(gt), bool)

    index, overlap = best(detections, gt[~group], progress=progress)
    right = first_of_each(index, overlap >= IOU)
    index, overlap = best(detections, gt[group], of_first=True)
    members = ~right & (overlap >= INSIDE)
    leaders = first_of_each(index, members)
    counted = ~members | leaders
    return summary(detections[counted], (right | leaders)[counted], gt.labels, class_names, images)


def spread(boxes: Boxes, ancestors: np.ndarray) -> Boxes:
    """Each box once for its own class and once for each class above it."""
    row, label = np.nonzero(ancestors[boxes.labels])
    out = boxes[row]
    return Boxes(out.image, out.boxes, label, out.scores, out.flags)
