"""Instance masks: bitmaps and polygons on the ground-truth side, RLE on the results side."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align


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


def crop_masks(masks: Tensor | Polygons, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    """Mask targets: object `index[i]`'s mask inside `boxes[i]`, resampled to size x size (Mask R-CNN, section 3).

    Args:
        masks: [n, H, W] uint8, or polygons of n objects.
        boxes: [p, 4] in pixels.
        index: [p] int64, the object each box belongs to.

    Returns:
        float [p, size, size] of zeros and ones.
    """
    if isinstance(masks, Polygons):
        return _crop_polygons(masks, boxes, index, size)
    rois = torch.cat([torch.zeros_like(boxes[:, :1]), boxes.detach()], 1).float()
    if len(masks) == 0:
        return rois.new_zeros(len(rois), size, size)
    # Each object's mask is an image of the batch, so a box looks only at its own.
    rois[:, 0] = index
    cropped = roi_align(masks[:, None].float(), rois, (size, size), 1.0, 0, aligned=True)[:, 0]
    return (cropped >= 0.5).float()


def _crop_polygons(masks: Polygons, boxes: Tensor, index: Tensor, size: int) -> Tensor:
    out = np.empty((len(boxes), size, size), np.float32)
    for i, ((x1, y1, x2, y2), obj) in enumerate(zip(boxes.detach().cpu().numpy(), index.tolist())):
        scale = np.array([size / max(x2 - x1, 0.1), size / max(y2 - y1, 0.1)])
        out[i] = rasterise([(ring - [x1, y1]) * scale for ring in masks.rings[obj]], size, size)
    return torch.from_numpy(out).to(boxes.device)
