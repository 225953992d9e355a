"""What goes into a detector and what comes out: padded batches, ground truth, detections.

Boxes are (x1, y1, x2, y2) in absolute pixels, x to the right, y down, of the image that the structure belongs to:
the network's input for `Target`, the network's input or the original image for `Detections`.
"""
from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

    from detcore.masks import Polygons

INSTANCE = 1000  # what an instance's number is multiplied by in a panoptic map
IGNORED = 255  # a pixel without a class in a class map

T = TypeVar("T", bound="_Movable")


class _Movable:
    def to(self: T, device: torch.device | str, non_blocking: bool = False) -> T:
        """The same structure with every tensor on `device`."""
        moved = {f.name: v.to(device, non_blocking=non_blocking) for f in fields(self)  # type: ignore[arg-type]
                 if hasattr(v := getattr(self, f.name), "to")}
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass
class Images(_Movable):
    """A batch of images, zero-padded to one size.

    Attributes:
        tensor: [N, 3, H, W] float, normalised.
        sizes: each image's own (h, w) inside the padding.
        origins: each image's (top, left) there; None: all start in the corner.
    """

    tensor: Tensor
    sizes: list[tuple[int, int]]
    origins: list[tuple[int, int]] | None = None

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass
class Target(_Movable):
    """Ground truth of one image, in pixels of the network's input.

    Attributes:
        boxes: [n, 4] float (x1, y1, x2, y2).
        labels: [n] int64, 0 to classes - 1.
        masks: [n, H, W] uint8 over the padded input, or polygons, or None.
        ignored: [m, 4] crowd regions, neither object nor background.
        proposals: [p, 4] precomputed proposals (Fast R-CNN).
        semantic: [H, W] int64 class of every pixel for panoptic methods: things, then stuff; 255 where there is none.
        image_id: the data set's own number of the image, for messages.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | Polygons | None = None
    ignored: Tensor | None = None
    proposals: Tensor | None = None
    semantic: Tensor | None = None
    image_id: int = -1


@dataclass
class Detections(_Movable):
    """What a detector found in one image, best first.

    Attributes:
        boxes: [n, 4] float (x1, y1, x2, y2).
        scores: [n] in 0..1.
        labels: [n] int64.
        masks: [n, h, w] bool over the whole image, or None.
        panoptic: [h, w] int64, class + 1000 x instance number; void is the number of classes. Or None.
        class_names: a name for each label, or None.
        image: the picture the detections belong to (uint8 [h, w, 3] RGB), kept by `Predictor` for drawing.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None
    panoptic: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    image: Any = None

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> Detections:
        """The detections whose score is at least `score`."""
        keep = self.scores >= score
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep],
                       masks=None if self.masks is None else self.masks[keep])

    def to_coco(self, image_id: int, category_ids: list[int] | None = None) -> list[dict]:
        """COCO results: a dict for each detection with xywh box, score and, where there are masks, RLE.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: the file's category id for each label; label + 1 where not given.
        """
        boxes = self.boxes.detach().float().cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        labels = self.labels.tolist()
        results = [
            dict(image_id=image_id, category_id=category_ids[c] if category_ids else c + 1, bbox=b, score=s)
            for b, s, c in zip(boxes.tolist(), self.scores.tolist(), labels)
        ]
        if self.masks is not None:
            from detcore.masks import encode_rle

            for result, rle in zip(results, encode_rle(self.masks)):
                result["segmentation"] = rle
        return results

    def draw(self, image: Any = None, *, score: float = 0.3, scale: float | None = None) -> Image:
        """The image with boxes, names, scores and masks painted on it; see `detcore.draw.detections`."""
        from detcore.draw import detections

        return detections(self, image, score=score, scale=scale)

    def _repr_html_(self) -> str:
        from detcore.draw import detections_html

        return detections_html(self)
