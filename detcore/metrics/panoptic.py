"""Panoptic quality: Kirillov et al., "Panoptic segmentation", 2019, section 4, as COCO computes it."""
from __future__ import annotations

import numpy as np

from detcore.data.panoptic import PanopticMaps, PanopticSegments
from detcore.metrics.coco import CocoResult
from detcore.structures import INSTANCE

IOU = 0.5  # segments that overlap by more are the same: at most one can


class PanopticQuality:
    """Counts segments that were found, missed and invented, image by image.

    Attributes:
        counts: float64 [classes, 4]: sum of the IoU of found segments, found, invented, missed.
        images: how many were compared.
    """

    def __init__(self, maps: PanopticMaps) -> None:
        self.maps, self.images = maps, 0
        self.counts = np.zeros((len(maps.things) + len(maps.stuff), 4))

    def add(self, image_id: int, found: np.ndarray) -> None:
        """Compare an image's panoptic map [h, w] (class + 1000 x instance; the number of classes is void)."""
        self.counts += compare(self.maps.read(image_id, found.shape), found, len(self.counts))
        self.images += 1

    def result(self) -> CocoResult:
        """Mean over the classes that occur, of all, of things (th) and of stuff (st): the quality PQ, which is the
        product of SQ, how well found segments fit, and RQ, how many are found."""
        iou, hit, invented, missed = self.counts.T
        occurs = hit + invented + missed > 0
        recognition = hit / np.maximum(hit + invented / 2 + missed / 2, 1e-9)
        segmentation = iou / np.maximum(hit, 1e-9)
        quality, thing = segmentation * recognition, np.arange(len(occurs)) < len(self.maps.things)
        metrics: dict[str, float | None] = {}
        for suffix, chosen in ("", occurs), ("_th", occurs & thing), ("_st", occurs & ~thing):
            for name, value in ("PQ", quality), ("SQ", segmentation), ("RQ", recognition):
                metrics[name + suffix] = float(value[chosen].mean()) if chosen.any() else None
        per_class = {name: float(q) if o else None
                     for name, q, o in zip(self.maps.things + self.maps.stuff, quality, occurs)}
        return CocoResult("panoptic", metrics, per_class, np.zeros((10, 101, 0)), self.images,
                          int((hit + missed).sum()))


def compare(gt: PanopticSegments, found: np.ndarray, classes: int) -> np.ndarray:
    """One image's share of `PanopticQuality.counts`, [classes, 4].

    Pixels without ground truth count neither for nor against a segment. A segment that lies mostly on such pixels,
    or in a crowd of its class, is not held against the detector.
    """
    values, place = np.unique(found, return_inverse=True)
    shared = np.bincount(gt.place.ravel() * len(values) + place.ravel(),
                         minlength=(len(gt.labels) + 1) * len(values)).reshape(-1, len(values)).astype(float)
    area, true_area = shared.sum(0), shared[1:].sum(1)
    labels = values % INSTANCE
    shared, area, labels = shared[:, labels < classes], area[labels < classes], labels[labels < classes]
    same = gt.labels[:, None] == labels
    union = area + true_area[:, None] - shared[1:] - shared[0]
    iou = np.where(same & ~gt.crowd[:, None], shared[1:] / np.maximum(union, 1), 0)
    hit = iou > IOU
    excused = shared[0] + (shared[1:] * (same & gt.crowd[:, None])).sum(0)
    invented = ~hit.any(0) & (excused <= IOU * area)
    missed = ~hit.any(1) & ~gt.crowd

    counts = np.zeros((classes, 4))
    np.add.at(counts[:, 0], gt.labels, (iou * hit).sum(1))
    np.add.at(counts[:, 1], gt.labels, hit.any(1))
    np.add.at(counts[:, 2], labels, invented)
    np.add.at(counts[:, 3], gt.labels, missed)
    return counts
