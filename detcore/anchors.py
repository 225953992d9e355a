"""Anchors: the grids of reference boxes and points that dense heads predict from."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


class BoxGrid:
    """Boxes of given sizes at every cell of every level.

    Args:
        strides: pixels between cells, a level each.
        sizes: (w, h) in pixels of each level's boxes, in their order, an array [n, 2] a level.
        centre: where in its cell a box is centred, in strides from the cell's top-left corner.
    """

    def __init__(self, strides: Sequence[int], sizes: Sequence[np.ndarray], centre: float = 0.0):
        self.strides, self.sizes, self.centre = tuple(strides), tuple(sizes), centre
        # Two image sizes seldom alternate for long: a small cache holds what training reuses.
        self._grid = lru_cache(maxsize=16)(self._build)

    @property
    def counts(self) -> tuple[int, ...]:
        """Boxes of a cell, for each level."""
        return tuple(len(s) for s in self.sizes)

    def __call__(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> list[Tensor]:
        """A level's boxes [h * w * n, 4] for each feature size (h, w): cells by row, then a cell's boxes."""
        return list(self._grid(tuple(tuple(s) for s in sizes), device))

    def _build(self, sizes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, ...]:
        levels = []
        for stride, boxes, (h, w) in zip(self.strides, self.sizes, sizes):
            half, centre = torch.from_numpy(boxes.astype(np.float32)) / 2, self.centre * stride
            base = torch.cat([centre - half, centre + half], 1)
            y, x = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
            shift = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
            levels.append((shift + base).reshape(-1, 4).to(device))
        return tuple(levels)


class AnchorGrid(BoxGrid):
    """Boxes of several shapes at every cell of every pyramid level (Faster R-CNN, section 3.1.1).

    A cell's anchors are centred on its top-left corner, ordered by ratio, then scale.

    Args:
        strides: pixels between cells, a level each.
        scales: anchor side in strides.
        ratios: height / width.
    """

    def __init__(self, strides: Sequence[int], scales: Sequence[float], ratios: Sequence[float] = (0.5, 1.0, 2.0)):
        self.scales, self.ratios = tuple(scales), tuple(ratios)
        root = np.sqrt(np.asarray(ratios, np.float32))[:, None]
        sides = [np.float32(stride) * np.asarray(scales, np.float32) for stride in strides]
        super().__init__(strides, [np.stack([side / root, side * root], -1).reshape(-1, 2) for side in sides])

    @property
    def per_cell(self) -> int:
        return len(self.scales) * len(self.ratios)


def inside(anchors: Tensor, image_sizes: Tensor, border: int = 0) -> Tensor:
    """Which anchors [A, 4] cross the border of each image (h, w) [N, 2] by less than `border` pixels, [N, A] bool."""
    h, w = image_sizes[:, :1], image_sizes[:, 1:]
    return ((anchors[:, :2] >= -border).all(1) & (anchors[:, 2] < w + border) & (anchors[:, 3] < h + border))


def point_grid(sizes: Sequence[tuple[int, int]], strides: Sequence[int], device: torch.device,
               offset: float = 0.5) -> list[Tensor]:
    """Cell centres [h * w, 2] (x, y) in pixels, a tensor for each level; or top-left corners (`offset` 0)."""
    levels = []
    for (h, w), stride in zip(sizes, strides):
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        levels.append((torch.stack([x, y], -1).reshape(-1, 2) + offset) * stride)
    return levels
