"""RegNetX: Radosavovic et al., "Designing network design spaces", 2020.

A search over whole populations of networks ends in a rule of four numbers: block widths grow linearly with depth,
rounded to powers of a ratio, so that equal widths form the stages. All that is published of a RegNet are those
numbers and the width of its groups; the widths and depths of its stages follow.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from detcore.backbones.resnet import Bottleneck, Residual
from detcore.layers.conv import Conv

STEM = 32


class Design(NamedTuple):
    """A RegNet: first width w_0, slope w_a, ratio w_m, number of blocks and channels of a group (section 3.3)."""

    first: int
    slope: float
    ratio: float
    blocks: int
    group: int


DESIGNS = {
    "400MF": Design(24, 24.48, 2.54, 22, 16),
    "800MF": Design(56, 35.73, 2.28, 16, 16),
    "1.6GF": Design(80, 34.01, 2.25, 18, 24),
    "3.2GF": Design(88, 26.31, 2.25, 25, 48),
    "4GF": Design(96, 38.65, 2.43, 23, 40),
    "6.4GF": Design(184, 60.83, 2.07, 17, 56),
    "8GF": Design(80, 49.56, 2.88, 23, 120),
    "12GF": Design(168, 73.36, 2.37, 19, 112),
}


def stages(design: Design) -> list[tuple[int, int, int]]:
    """Width, number of blocks and width of a group of each stage (equations 2 to 4)."""
    linear = design.first + design.slope * np.arange(design.blocks)
    powers = np.round(np.log(linear / design.first) / np.log(design.ratio))
    widths, counts = np.unique(np.round(design.first * design.ratio**powers / 8) * 8, return_counts=True)
    out = []
    for width, count in zip(widths.astype(int).tolist(), counts.tolist()):
        group = min(design.group, width)
        out.append((round(width / group) * group, count, group))  # the groups must divide the width
    return out


class XBlock(Bottleneck):
    """The X block: a bottleneck that does not narrow, with a grouped 3x3 convolution (figure 3)."""

    expansion = 1


class RegNet(Residual):
    """A stem of one convolution, and four stages of X blocks, each of which halves the map.

    Args:
        design: a name of `DESIGNS`, or a design. stem: channels of the stem.
        out_stages, frozen_stages, norm_eval, deform, deform_stages: as in `ResNet`.
    """

    def __init__(self, design: str | Design, *, stem: int = STEM, out_stages: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = 1, norm_eval: bool = True, deform: Conv | None = None,
                 deform_stages: Sequence[int] = (1, 2, 3)):
        made, channels = [], stem
        for i, (width, blocks, group) in enumerate(stages(DESIGNS[design] if isinstance(design, str) else design)):
            options: dict[str, Any] = dict(groups=width // group, deform=deform if i in deform_stages else None)
            first = XBlock(channels, width, 2, **options)
            made.append((nn.Sequential(first, *(XBlock(width, width, **options) for _ in range(blocks - 1))), width))
            channels = width
        convolution = nn.Conv2d(3, stem, 3, 2, 1, bias=False)
        super().__init__(convolution, "bn", made, out_stages, frozen_stages, norm_eval, norm_fixed=False)
