"""Convolution + norm + activation, named as published checkpoints name it: `conv`, then `bn` or `gn`."""
from __future__ import annotations

from math import gcd

from torch import Tensor, nn


class ConvBlock(nn.Module):
    """Convolution, then a norm if one is given, then ReLU unless turned off.

    Args:
        norm: "bn", "gn" (32 groups, or as many of them as divide the channels) or None; a convolution that is followed
            by a norm has no bias.
        relu: whether a ReLU ends the block.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, norm: str | None = None,
                 relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=norm is None)
        if norm is not None:
            groups = gcd(32, out_channels)
            self.add_module(norm, nn.BatchNorm2d(out_channels) if norm == "bn" else nn.GroupNorm(groups, out_channels))
        self.norm_name, self.relu = norm, relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm_name:
            x = getattr(self, self.norm_name)(x)
        return x.relu() if self.relu else x


def init_normal(module: nn.Conv2d | nn.Linear, std: float = 0.01, bias: float = 0.0) -> None:
    """Gaussian weights and a constant bias for a prediction layer."""
    nn.init.normal_(module.weight, 0, std)
    if module.bias is not None:
        nn.init.constant_(module.bias, bias)
