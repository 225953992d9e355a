"""Test-time augmentation: an image is looked at several times, larger or smaller and mirrored, and what is found in
these views is merged."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from detcore.data.transforms import Flip, Rescale, Resize, Transform
from detcore.ops.nms import grouped_nms, soft_nms
from detcore.structures import Detections


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which views of an image are taken, and how their boxes are merged.

    Attributes:
        scales: factors of the size at which the recipe tests.
        flip: each of them mirrored, too.
        nms_threshold: IoU above which the lower-scored box of a class is dropped.
        sigma: of Gaussian soft-NMS in its place; None: plain NMS.
        max_detections: detections of an image.
    """

    __test__ = False  # the name is no test's, whatever pytest thinks

    scales: tuple[float, ...] = (1.0,)
    flip: bool = True
    nms_threshold: float = 0.5
    sigma: float | None = None
    max_detections: int = 100

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

    def merge(self, views: Sequence[Detections]) -> Detections:
        """The detections of several views of one image, all in the image's own pixels, as one."""
        boxes, scores, labels = (torch.cat([getattr(d, name) for d in views]) for name in ("boxes", "scores", "labels"))
        if self.sigma is None:
            order = grouped_nms(boxes, scores, labels, self.nms_threshold)
            scores = scores[order]
        else:
            order, scores = soft_nms(boxes, scores, labels, sigma=self.sigma)
        order = order[:self.max_detections]
        return Detections(boxes[order], scores[:self.max_detections], labels[order])


def mirrored(detections: Detections, width: int) -> Detections:
    """The boxes found in the mirror image, in the image itself, which is `width` pixels wide."""
    x1, y1, x2, y2 = detections.boxes.unbind(-1)
    return replace(detections, boxes=torch.stack([width - x2, y1, width - x1, y2], -1))
