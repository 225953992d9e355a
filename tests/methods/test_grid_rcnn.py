"""Grid R-CNN's targets against the published rule, step by step in float32."""
from __future__ import annotations

import numpy as np
import torch

from detcore.methods.grid_rcnn import PART, RADIUS, SIDE, WHOLE, grid_targets


def by_hand(region: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """float32 [points, PART, PART] of one region and its object, each float32 [4]."""
    half = (region[2:] - region[:2]) / np.float32(2)
    start, end = region[:2] - half, region[2:] + half
    size, out = end - start, np.zeros((SIDE**2, PART, PART), np.float32)
    if (size <= SIDE).any():
        return out
    for i in range(SIDE):
        for j in range(SIDE):
            share = np.array([1 - i / (SIDE - 1), 1 - j / (SIDE - 1)], np.float32)
            point = share * gt[:2] + (1 - share) * gt[2:]
            corner = (WHOLE - PART) // (SIDE - 1) * np.array([i, j])
            x, y = ((point - start) / size * np.float32(WHOLE)).astype(int) - corner
            rows, columns = np.mgrid[:PART, :PART]
            out[i * SIDE + j] = (columns - x) ** 2 + (rows - y) ** 2 <= RADIUS**2
    return out


def test_cells_are_rounded_as_published():
    """Of a region that is the object itself every point lies where cells meet, so that the last bit decides."""
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(0, 800, (120, 2)), rng.uniform(1, 300, (120, 2))
    gt = np.concatenate([corner, corner + side], 1).astype(np.float32)
    regions = gt.copy()
    regions[60:] += rng.normal(0, 8, (60, 4)).astype(np.float32)
    wanted = np.stack([by_hand(*pair) for pair in zip(regions, gt)])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        boxes = [torch.from_numpy(b).to(dtype) for b in (regions, gt)]
        if dtype == torch.bfloat16:  # has other boxes
            wanted = np.stack([by_hand(*pair) for pair in zip(*(b.float().numpy() for b in boxes))])
        np.testing.assert_array_equal(grid_targets(*boxes).numpy(), wanted)
    assert wanted[:60].sum() > 60 * SIDE**2 * 3
