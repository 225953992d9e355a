"""Darknet-53: Redmon & Farhadi, "YOLOv3: an incremental improvement", 2018, section 2.4.

Residual blocks of a 1x1 convolution that halves the channels and a 3x3 one that restores them. Strided convolutions
halve the map between the stages; there is no pooling.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.stages import FixedStatistics, stage_maps
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_weights, kaiming_normal

STEM = 32
STAGE_BLOCKS = (1, 2, 8, 8, 4)  # table 1
leaky = partial(F.leaky_relu, negative_slope=0.1)
leaky_block = partial(ConvBlock, norm="bn", act=leaky)


class DarknetBlock(nn.Module):
    """Halve the channels, restore them, add."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = leaky_block(channels, channels // 2, 1)
        self.conv2 = leaky_block(channels // 2, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.conv1(x))


class Darknet(FixedStatistics):
    """A stem and stages; each stage halves the map, doubles the channels, then has its residual blocks.

    Args:
        blocks: of each stage. stem: channels of the stem; 32 is published, fewer make a slim network.
        out_stages: which stages' maps to return, 0 being the first stage's.
        norm_eval: keep batch norm's statistics as loaded while training.
    """

    def __init__(self, blocks: Sequence[int] = STAGE_BLOCKS, *, stem: int = STEM,
                 out_stages: Sequence[int] = (2, 3, 4), norm_eval: bool = True):
        super().__init__()
        self.out_stages, self.norm_eval = tuple(out_stages), norm_eval
        self.stages = [f"conv_res_block{i + 1}" for i in range(len(blocks))]
        self.conv1 = leaky_block(3, stem, 3)
        for i, (name, count) in enumerate(zip(self.stages, blocks)):
            width = stem * 2**i
            stage = nn.Sequential()
            stage.add_module("conv", leaky_block(width, 2 * width, 3, stride=2))
            for j in range(count):
                stage.add_module(f"res{j}", DarknetBlock(2 * width))
            self.add_module(name, stage)
        self.channels = tuple(stem * 2 ** (i + 1) for i in self.out_stages)
        init_weights(self, kaiming_normal)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [N, channels[i], H / s, W / s] of `out_stages`; of all stages s = 2, 4, 8, 16, 32."""
        return stage_maps(self.conv1(x), [getattr(self, name) for name in self.stages], self.out_stages)
