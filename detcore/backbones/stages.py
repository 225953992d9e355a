"""What backbones share: stages one after the other, and norms that keep their statistics."""
from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Self

from torch import Tensor, nn


def stage_maps(x: Tensor, stages: Iterable[nn.Module], wanted: Collection[int]) -> tuple[Tensor, ...]:
    """What those stages give whose indices are `wanted`, each one fed by the one before it, the first by x."""
    maps = []
    for i, stage in enumerate(stages):
        x = stage(x)
        if i in wanted:
            maps.append(x)
    return tuple(maps)


class FixedStatistics(nn.Module):
    """A network whose batch norm layers (synchronised ones too) keep their statistics in training, if `norm_eval`."""

    norm_eval = True

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self.modules():
            if mode and self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self
