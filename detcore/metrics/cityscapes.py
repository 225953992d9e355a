"""Cityscapes' evaluation of instances: average precision of masks, by the rules of its published scripts.

Cordts et al., "The Cityscapes dataset", 2016, section 3.2. A mask is right if it overlaps an object of its class by
more than the threshold; each object is found once, by the mask with the highest score. A wrong mask is excused if more
than that share of it lies on what is not evaluated, on groups that are not told apart or on objects below 100 pixels.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from detcore.data.cityscapes import INSTANCE
from detcore.metrics.ranking import Result

OVERLAPS = np.arange(0.5, 1.0, 0.05)
SMALL = 100  # pixels
# Classes that are not evaluated: borders, the car itself, what is not labelled, and some rare ones.
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)


@dataclass
class Counted:
    """What is known of some images, as columns.

    Attributes:
        objects: float64 [g, 3], class, pixels and whether it is a group.
        masks: float64 [p, 4], class, score, pixels, pixels on what is not evaluated.
        pairs: int64 [q, 3], mask, object of its class, pixels that they share.
        images: how many.
    """

    objects: np.ndarray
    masks: np.ndarray
    pairs: np.ndarray
    images: int = 1


class CityscapesAP:
    """Compares masks with maps of instances, image by image; `counted` is what was seen so far."""

    def __init__(self, class_ids: Sequence[int], class_names: Sequence[str]) -> None:
        """`class_ids` are the official numbers of the classes, in the order of the labels."""
        self.class_ids, self.class_names = list(class_ids), list(class_names)
        self.counted: list[Counted] = []

    def add(self, gt: np.ndarray, masks: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
        """Compare the detections of an image.

        Args:
            gt: int [h, w], the official map of instances.
            masks: bool or uint8 [p, h, w]; labels: int [p]; scores: [p].
        """
        values, place = np.unique(gt, return_inverse=True)
        place, pixels = place.reshape(gt.shape), np.bincount(place.ravel())
        number = np.where(values >= INSTANCE, values // INSTANCE, values)
        label = np.array([self.class_ids.index(n) if n in self.class_ids else -1 for n in number.tolist()], np.int64)
        void, known = np.isin(values, VOID), np.flatnonzero(label >= 0)
        kept, shared = [], []
        for i, mask in enumerate(np.asarray(masks, np.uint8)):
            x, y, w, h = cv2.boundingRect(mask)
            inside = np.bincount(place[y:y + h, x:x + w][mask[y:y + h, x:x + w] > 0], minlength=len(values))
            if inside.any():
                kept.append((labels[i], scores[i], inside.sum(), inside[void].sum()))
                shared.append(np.where(label == labels[i], inside, 0)[known])
        table = np.array(shared, np.int64).reshape(len(kept), len(known))
        mask_of, object_of = np.nonzero(table)
        pairs = np.stack([mask_of, object_of, table[mask_of, object_of]], 1)
        objects = np.stack([label[known], pixels[known], values[known] < INSTANCE], 1).astype(float)
        self.counted.append(Counted(objects, np.array(kept, float).reshape(-1, 4), pairs))

    def result(self) -> Result:
        """AP, the mean over the thresholds from 0.5 to 0.95 and over the classes that occur, and AP50."""
        whole = merge(self.counted)
        ap = np.array([[average_precision(whole, label, overlap) for overlap in OVERLAPS]
                       for label in range(len(self.class_ids))]).reshape(-1, len(OVERLAPS))
        known = ~np.isnan(ap[:, 0])
        metrics = {"AP": float(ap[known].mean()) if known.any() else None,
                   "AP50": float(ap[known, 0].mean()) if known.any() else None}
        per_class = {name: float(of.mean()) if there else None for name, of, there in zip(self.class_names, ap, known)}
        return Result(metrics, per_class, whole.images, int(countable(whole.objects).sum()))


def merge(several: Sequence[Counted]) -> Counted:
    """What is known of all images together."""
    nothing = Counted(np.zeros((0, 3)), np.zeros((0, 4)), np.zeros((0, 3), np.int64), 0)
    masks = np.cumsum([0, *(len(c.masks) for c in several)])
    objects = np.cumsum([0, *(len(c.objects) for c in several)])
    pairs = [c.pairs + [m, o, 0] for c, m, o in zip(several, masks, objects)]
    several = [nothing, *several]
    return Counted(np.concatenate([c.objects for c in several]), np.concatenate([c.masks for c in several]),
                   np.concatenate([nothing.pairs, *pairs]), sum(c.images for c in several))


def countable(objects: np.ndarray) -> np.ndarray:
    """bool [g], which objects are to be found."""
    return (objects[:, 2] == 0) & (objects[:, 1] >= SMALL)


def average_precision(whole: Counted, label: int, overlap: float) -> float:
    """Average precision of a class at a threshold; NaN where it has no object."""
    objects, (_, score, pixels, void) = whole.objects, whole.masks.T
    mask, thing, shared = whole.pairs[whole.masks[whole.pairs[:, 0], 0] == label].T
    mine, expected = whole.masks[:, 0] == label, countable(objects)
    there = expected & (objects[:, 0] == label)
    if not there.any():
        return np.nan
    hit = shared / (objects[thing, 1] + pixels[mask] - shared) > overlap

    # Of the masks that hit an object the best is right, the others are wrong.
    right = hit & expected[thing]
    order = np.lexsort((-score[mask[right]], thing[right]))
    found, first = np.unique(thing[right][order], return_index=True)
    gt = np.zeros(right.sum())
    gt[first] = 1
    scores = score[mask[right]][order]

    excused = void.copy()
    np.add.at(excused, mask, shared * (objects[thing, 2] + (objects[thing, 1] < SMALL)))
    matched = np.zeros(len(score), bool)
    matched[mask[hit]] = True
    wrong = mine & ~matched & (excused <= overlap * pixels)
    gt, scores = np.append(gt, np.zeros(wrong.sum())), np.append(scores, score[wrong])
    return steps(gt, scores, int(there.sum()) - len(found))


def steps(gt: np.ndarray, scores: np.ndarray, missed: int) -> float:
    """The area below precision over recall, each precision counting for half a step to either side.

    Args:
        gt: [n] 1 or 0 of detections; scores: [n]; missed: objects without any.
    """
    if len(gt) == 0:
        return 0.0
    order = np.argsort(scores, kind="stable")
    _, first = np.unique(scores[order], return_index=True)
    below = np.append(0, gt[order].cumsum())
    rights = below[-1] - below[first]
    precision = np.append(rights / (len(gt) - first), 1)
    recall = np.append(rights / max(below[-1] + missed, 1), 0)
    ends = np.concatenate([recall[:1], recall, [0]])
    return float(precision @ ((ends[:-2] - ends[2:]) / 2))
