"""Test-time augmentation: an image is looked at several times, larger or smaller and mirrored, and what is found in
these views is merged."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from detcore.ops import boxes as box
from detcore.data.transforms import Flip, Rescale, Resize, Transform
from detcore.structures import Detections

KEPT = 100  # detections of an image


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which views of an image are taken, and how their boxes are merged.

    Attributes:
        scales: factors of the size at which the recipe tests.
        flip: each of them mirrored, too.
        iou: overlap above which the lesser of two boxes of a class is dropped.
        sigma: of Gaussian soft-NMS in its place; None: plain NMS.
    """

    __test__ = False  # the name is no test's, whatever pytest thinks

    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    iou: float = 0.5
    sigma: float | None = None

    def views(self, transforms: Sequence[Transform]) -> Iterator[tuple[tuple[Transform, ...], bool]]:
        """The transforms of each view, from the recipe's own, and whether it is mirrored."""
        for scale in self.scales:
            resized = tuple(replace(t, scale=(round(t.scale[0] * scale), round(t.scale[1] * scale)))
                            if isinstance(t, Resize) else t for t in transforms)
            if scale != 1 and resized == tuple(transforms):  # tested at the image's own size
                resized = (*transforms, Rescale(scale))
            yield resized, False
            if self.flip:
                yield (*resized, Flip(1.0)), True

    def merge(self, found: Sequence[Detections]) -> Detections:
        """What several views of one image gave, all in the image's own pixels, as one."""
        boxes, scores, labels = (torch.cat([getattr(d, name) for d in found]) for name in ("boxes", "scores", "labels"))
        if self.sigma is None:
            order = box.grouped_nms(boxes, scores, labels, self.iou)[:KEPT]
            return Detections(boxes[order], scores[order], labels[order])
        order, scores = box.soft_nms(boxes, scores, labels, sigma=self.sigma)
        return Detections(boxes[order[:KEPT]], scores[:KEPT], labels[order[:KEPT]])


def mirrored(found: Detections, width: int) -> Detections:
    """The boxes found in the mirror image, in the image itself, which is `width` pixels wide."""
    x1, y1, x2, y2 = found.boxes.unbind(-1)
    return replace(found, boxes=torch.stack([width - x2, y1, width - x1, y2], -1))
