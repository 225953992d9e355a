"""MobileNetV2: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.

A residual block usually narrows, convolves and widens again. Here it is the other way round: the shortcut joins narrow
maps, between which the block widens six times and convolves each channel by itself, which costs little. The last
convolution of a block has no activation, because a ReLU would lose too much of what a narrow map holds.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from detcore.backbones.stages import stage_maps
from detcore.layers.conv import Activation, Conv, ConvBlock
from detcore.layers.init import init_weights, kaiming_normal, set_batch_norm


class Stage(NamedTuple):
    """A row of table 2: how much blocks widen (t), their channels (c) and number (n), the first one's stride (s)."""

    widen: int
    channels: int
    blocks: int
    stride: int


STAGES = (Stage(1, 16, 1, 1), Stage(6, 24, 2, 2), Stage(6, 32, 3, 2), Stage(6, 64, 4, 2), Stage(6, 96, 3, 1),
          Stage(6, 160, 3, 2), Stage(6, 320, 1, 1))
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, convolve each channel by itself, narrow linearly (figure 3b).

    Args:
        widen: how many times; act: activation of all convolutions but the last.
        kernel, conv: of each channel's convolution; squeeze: what follows it; drop: how often training omits the block.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, widen: int, act: Activation, *,
                 kernel: int = 3, conv: Conv = nn.Conv2d, squeeze: nn.Module | None = None, drop: float = 0.0):
        super().__init__()
        hidden = in_channels * widen
        self.shortcut = stride == 1 and in_channels == out_channels
        self.expand_conv = ConvBlock(in_channels, hidden, 1, norm="bn", act=act) if widen > 1 else None
        self.depthwise_conv = ConvBlock(hidden, hidden, kernel, stride=stride, norm="bn", groups=hidden, act=act,
                                        conv=conv)
        self.se = squeeze
        self.linear_conv = ConvBlock(hidden, out_channels, 1, norm="bn", act=None)
        self.drop = StochasticDepth(drop, "row")

    def forward(self, x: Tensor) -> Tensor:
        out = self.depthwise_conv(self.expand_conv(x) if self.expand_conv else x)
        out = self.linear_conv(self.se(out) if self.se else out)
        return x + self.drop(out) if self.shortcut else out


class MobileNetV2(nn.Module):
    """A stem, stages of inverted residuals, and a convolution; what lies behind the last map given stays fixed.

    Args:
        out_stages: which maps to return, 0 being the first stage's; the number of stages stands for the convolution.
        act: activation of all convolutions but a block's last.
        eps, momentum: of batch norm.
        stages, stem, last: the stages, channels of the stem and of the last convolution; others make a slim network.
    """

    def __init__(self, out_stages: Sequence[int] = (4, 7), *, act: Activation = F.relu6, eps: float = 1e-5,
                 momentum: float = 0.1, stages: Sequence[Stage] = STAGES, stem: int = STEM, last: int = LAST):
        super().__init__()
        self.out_stages, self.names = tuple(out_stages), [f"layer{i + 1}" for i in range(len(stages))] + ["conv2"]
        self.conv1, channels = ConvBlock(3, stem, 3, stride=2, norm="bn", act=act), stem
        for name, (widen, width, blocks, stride) in zip(self.names, stages):
            first = InvertedResidual(channels, width, stride, widen, act)
            rest = [InvertedResidual(width, width, 1, widen, act) for _ in range(blocks - 1)]
            self.add_module(name, nn.Sequential(first, *rest))
            channels = width
        self.conv2 = ConvBlock(channels, last, 1, norm="bn", act=act)
        self.channels = tuple((*(s.channels for s in stages), last)[i] for i in self.out_stages)
        init_weights(self, kaiming_normal)
        set_batch_norm(self, eps, momentum)
        for name in self.names[max(self.out_stages) + 1:]:
            getattr(self, name).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [N, channels[i], H / s, W / s] of `out_stages`; as published, s = 2, 4, 8, 16, 16, 32, 32, 32."""
        used = [getattr(self, name) for name in self.names[:max(self.out_stages) + 1]]
        return stage_maps(self.conv1(x), used, self.out_stages)
