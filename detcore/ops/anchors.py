"""Anchors and points: the grids of reference boxes and cell centres that dense heads predict from."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Anchors of given sizes at every cell of every level, made on the device of the maps.

    Args:
        strides: pixels between cells, a level each.
        sizes: (w, h) in pixels of each level's anchors, in their order, [n, 2] a level.
        center: where in its cell an anchor is centred, in strides from the cell's top-left corner.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[np.ndarray], center: float = 0.0):
        super().__init__()
        self.strides, self.center = tuple(strides), center
        self.counts = tuple(len(s) for s in sizes)  # anchors of a cell, for each level
        # Not in the state dict: published checkpoints have no such entries.
        for level, size in enumerate(sizes):
            self.register_buffer(f"size{level}", torch.tensor(np.asarray(size, np.float32)), persistent=False)

    @classmethod
    def from_scales(cls, strides: Sequence[int], scales: Sequence[float],
                    ratios: Sequence[float] = (0.5, 1.0, 2.0)) -> AnchorGenerator:
        """Anchors of several shapes, centred on their cell's top-left corner (Faster R-CNN, section 3.1.1): each ratio
        (height / width) with each scale (side in strides)."""
        root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
        sides = [np.float32(stride) * np.asarray(scales, np.float32) for stride in strides]
        return cls(strides, [np.stack([side / root, side * root], -1).reshape(-1, 2) for side in sides])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """A level's anchors [h * w * n, 4] for each map [N, c, h, w]: cells by row, then a cell's anchors."""
        levels = []
        for level, (stride, x) in enumerate(zip(self.strides, maps)):
            half, center = self.get_buffer(f"size{level}") / 2, self.center * stride
            base = torch.cat([center - half, center + half], 1)
            corner = point_grid([x], [stride], offset=0)[0]
            levels.append((corner.repeat(1, 2)[:, None] + base).reshape(-1, 4))
        return levels


def point_grid(maps: Sequence[Tensor], strides: Sequence[int], offset: float = 0.5) -> list[Tensor]:
    """Cell centres [h * w, 2] (x, y) in pixels for each map [N, c, h, w]; or top-left corners (`offset` 0)."""
    levels = []
    for x, stride in zip(maps, strides):
        rows, columns = (torch.arange(n, device=x.device) for n in (x.shape[2], x.shape[3]))
        y, x_at = torch.meshgrid(rows, columns, indexing="ij")
        levels.append((torch.stack([x_at, y], -1).reshape(-1, 2) + offset) * stride)
    return levels


def inside(anchors: Tensor, image_sizes: Tensor, border: int = 0) -> Tensor:
    """Which anchors [A, 4] cross the border of each image (h, w) [N, 2] by less than `border` pixels, [N, A] bool."""
    h, w = image_sizes[:, :1], image_sizes[:, 1:]
    return (anchors[:, :2] >= -border).all(1) & (anchors[:, 2] < w + border) & (anchors[:, 3] < h + border)


def per_anchor(maps: Tensor, values: int) -> Tensor:
    """[N, A * values, h, w] as [N, h * w * A, values], the order of the anchors."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


def level_values(levels: Sequence[Tensor], values: Sequence[float]) -> Tensor:
    """[A, 1] of anchors or points [a, ...] of several levels: for each level's own a rows its value."""
    return torch.cat([level.new_full((len(level), 1), value) for level, value in zip(levels, values)])
