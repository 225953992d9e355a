"""Convolution + norm + activation, named as published checkpoints name it: `conv`, then `bn` or `gn`."""
from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Conv = Callable[..., nn.Conv2d]  # `nn.Conv2d` or one that takes its arguments
GROUPS = 32  # of group normalisation; layers too narrow for as many have groups of NARROW channels
NARROW = 8


def make_norm(norm: str, channels: int) -> nn.Module:
    """Batch norm ("bn") or group norm ("gn"), whose groups have two channels at least, or they would forget what is
    common to a whole map."""
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(GROUPS if channels >= 2 * GROUPS else max(channels // NARROW, 1), channels)


class ConvBlock(nn.Module):
    """Convolution, then a norm if one is given, then ReLU unless turned off.

    Args:
        norm: "bn", "gn" (see `make_norm`) or None; a convolution that is followed by a norm has no bias.
        relu: whether a ReLU ends the block.
        conv: the kind of convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, norm: str | None = None,
                 relu: bool = True, conv: Conv = nn.Conv2d):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel, stride, kernel // 2, bias=norm is None)
        if norm is not None:
            self.add_module(norm, make_norm(norm, out_channels))
        self.norm_name, self.relu = norm, relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm_name:
            x = getattr(self, self.norm_name)(x)
        return x.relu() if self.relu else x


Block = Callable[..., nn.Module]  # `ConvBlock`, or a partial of it that sets norm or convolution


def init_normal(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear, std: float = 0.01, bias: float = 0.0) -> None:
    """Gaussian weights and a constant bias for a prediction layer."""
    nn.init.normal_(module.weight, 0, std)
    if module.bias is not None:
        nn.init.constant_(module.bias, bias)


def init_convolutions(network: nn.Module) -> None:
    """He et al.'s initialisation of all convolutions; biases are zero."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
