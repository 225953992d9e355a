"""EfficientNet: Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019.

A small network found by search (B0) is made larger in all directions at once: depth, width and resolution grow by
fixed powers, instead of one of them alone. Its blocks are MobileNetV2's inverted residuals, in which squeeze and
excitation (Hu et al. 2018) weighs every channel by what the whole map holds. In training, stochastic depth (Huang et
al. 2016) leaves out a block now and then, deeper ones more often.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.mobilenet import InvertedResidual
from detcore.backbones.stages import stage_maps
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_weights, kaiming_normal, set_batch_norm

STEM = 32
SQUEEZE = 4  # squeeze and excitation narrows a block's input by this
EPS, MOMENTUM = 1e-3, 0.01  # of batch norm
DROP = 0.2  # how often stochastic depth leaves out the last block


class MBConvStage(NamedTuple):
    """A row of table 1: how much its blocks widen, their kernel, channels and number, the first one's stride."""

    widen: int
    kernel: int
    channels: int
    blocks: int
    stride: int


STAGES = tuple(MBConvStage(*row) for row in (
    (1, 3, 16, 1, 1), (6, 3, 24, 2, 2), (6, 5, 40, 2, 2), (6, 3, 80, 3, 2), (6, 5, 112, 3, 1), (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1)))


class Scaling(NamedTuple):
    """Compound scaling: by how much the channels and the number of blocks grow (equation 3)."""

    width: float
    depth: float

    def channels(self, number: int) -> int:
        """Channels, rounded to multiples of 8, at most a tenth less."""
        scaled = number * self.width
        rounded = max(8, int(scaled + 4) // 8 * 8)
        return rounded if rounded >= 0.9 * scaled else rounded + 8

    def blocks(self, number: int) -> int:
        """Blocks of a stage."""
        return math.ceil(number * self.depth)


B3 = Scaling(width=1.2, depth=1.4)


class SameConv2d(nn.Conv2d):
    """A convolution that gives ceil(size / stride) cells: pads as little as that takes, the odd cell after the map."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0,
                 **options: Any):
        super().__init__(in_channels, out_channels, kernel, stride, 0, **options)

    def forward(self, x: Tensor) -> Tensor:
        (top, bottom), (left, right) = map(self.pads, x.shape[2:], self.kernel_size, self.stride)
        return super().forward(F.pad(x, (left, right, top, bottom)))

    @staticmethod
    def pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
        """Cells before and after a side."""
        needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return needed // 2, needed - needed // 2


class SqueezeExcitation(nn.Module):
    """Each channel times a weight in 0..1, which two layers tell from the mean of all channels."""

    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.conv1 = ConvBlock(channels, squeezed, 1, act=F.silu)
        self.conv2 = ConvBlock(squeezed, channels, 1, act=torch.sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))


class MBConv(InvertedResidual):
    """MobileNetV2's block, in which the channels are weighed; left out with probability `drop`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, widen: int, drop: float):
        squeeze = SqueezeExcitation(in_channels * widen, in_channels // SQUEEZE)
        super().__init__(in_channels, out_channels, stride, widen, F.silu, kernel=kernel, conv=SameConv2d,
                         squeeze=squeeze, drop=drop)


class EfficientNet(nn.Module):
    """A stem and layers of blocks; a stage that keeps the size of its map belongs to the layer before it.

    Args:
        scaling: of B0's stages and stem. out_layers: which layers' maps to return, 0 being the stem's.
        drop: stochastic depth grows linearly from 0 at the first block towards this.
        stages, stem: of the network before scaling; others make a slim network.
    """

    def __init__(self, scaling: Scaling = B3, *, out_layers: Sequence[int] = (3, 4, 5), drop: float = DROP,
                 stages: Sequence[MBConvStage] = STAGES, stem: int = STEM):
        super().__init__()
        self.out_layers = tuple(out_layers)
        channels = scaling.channels(stem)
        layers: list[list[nn.Module]] = [[
            ConvBlock(3, channels, 3, stride=2, norm="bn", act=F.silu, conv=SameConv2d)]]
        widths = [channels]
        total = sum(scaling.blocks(s.blocks) for s in stages)
        drops = iter([drop * i / (total - 1) for i in range(total)])
        for stage in stages:
            if stage.stride > 1 or len(layers) == 1:
                layers.append([])
                widths.append(0)
            widths[-1] = scaling.channels(stage.channels)
            for stride in (stage.stride, *[1] * (scaling.blocks(stage.blocks) - 1)):
                layers[-1].append(MBConv(channels, widths[-1], stage.kernel, stride, stage.widen, next(drops)))
                channels = widths[-1]
        self.layers = nn.ModuleList([layers[0][0], *(nn.Sequential(*blocks) for blocks in layers[1:])])
        self.channels = tuple(widths[i] for i in self.out_layers)
        init_weights(self, kaiming_normal)
        set_batch_norm(self, EPS, MOMENTUM)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [N, channels[i], H / s, W / s], rounded up, of `out_layers`; of all layers s = 2, 2, 4, 8, 16, 32."""
        return stage_maps(x, self.layers, self.out_layers)
