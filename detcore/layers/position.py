"""Where a cell lies, as a vector of sines and cosines (Vaswani et al. 2017, section 3.5; for images Carion et al.,
"End-to-end object detection with transformers", 2020)."""
from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0  # the longest wave is so many times as long as the shortest
EPS = 1e-6


def sine_positions(valid: Tensor, features: int, offset: float = 0.0) -> Tensor:
    """[N, h, w, 2 * features]: first of the row, then of the column, each counted inside the image and scaled to 2 pi.

    Args:
        valid: [N, h, w] bool, cells that are not padding.
        features: for each direction.
        offset: added to the count, which begins at 1.
    """
    inside = valid.float()
    rows, columns = inside.cumsum(1), inside.cumsum(2)
    rows = (rows + offset) / (rows[:, -1:] + EPS) * 2 * math.pi
    columns = (columns + offset) / (columns[:, :, -1:] + EPS) * 2 * math.pi
    index = torch.arange(features, device=valid.device)
    waves = TEMPERATURE ** (index // 2 * 2 / features)

    def code(at: Tensor) -> Tensor:
        angle = at[..., None] / waves
        return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(3)

    return torch.cat([code(rows), code(columns)], 3)
