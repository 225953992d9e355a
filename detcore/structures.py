"""What goes into a detector and what comes out: padded batches, ground truth, proposals, detections.

Boxes are (x1, y1, x2, y2) in absolute pixels, x to the right, y down, of the image that the structure belongs to:
the network's input for `Target`, the network's input or the original image for `Detections`.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from detcore.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

INSTANCE = 1000  # what an instance's number is multiplied by in a panoptic map
IGNORED = 255  # a pixel without a class in a class map
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of R, G, B on the scale 0..255

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

    @classmethod
    def from_list(cls, images: Sequence[Tensor | np.ndarray], preprocess: Callable[..., Images] | None = None, *,
                  device: torch.device | str | None = None) -> Images:
        """A batch of RGB images of any sizes: padded at right and bottom, and normalised.

        Args:
            images: tensors [3, h, w], uint8 in 0..255 or float in 0..1, or arrays uint8 [h, w, 3].
            preprocess: `recipe.preprocess` of a model of the zoo; None: ImageNet's mean and standard deviation, sides
                padded to multiples of 32.
            device: where the batch goes; by default where the first image is.

        Raises:
            DataError: there is no image, or one of another form.
        """
        if not len(images):
            raise DataError("A batch needs at least one image.")
        chw = [_chw(image) for image in images]
        sizes = [(int(x.shape[1]), int(x.shape[2])) for x in chw]
        if preprocess is not None:
            batch, sizes = preprocess.collate(  # type: ignore[attr-defined]
                [x.flip(0).permute(1, 2, 0).cpu().numpy() for x in chw])
            return preprocess(batch.to(device or chw[0].device), sizes)
        height, width = (-(-max(side) // 32) * 32 for side in zip(*sizes))
        mean, std = (chw[0].new_tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        padded = [torch.nn.functional.pad((x - mean) / std, (0, width - w, 0, height - h))
                  for x, (h, w) in zip(chw, sizes)]
        return cls(torch.stack(padded).to(device or chw[0].device), sizes)


def _chw(image: Tensor | np.ndarray) -> Tensor:
    """An RGB image as float32 [3, h, w] on the scale 0..255."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    if isinstance(image, Tensor) and image.dim() == 3 and image.shape[0] == 3:
        if image.dtype == torch.uint8:
            return image.float()
        if image.is_floating_point():
            return image.float() * 255
    form = f"{image.dtype} {list(image.shape)}" if isinstance(image, (Tensor, np.ndarray)) else type(image).__name__
    raise DataError(f"An image of a batch is an RGB tensor [3, h, w] (uint8, or float in 0..1) or an RGB array uint8 "
                    f"[h, w, 3], not {form}.")


@dataclass
class Polygons:
    """Instance masks as polygons, exact under scaling, rasterised only where they are needed.

    Attributes:
        rings: for each object its rings, each float [k, 2] (x, y) in pixels.
        size: (h, w) of the image.
    """

    rings: list[list[np.ndarray]]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.rings)

    def __getitem__(self, index) -> Polygons:
        """The objects selected by a list, an integer array or a boolean array."""
        chosen = np.arange(len(self.rings))[np.asarray(index)]
        return Polygons([self.rings[i] for i in np.atleast_1d(chosen)], self.size)

    def to_bitmap(self, size: tuple[int, int] | None = None) -> np.ndarray:
        """uint8 [n, h, w], drawn as COCO does."""
        h, w = size or self.size
        return np.stack([rasterise(r, h, w) for r in self.rings]) if self.rings else np.zeros((0, h, w), np.uint8)


def rasterise(rings: list[np.ndarray], h: int, w: int) -> np.ndarray:
    """uint8 [h, w] of the union of rings ([k, 2] each), by pycocotools."""
    from pycocotools import mask as coco_mask

    rings = [r for r in rings if len(r) >= 3]  # what is cut off by a border may leave less
    if not rings:
        return np.zeros((h, w), np.uint8)
    rles = coco_mask.frPyObjects([r.reshape(-1).tolist() for r in rings], h, w)
    return coco_mask.decode(coco_mask.merge(rles))


def encode_rle(masks: Tensor | np.ndarray) -> list[dict]:
    """COCO run-length codes (counts as str) of bool or uint8 masks [n, h, w]."""
    from pycocotools import mask as coco_mask

    array = masks.cpu().numpy() if isinstance(masks, Tensor) else masks
    if len(array) == 0:
        return []
    rles = coco_mask.encode(np.asfortranarray(array.transpose(1, 2, 0).astype(np.uint8)))
    return [dict(size=r["size"], counts=r["counts"].decode()) for r in rles]


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
class Proposals(_Movable):
    """Class-agnostic proposals of a batch, best first, padded to one length.

    Attributes:
        boxes: [N, P, 4] in pixels of the network's input; scores: [N, P]; valid: [N, P] bool, which entries are real.
    """

    boxes: Tensor
    scores: Tensor
    valid: Tensor


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

    def above(self, score_threshold: float) -> Detections:
        """The detections whose score is at least `score_threshold`."""
        keep = self.scores >= score_threshold
        return replace(self, boxes=self.boxes[keep], scores=self.scores[keep], labels=self.labels[keep],
                       masks=None if self.masks is None else self.masks[keep])

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO results: a dict for each detection with xywh box, score and, where there are masks, RLE.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: the file's category id of each label.
        """
        boxes = self.boxes.detach().float().cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        results: list[dict[str, Any]] = [
            dict(image_id=image_id, category_id=category_ids[c], bbox=b, score=s)
            for b, s, c in zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist())]
        if self.masks is not None:
            for result, rle in zip(results, encode_rle(self.masks)):
                result["segmentation"] = rle
        return results

    def draw(self, image: Any = None, *, score_threshold: float = 0.3, scale: float | None = None) -> Image:
        """The image with boxes, names, scores and masks painted on it; see `detcore.draw.detections`."""
        from detcore.draw import detections

        return detections(self, image, score_threshold=score_threshold, scale=scale)

    def _repr_html_(self) -> str:
        from detcore.draw import detections_html

        return detections_html(self)
