"""Instance masks: bitmaps and polygons on the ground-truth side, RLE on the results side."""
from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detcore.errors import UsageError


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


def crop_masks(masks: list[Tensor | Polygons | None], boxes: Tensor, image: Tensor, match: Tensor,
               size: int) -> Tensor:
    """Mask targets: each box's object, cropped to the box and resampled to size x size (Mask R-CNN, section 3).

    Args:
        masks: for each image of the batch its objects' masks, bitmaps [n, H, W] of one size or polygons.
        boxes: [r, 4] in pixels; image: [r], the image of each box; match: [r], the object in that image.

    Returns:
        float [r, size, size] of zeros and ones.

    Raises:
        UsageError: an image comes without masks.
    """
    if any(m is None for m in masks):
        raise UsageError("This model learns masks, but its targets have none: load the data with masks.")
    boxes = boxes.detach().float()
    if isinstance(masks[0], Polygons):
        crops = np.zeros((len(boxes), size, size), np.float32)
        for i, (corner, b, o) in enumerate(zip(boxes.cpu().numpy(), image.tolist(), match.tolist())):
            if o < len(masks[b]):
                origin, scale = corner[:2], size / np.maximum(corner[2:] - corner[:2], 0.1)
                crops[i] = rasterise([(ring - origin) * scale for ring in masks[b].rings[o]], size, size)
        return torch.from_numpy(crops).to(boxes.device)
    bitmaps = cast(list[Tensor], masks)
    counts = torch.tensor([0] + [len(m) for m in bitmaps[:-1]]).cumsum(0).to(boxes.device, non_blocking=True)
    stacked = torch.cat(bitmaps)
    if len(stacked) == 0:
        return boxes.new_zeros(len(boxes), size, size)
    # Each object's mask is an image of its own to RoIAlign, so that a box looks at no other.
    rois = torch.cat([(counts[image] + match).clamp(max=len(stacked) - 1)[:, None], boxes], 1)
    return (roi_align(stacked[:, None].float(), rois, (size, size), aligned=True)[:, 0] >= 0.5).float()
