"""Convolution + norm + activation, named as published checkpoints name it: `conv`, then `bn` or `gn`."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
Conv = Callable[..., nn.Conv2d]  # `nn.Conv2d` or one that takes its arguments
GROUPS = 32  # of group normalisation; layers too narrow for as many have groups of NARROW channels
NARROW = 8


def make_norm(norm: str, channels: int) -> nn.Module:
    """Batch norm ("bn") or group norm ("gn") of so many channels.

    Groups have two channels at least: the norm of a single one would take its mean over the map away.
    """
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(GROUPS if channels >= 2 * GROUPS else max(channels // NARROW, 1), channels)


class ConvBlock(nn.Module):
    """Convolution, then a norm if one is given, then an activation.

    Args:
        padding: in cells; None: half the kernel, which keeps the size.
        norm: "bn", "gn" (see `make_norm`) or None. act: what ends the block, None for nothing.
        conv: the kind of convolution; groups: its own, as many as channels make it depthwise.
        bias: whether it has one; None: where there is no norm.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1,
                 padding: int | None = None, norm: str | None = None, bias: bool | None = None, groups: int = 1,
                 act: Activation | None = torch.relu, conv: Conv = nn.Conv2d):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride, kernel // 2 if padding is None else padding,
                         groups=groups, bias=norm is None if bias is None else bias)
        if norm is not None:
            self.add_module(norm, make_norm(norm, out_channels))
        self.norm_name, self.act = norm, act

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] to [N, out_channels, h, w]."""
        x = self.conv(x)
        if self.norm_name:
            x = getattr(self, self.norm_name)(x)
        return self.act(x) if self.act else x


Block = Callable[..., nn.Module]  # `ConvBlock`, or a partial of it that sets norm or convolution
