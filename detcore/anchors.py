"""Anchors: the grids of reference boxes and points that dense heads predict from."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


class AnchorGrid:
    """Boxes of several shapes at every cell of every pyramid level (Faster R-CNN, section 3.1.1).

    A cell's anchors are centred on its top-left corner, ordered by ratio, then scale.

    Args:
        strides: pixels between cells, a level each.
        scales: anchor side in strides.
        ratios: height / width.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0)):
        self.strides, self.scales, self.ratios = tuple(strides), tuple(scales), tuple(ratios)
        # Two image sizes seldom alternate for long: a small cache holds what training reuses.
        self._grid = lru_cache(maxsize=16)(self._build)

    @property
    def per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """A level's anchors [h * w * per_cell, 4] for each feature size (h, w): cells by row, then anchors."""
        return list(self._grid(tuple(tuple(s) for s in sizes), device))

    def _build(self, sizes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, ...]:
        levels = []
        for stride, (h, w) in zip(self.strides, sizes):
            root = torch.tensor(self.ratios).sqrt()[:, None]
            side = stride * torch.tensor(self.scales, dtype=torch.float32)
            half = torch.stack([side / root, side * root], -1).reshape(-1, 2) / 2
            base = torch.cat([-half, half], 1)
            y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
            shift = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            levels.append((shift + base).reshape(-1, 4).to(device))
        return tuple(levels)


def inside(anchors: Tensor, image_sizes: Tensor, border: int = 0) -> Tensor:
    """Which anchors [A, 4] cross the border of each image (h, w) [N, 2] by less than `border` pixels, [N, A] bool."""
    h, w = image_sizes[:, :1], image_sizes[:, 1:]
    return ((anchors[:, :2] >= -border).all(1) & (anchors[:, 2] < w + border) & (anchors[:, 3] < h + border))


def point_grid(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device) -> list[Tensor]:
    """Cell centres [h * w, 2] (x, y) in pixels, a tensor for each level."""
    levels = []
    for (h, w), stride in zip(sizes, strides):
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        levels.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride)
    return levels
