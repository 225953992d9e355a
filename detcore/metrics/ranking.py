"""Average precision of ranked detections, as PASCAL VOC defined it and Open Images took it over.

Detections of all images are columns of arrays, so that nothing loops over images, classes or boxes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

EPS = float(np.finfo(np.float32).eps)
BLOCK = 2**17  # detections compared at a time, so that memory is bounded


@dataclass(frozen=True)
class Boxes:
    """Boxes of a data set: the ground truth, or detections.

    Attributes:
        image: int64 [n], the image of each, by any number.
        boxes: float [n, 4], (x1, y1, x2, y2) in pixels.
        labels: int64 [n].
        scores: float [n], of detections.
        flags: bool [n], of the ground truth: difficult objects (VOC), groups of objects (Open Images).
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    flags: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: np.ndarray) -> Boxes:
        """Some of them, in the order of `index`."""
        return Boxes(*(column[index] if len(column) else column for column in (
            self.image, self.boxes, self.labels, self.scores, self.flags)))


def pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into a and b of all pairs whose keys are equal; ordered by a, then by b."""
    order = np.argsort(b, kind="stable")
    first, last = (np.searchsorted(b[order], a, side) for side in ("left", "right"))  # type: ignore[call-overload]
    count = last - first
    left = np.repeat(np.arange(len(a)), count)
    place = np.arange(len(left)) - np.repeat(count.cumsum() - count, count)
    return left, order[first[left] + place]


def key(*boxes: Boxes) -> list[np.ndarray]:
    """One number for each image and class, the same in all of `boxes`."""
    classes = 1 + max(int(b.labels.max(initial=0)) for b in boxes)
    images = np.unique(np.concatenate([b.image for b in boxes]))
    return [np.searchsorted(images, b.image) * classes + b.labels for b in boxes]


def overlap(a: np.ndarray, b: np.ndarray, *, pixels: bool = False, of_first: bool = False) -> np.ndarray:
    """[n] intersection over union of pairs of boxes [n, 4].

    Args:
        pixels: a box ends with its last pixel, so that it is x2 - x1 + 1 wide (VOC's own convention).
        of_first: over the area of the first box instead of the union.
    """
    more = float(pixels)
    inter = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + more).clip(0).prod(1)
    area, other = ((x[:, 2:] - x[:, :2] + more).prod(1) for x in (a, b))
    return inter / np.maximum(area if of_first else area + other - inter, 1e-6)


def best(detections: Boxes, gt: Boxes, *, progress: bool = False, **how: bool) -> tuple[np.ndarray, np.ndarray]:
    """The object of its image and class that each detection overlaps most, and how much; -1 and 0 where there is none.

    Of equals the first counts. `progress` shows a bar.
    """
    mine, theirs = key(detections, gt)
    index, most = np.full(len(detections), -1), np.zeros(len(detections))
    with tqdm(total=len(detections), desc="comparing boxes", unit="box", disable=not progress, leave=False) as bar:
        for start in range(0, len(detections), BLOCK):
            left, right = pairs(mine[start:start + BLOCK], theirs)
            left += start
            value = overlap(detections.boxes[left].astype(float), gt.boxes[right].astype(float), **how)
            np.maximum.at(most, left, value)
            tops = np.flatnonzero(value == most[left])[::-1]
            index[left[tops]] = right[tops]
            bar.update(len(mine[start:start + BLOCK]))
    return index, most


def first_of_each(index: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool [n]: where a number of `index` [n] appears for the first time among what `among` (bool [n]) chooses."""
    places = np.flatnonzero(among)
    out = np.zeros(len(index), bool)
    out[places[np.unique(index[places], return_index=True)[1]]] = True
    return out


@dataclass(frozen=True)
class Curve:
    """Precision and recall [k] of a class's best 1, 2, ... k detections; `objects` can be found."""

    precision: np.ndarray
    recall: np.ndarray
    objects: int

    def eleven_points(self) -> float:
        """The mean of the best precision at recalls of at least 0, 0.1, ... 1 (VOC 2007)."""
        at = [self.precision[self.recall >= r].max(initial=0.0) for r in np.arange(0, 1 + 1e-3, 0.1)]
        return float(np.mean(at))

    def area(self) -> float:
        """The area below the curve, made falling (VOC from 2010 on)."""
        precision = np.maximum.accumulate(np.append(self.precision, 0.0)[::-1])[::-1]
        recall = np.concatenate([[0.0], self.recall, [1.0]])
        return float((np.diff(recall) * precision).sum())


def curves(labels: np.ndarray, scores: np.ndarray, right: np.ndarray, objects: np.ndarray) -> list[Curve]:
    """A curve for each class.

    Args:
        labels, scores: [n] of ranked detections; right: bool [n], which of them are.
        objects: int [classes], how many can be found.
    """
    order = np.lexsort((-scores, labels))
    ends = np.searchsorted(labels[order], np.arange(len(objects) + 1))
    found = []
    for start, stop, count in zip(ends, ends[1:], objects):
        hit = right[order[start:stop]].cumsum()
        found.append(Curve(hit / np.maximum(np.arange(1, len(hit) + 1), EPS), hit / max(count, EPS), int(count)))
    return found


@dataclass(frozen=True)
class Result:
    """What an evaluation gives.

    Attributes:
        metrics: fractions of 1, None where there is nothing to be found; the first one stands for the result.
        per_class: average precision of each class, None where it has no object.
        images, objects: how many were evaluated; objects that do not count are not among them.
        curves: precision over recall, of each class or setting.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    images: int
    objects: int
    curves: dict[str, Curve] = field(default_factory=dict, repr=False)

    @property
    def headline(self) -> float:
        """The one number that stands for the result."""
        return next(iter(self.metrics.values())) or 0.0


def summary(detections: Boxes, right: np.ndarray, labels: np.ndarray, class_names: Sequence[str], images: int, *,
            eleven_points: bool = False) -> Result:
    """AP50, the mean of the average precision of each class.

    Args:
        detections: those that count, and `right`, bool [n], which of them are.
        labels: int64 [g] of the objects that can be found.
        eleven_points: VOC 2007's precision at eleven recalls; else the area below the curve.
    """
    ranked = curves(detections.labels, detections.scores, right, np.bincount(labels, minlength=len(class_names)))
    per_class = {name: (c.eleven_points() if eleven_points else c.area()) if c.objects else None
                 for name, c in zip(class_names, ranked)}
    known = [v for v in per_class.values() if v is not None]
    return Result({"AP50": float(np.mean(known)) if known else None}, per_class, images,
                  sum(c.objects for c in ranked), dict(zip(class_names, ranked)))
