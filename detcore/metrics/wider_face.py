"""WIDER FACE's evaluation: average precision of easy, medium and hard faces.

Yang et al., "WIDER FACE: A face detection benchmark", 2016, section 4, by the rules of its published code. Scores are
stretched to 0..1 over the whole data set and cut at a thousand thresholds. A detection belongs to the face that it
overlaps most, if by half: of a face that does not count in a setting it is left out, of one that another has already
it is wrong. Pictures without a face do not count, and a box is x2 - x1 + 1 pixels wide.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from detcore.metrics.ranking import Boxes, Curve, Result, best, first_of_each

IOU = 0.5
THRESHOLDS = 1000


def evaluate_wider_face(gt: Boxes, detections: Boxes, counts: Mapping[str, np.ndarray], *, images: int,
                        progress: bool = False) -> Result:
    """Compare detections with the ground truth.

    Args:
        gt: all faces; detections: with scores.
        counts: for each setting bool [n], which faces of the ground truth are to be found.
        images: how many were looked at.

    Returns:
        A result whose metrics and curves are those of the settings.
    """
    detections = detections[np.argsort(-detections.scores, kind="stable")]
    index, overlap = best(detections, gt, pixels=True, progress=progress)
    seen, hit = index >= 0, overlap >= IOU  # seen: in a picture with faces
    low = detections.scores.min(initial=np.inf)
    scores = (detections.scores - low) / max(detections.scores.max(initial=-np.inf) - low, 1e-12)
    thresholds = 1 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS

    found = {}
    for setting, counted in counts.items():
        in_setting = hit & np.append(counted, False)[index]  # index -1 is no face
        right = first_of_each(index, in_setting)
        # How many detections, and how many right ones, reach each threshold; they are sorted by falling score.
        reach = np.searchsorted(-scores, -thresholds, "right")
        proposed, rights = (np.append(0, part.cumsum())[reach] for part in (seen & (in_setting | ~hit), right))
        found[setting] = Curve(rights / np.maximum(proposed, 1), rights / max(counted.sum(), 1), int(counted.sum()))
    metrics = {setting: curve.area() if curve.objects else None for setting, curve in found.items()}
    return Result(metrics, {}, images, max((c.objects for c in found.values()), default=0), found)
