"""Backbones: images in, feature maps of several strides out."""
from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import Tensor, nn


def stage_maps(x: Tensor, stages: Iterable[nn.Module], wanted: Collection[int]) -> tuple[Tensor, ...]:
    """What those stages give whose indices are `wanted`, each one fed by the one before it, the first by x."""
    maps = []
    for i, stage in enumerate(stages):
        x = stage(x)
        if i in wanted:
            maps.append(x)
    return tuple(maps)
