"""Where a cell lies, as a vector of sines and cosines (Vaswani et al. 2017, section 3.5; for images Carion et al.,
"End-to-end object detection with transformers", 2020)."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from detcore.structures import Images

TEMPERATURE = 10000.0  # the longest wave is so many times as long as the shortest
EPS = 1e-6


def sine_positions(valid: Tensor, features: int, offset: float = 0.0) -> Tensor:
    """[N, h, w, 2 * features]: first of the row, then of the column, each counted inside the image (where `valid`
    [N, h, w] is true) from 1 + `offset` on, and scaled to 2 pi."""
    counted = valid.float()
    rows, columns = counted.cumsum(1), counted.cumsum(2)
    rows = (rows + offset) / (rows[:, -1:] + EPS) * 2 * math.pi
    columns = (columns + offset) / (columns[:, :, -1:] + EPS) * 2 * math.pi
    return torch.cat([waves(rows, features), waves(columns, features)], 3)


def waves(position: Tensor, features: int) -> Tensor:
    """[..., features] sines and cosines, by turns, in longer and longer waves, of positions [...] in radians of the
    shortest one."""
    index = torch.arange(features, device=position.device)
    angle = position[..., None] / TEMPERATURE ** (index // 2 * 2 / features)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(-2)


def not_padding(size: tuple[int, int], images: Images) -> Tensor:
    """[N, h, w] bool: which cells of a map of `size` (h, w) begin inside their image."""
    device, padded = images.tensor.device, images.tensor.shape[2:]
    rows, columns = (torch.arange(cells, device=device) * side // cells for cells, side in zip(size, padded))
    sizes = torch.tensor(images.sizes).to(device, non_blocking=True)
    return (rows < sizes[:, :1])[:, :, None] & (columns < sizes[:, 1:])[:, None]
