"""Hourglass network: Newell et al., "Stacked hourglass networks for human pose estimation", 2016, as CornerNet uses it.

An hourglass halves a map several times, then doubles it back, adding at every size what it had there on the way down.
So each place of a fine map knows the whole image. A second hourglass refines what the first one found.
"""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import BasicBlock, init_backbone
from detcore.layers.conv import ConvBlock

CHANNELS = (256, 256, 384, 384, 384, 512)
BLOCKS = (2, 2, 2, 2, 2, 4)


def blocks(*channels: int, stride: int = 1) -> nn.Sequential:
    """Residual blocks from one number of channels to the next; the first one has the stride."""
    return nn.Sequential(*[BasicBlock(a, b, 1 if i else stride) for i, (a, b) in enumerate(pairwise(channels))])


class HourglassModule(nn.Module):
    """One size of an hourglass, with all smaller ones inside it; channels and residual blocks (`numbers`) of each."""

    def __init__(self, channels: Sequence[int], numbers: Sequence[int]):
        super().__init__()
        (here, below, *_), (number, number_below, *_) = channels, numbers
        self.up1 = blocks(here, *[here] * number)
        self.low1 = blocks(here, *[below] * number, stride=2)
        self.low2 = (HourglassModule(channels[1:], numbers[1:]) if len(channels) > 2
                     else blocks(below, *[below] * number_below))
        self.low3 = blocks(*[below] * number, here)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to the same shape."""
        up = self.up1(x)
        return up + F.interpolate(self.low3(self.low2(self.low1(x))), size=up.shape[2:])


class Hourglass(nn.Module):
    """Hourglass-104: two hourglasses over a map of a quarter of the image's size.

    Args:
        channels, numbers: channels and residual blocks of each size, the largest first.
        stacks: hourglasses, one after the other. stem: channels of the first convolution.
    """

    def __init__(self, channels: Sequence[int] = CHANNELS, numbers: Sequence[int] = BLOCKS, *, stacks: int = 2,
                 stem: int = 128):
        super().__init__()
        width = channels[0]
        self.channels = (width,) * stacks
        self.stem = nn.Sequential(ConvBlock(3, stem, 7, stride=2, norm="bn"), blocks(stem, width, stride=2))
        self.hourglass_modules = nn.ModuleList([HourglassModule(channels, numbers) for _ in range(stacks)])
        self.inters = nn.ModuleList([BasicBlock(width, width) for _ in range(stacks - 1)])
        self.conv1x1s = nn.ModuleList([ConvBlock(width, width, 1, norm="bn", act=None) for _ in range(stacks - 1)])
        self.out_convs = nn.ModuleList([ConvBlock(width, width, 3, norm="bn") for _ in range(stacks)])
        self.remap_convs = nn.ModuleList([ConvBlock(width, width, 1, norm="bn", act=None) for _ in range(stacks - 1)])
        init_backbone(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """A map [N, C, H / 4, W / 4] of each hourglass."""
        inter, out = self.stem(x), []
        for i, module in enumerate(self.hourglass_modules):
            out.append(self.out_convs[i](module(inter)))
            if i < len(self.inters):
                inter = self.inters[i]((self.conv1x1s[i](inter) + self.remap_convs[i](out[-1])).relu())
        return tuple(out)
