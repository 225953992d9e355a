"""Parts of prediction heads that several methods share."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from detcore.layers.conv import ConvBlock


class Scale(nn.Module):
    """A learned factor, 1 at first: a head shared by all levels has one for each, as box sizes differ between them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """[...] to the same shape."""
        return x * self.scale


def conv_tower(channels: int, depth: int, *, norm: str | None = "gn", bias: bool | None = None) -> nn.Sequential:
    """`depth` 3x3 convolutions with ReLU, [N, channels, h, w] to the same; options as `ConvBlock`'s."""
    return nn.Sequential(*[ConvBlock(channels, channels, 3, norm=norm, bias=bias) for _ in range(depth)])


def flatten(maps: Tensor) -> Tensor:
    """[N, c, h, w] as [N, h * w, c]: a row for each cell, in the order of `point_grid`."""
    return maps.flatten(2).transpose(1, 2)
