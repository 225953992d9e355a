"""Instance masks: bitmaps and polygons on the ground-truth side, RLE on the results side."""
from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from detcore.errors import UsageError
from detcore.structures import Polygons

NO_MASKS = "This model learns masks, but its targets have none: load the data with masks."


def bitmaps(masks: list[Tensor | Polygons | None], device: torch.device) -> list[Tensor]:
    """Each image's masks, uint8 [n, H, W] over the whole padded batch.

    Raises:
        UsageError: an image comes without masks.
    """
    if any(m is None for m in masks):
        raise UsageError(NO_MASKS)
    drawn = [torch.from_numpy(m.to_bitmap()).to(device) if isinstance(m, Polygons) else cast(Tensor, m) for m in masks]
    h, w = (max(m.shape[i] for m in drawn) for i in (1, 2))
    return [F.pad(m, (0, w - m.shape[2], 0, h - m.shape[1])) for m in drawn]


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
        raise UsageError(NO_MASKS)
    boxes = boxes.detach().float()
    if isinstance(masks[0], Polygons):
        crops = np.zeros((len(boxes), size, size), np.float32)
        for i, (corner, b, o) in enumerate(zip(boxes.cpu().numpy(), image.tolist(), match.tolist())):
            if o < len(masks[b]):
                origin, scale = corner[:2], size / np.maximum(corner[2:] - corner[:2], 0.1)
                crops[i] = rasterise([(ring - origin) * scale for ring in masks[b].rings[o]], size, size)
        return torch.from_numpy(crops).to(boxes.device)
    counts = torch.tensor([0] + [len(m) for m in cast(list[Tensor], masks)[:-1]]).cumsum(0)
    counts = counts.to(boxes.device, non_blocking=True)
    stacked = torch.cat(cast(list[Tensor], masks))
    if len(stacked) == 0:
        return boxes.new_zeros(len(boxes), size, size)
    # Each object's mask is an image of its own to RoIAlign, so that a box looks at no other.
    rois = torch.cat([(counts[image] + match).clamp(max=len(stacked) - 1)[:, None], boxes], 1)
    return (roi_align(stacked[:, None].float(), rois, (size, size), aligned=True)[:, 0] >= 0.5).float()
