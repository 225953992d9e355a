"""Instance masks: targets cropped from bitmaps or polygons, and predicted masks pasted into the image."""
from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from detcore.errors import UsageError
from detcore.structures import Polygons, rasterise

NO_MASKS = "This model learns masks, but its targets have none: load the data with masks."


def bitmaps(masks: list[Tensor | Polygons | None], device: torch.device) -> list[Tensor]:
    """Each image's masks, uint8 [n, H, W] over the whole padded batch.

    Raises:
        UsageError: an image comes without masks.
    """
    if any(m is None for m in masks):
        raise UsageError(NO_MASKS)
    maps = [torch.from_numpy(m.to_bitmap()).to(device) if isinstance(m, Polygons) else cast(Tensor, m) for m in masks]
    h, w = (max(m.shape[i] for m in maps) for i in (1, 2))
    return [F.pad(m, (0, w - m.shape[2], 0, h - m.shape[1])) for m in maps]


def crop_masks(masks: list[Tensor | Polygons | None], boxes: Tensor, image: Tensor, matched: Tensor,
               size: int) -> Tensor:
    """Mask targets: each box's object, cropped to the box and resampled (Mask R-CNN, section 3), float [r, size, size]
    of zeros and ones.

    Args:
        masks: for each image of the batch its objects' masks, bitmaps [n, H, W] of one size or polygons.
        boxes: [r, 4] in pixels; image: [r], the image of each box; matched: [r], the object in that image.

    Raises:
        UsageError: an image comes without masks.
    """
    if any(m is None for m in masks):
        raise UsageError(NO_MASKS)
    boxes = boxes.detach().float()
    if isinstance(masks[0], Polygons):
        crops = np.zeros((len(boxes), size, size), np.float32)
        for i, (corner, b, o) in enumerate(zip(boxes.cpu().numpy(), image.tolist(), matched.tolist())):
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
    rois = torch.cat([(counts[image] + matched).clamp(max=len(stacked) - 1)[:, None], boxes], 1)
    return (roi_align(stacked[:, None].float(), rois, (size, size), aligned=True)[:, 0] >= 0.5).float()


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5, chunk: int = 32) -> Tensor:
    """Masks drawn in their boxes on an empty image, bool [n, h, w] (Mask R-CNN, section 3.2).

    Bilinear resampling is separable: two small matrices a box, one for rows and one for columns, say how much each
    mask row (column) counts in each image row (column), and their product with the mask is the pasted mask.

    Args:
        masks: [n, s, s] probabilities; boxes: [n, 4] in pixels; size: (h, w) of the image.
    """
    if torch.compiler.is_compiling():  # how many masks there will be is not known
        return _paste(masks, boxes, size) >= threshold
    out = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for i in range(0, len(masks), chunk):
        out[i:i + chunk] = _paste(masks[i:i + chunk], boxes[i:i + chunk], size) >= threshold
    return out


def _paste(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """[n, h, w] probabilities of masks [n, s, s] in their boxes [n, 4] on an image of `size` (h, w)."""
    masks, boxes = masks.float(), boxes.float()
    rows = _weights(boxes[:, 1], boxes[:, 3], size[0], masks.shape[1])
    columns = _weights(boxes[:, 0], boxes[:, 2], size[1], masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def _weights(start: Tensor, end: Tensor, pixels: int, cells: int) -> Tensor:
    """[n, pixels, cells] bilinear weight of each of `cells` between start and end [n] in each pixel."""
    pixel, start, end = torch.arange(pixels, device=start.device), start[:, None], end[:, None]
    cell = (pixel + 0.5 - start) / (end - start) * cells - 0.5
    # A box without extent, cut off by the image's border, shows the mask's middle where it touches.
    touched = (pixel >= start.floor() - 1) & (pixel < end.ceil() + 1)
    cell = torch.where(end > start, cell, torch.where(touched, (cells - 1) / 2, torch.inf))
    return (1 - (cell[..., None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
