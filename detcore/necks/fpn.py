"""Feature pyramid network (Lin et al. 2017): a top-down path gives every level the meaning of the deepest."""
from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from detcore.layers.conv import Block, ConvBlock
from detcore.layers.init import init_weights


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest-neighbour top-down sums, 3x3 output convolutions, and coarser extra levels.

    Args:
        in_channels: channels of each backbone map, finest first.
        width: channels of every level. levels: number of levels given. start: first backbone map used.
        extra: how levels beyond the backbone's are made: "pool" (stride-2 subsampling, for RPN), "input" (stride-2
            convolution of the last backbone map, RetinaNet) or "output" (of the last level, FCOS).
        relu_extra: ReLU before the second and later extra convolutions.
        block: the convolutions, `ConvBlock` or a partial of it with a norm; lateral: those of another kind.
    """

    def __init__(self, in_channels: Sequence[int], width: int = 256, levels: int = 5, *, start: int = 0,
                 extra: str = "pool", relu_extra: bool = False, block: Block = ConvBlock, lateral: Block | None = None):
        super().__init__()
        self.levels, self.start, self.extra, self.relu_extra = levels, start, extra, relu_extra
        used = list(in_channels[start:])
        self.lateral_convs = nn.ModuleList([(lateral or block)(c, width, 1, act=None) for c in used])
        self.fpn_convs = nn.ModuleList([block(width, width, 3, act=None) for _ in used])
        if extra != "pool":
            for i in range(levels - len(used)):
                source = used[-1] if extra == "input" and i == 0 else width
                self.fpn_convs.append(block(source, width, 3, stride=2, act=None))
        init_weights(self, nn.init.xavier_uniform_)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`levels` maps [N, width, h, w], finest first."""
        lateral = [conv(x) for conv, x in zip(self.lateral_convs, maps[self.start:])]
        for i in range(len(lateral) - 1, 0, -1):
            lateral[i - 1] = lateral[i - 1] + F.interpolate(lateral[i], size=lateral[i - 1].shape[2:], mode="nearest")
        out = [conv(x) for conv, x in zip(self.fpn_convs, lateral)]
        if self.extra == "pool":
            while len(out) < self.levels:
                out.append(F.max_pool2d(out[-1], 1, 2))
            return tuple(out)
        source = maps[-1] if self.extra == "input" else out[-1]
        for i, conv in enumerate(self.fpn_convs[len(lateral):]):
            source = conv(source.relu() if self.relu_extra and i > 0 else source)
            out.append(source)
        return tuple(out)
