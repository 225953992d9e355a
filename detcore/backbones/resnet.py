"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017).

Two styles of the bottleneck are published: "pytorch" strides in the 3x3 convolution, "caffe" in the first 1x1.
Detectors keep batch norm's statistics frozen, and the stem and first stage fixed.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from detcore.backbones.stages import FixedStatistics, stage_maps
from detcore.layers.conv import Conv, make_norm
from detcore.layers.init import init_weights, kaiming_normal

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResidualBlock(nn.Module):
    """Convolutions, each with a norm, and a shortcut past them all.

    Published checkpoints call the layers `conv1`, `bn1` (or `gn1`), `conv2` and so on, the shortcut `downsample`.
    """

    def __init__(self, convs: Sequence[nn.Conv2d], stride: int, norm: str, conv: Conv):
        super().__init__()
        self.names = [(f"conv{i + 1}", f"{norm}{i + 1}") for i in range(len(convs))]
        for (conv_name, norm_name), layer in zip(self.names, convs):
            self.add_module(conv_name, layer)
            self.add_module(norm_name, make_norm(norm, layer.out_channels))
        inside, outside = convs[0].in_channels, convs[-1].out_channels
        self.downsample = None if stride == 1 and inside == outside else nn.Sequential(
            conv(inside, outside, 1, stride, bias=False), make_norm(norm, outside))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for i, (conv, norm) in enumerate(self.names):
            out = getattr(self, norm)(getattr(self, conv)(out.relu() if i else out))
        return (out + (self.downsample(x) if self.downsample else x)).relu()


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions with a shortcut; options as in `Bottleneck`."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, *, caffe: bool = False,
                 groups: int = 1, base_width: int = 64, norm: str = "bn", conv: Conv = nn.Conv2d,
                 deform: Conv | None = None):
        convs = [conv(in_channels, width, 3, stride, dilation, dilation, bias=False),
                 (deform or conv)(width, width, 3, 1, 1, bias=False)]
        super().__init__(convs, stride, norm, conv)


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (grouped in ResNeXt), 1x1 convolutions with a shortcut.

    Args:
        width: channels of the block's last convolution over `expansion`. groups, base_width: of ResNeXt.
        caffe: stride in the first convolution, not in the second.
        norm: "bn" or "gn". conv: the kind of convolution; deform: that of the 3x3 one, where it differs.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, *, caffe: bool = False,
                 groups: int = 1, base_width: int = 64, norm: str = "bn", conv: Conv = nn.Conv2d,
                 deform: Conv | None = None):
        # The blocks of RegNet, of expansion 1, have groups but are as wide inside as outside.
        inner = width if groups == 1 or self.expansion == 1 else int(width * base_width / 64) * groups
        s1, s2 = (stride, 1) if caffe else (1, stride)
        convs = [conv(in_channels, inner, 1, s1, bias=False),
                 (deform or conv)(inner, inner, 3, s2, dilation, dilation, groups, bias=False),
                 conv(inner, width * self.expansion, 1, bias=False)]
        super().__init__(convs, stride, norm, conv)


def stage(depth: int, index: int, *, base_channels: int = 64, stride: int | None = None, dilation: int = 1,
          **options: Any) -> tuple[nn.Sequential, int]:
    """Stage `index` (0 to 3) of a ResNet, and its number of output channels; options as in `Bottleneck`."""
    block = BasicBlock if depth < 50 else Bottleneck
    width = base_channels * 2**index
    out_channels = width * block.expansion
    in_channels = base_channels if index == 0 else out_channels // 2
    stride = (1 if index == 0 else 2) if stride is None else stride
    return nn.Sequential(*(block(out_channels if i else in_channels, width, 1 if i else stride, dilation, **options)
                           for i in range(STAGE_BLOCKS[depth][index]))), out_channels


class Residual(FixedStatistics):
    """What residual networks share: a stem, stages `layer1` to `layer4`, and what of them is fixed.

    Args:
        stem: its convolution; stages: each with its number of channels. Others as in `ResNet`.
    """

    def __init__(self, stem: nn.Conv2d, norm: str, stages: Sequence[tuple[nn.Module, int]], out_stages: Sequence[int],
                 frozen_stages: int, norm_eval: bool, norm_fixed: bool):
        super().__init__()
        self.out_stages, self.frozen_stages, self.norm_eval = tuple(out_stages), frozen_stages, norm_eval
        self.conv1, self.norm, self.stages = stem, f"{norm}1", [f"layer{i + 1}" for i in range(len(stages))]
        self.add_module(self.norm, make_norm(norm, stem.out_channels))
        for name, (stage, _) in zip(self.stages, stages):
            self.add_module(name, stage)
        self.channels = tuple(stages[i][1] for i in self.out_stages)
        init_backbone(self, norm_fixed)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        stem = [self.conv1, getattr(self, self.norm)] if self.frozen_stages >= 0 else []
        return stem + [getattr(self, name) for name in self.stages[:max(self.frozen_stages, 0)]]

    def stem(self, x: Tensor) -> Tensor:
        """What comes before the stages."""
        return getattr(self, self.norm)(self.conv1(x)).relu()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [N, channels[i], H / s, W / s] of the stages in `out_stages`, s = 4, 8, 16, 32 unless dilated."""
        return stage_maps(self.stem(x), [getattr(self, name) for name in self.stages], self.out_stages)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self


class ResNet(Residual):
    """Stem and up to four stages; gives the stages asked for.

    Args:
        depth: 18, 34, 50 or 101. style: "pytorch" or "caffe". groups, base_width: 32 and 4 make ResNeXt 32x4d.
        base_channels: channels of the stem; 64 is published, fewer make a slim network.
        out_stages: which stages' maps to return.
        strides, dilations: of each stage; fewer than four entries leave the later stages out.
        frozen_stages: stages whose parameters stay fixed, counted after the stem; -1 trains the stem too.
        norm_eval: keep batch norm's statistics as loaded while training.
        norm_fixed: keep its scale and shift too; None: in caffe style, whose weights were converted that way.
        norm: "bn" or "gn". conv: the kind of convolution everywhere.
        deform: the kind of the 3x3 convolutions in `deform_stages`; None: as all.
    """

    def __init__(self, depth: int, *, style: str = "pytorch", groups: int = 1, base_width: int = 64,
                 base_channels: int = 64, out_stages: Sequence[int] = (0, 1, 2, 3),
                 strides: Sequence[int] = (1, 2, 2, 2), dilations: Sequence[int] = (1, 1, 1, 1),
                 frozen_stages: int = 1, norm_eval: bool = True, norm_fixed: bool | None = None, norm: str = "bn",
                 conv: Conv = nn.Conv2d, deform: Conv | None = None, deform_stages: Sequence[int] = (1, 2, 3)):
        caffe = style == "caffe"
        stages = [
            stage(depth, i, base_channels=base_channels, stride=stride, dilation=dilation, caffe=caffe, groups=groups,
                  base_width=base_width, norm=norm, conv=conv, deform=deform if i in deform_stages else None)
            for i, (stride, dilation) in enumerate(zip(strides, dilations))]
        super().__init__(conv(3, base_channels, 7, 2, 3, bias=False), norm, stages, out_stages, frozen_stages,
                         norm_eval, caffe if norm_fixed is None else norm_fixed)
        self.depth, self.base_channels = depth, base_channels

    def stem(self, x: Tensor) -> Tensor:
        """[N, base_channels, H / 4, W / 4]."""
        return torch.max_pool2d(super().stem(x), 3, 2, 1)


def init_backbone(network: nn.Module, norm_fixed: bool = False) -> None:
    """Initial weights; `norm_fixed` keeps batch norm's scale and shift from training."""
    init_weights(network, kaiming_normal)
    for module in network.modules():
        if callable(reset := getattr(module, "reset_offsets", None)):  # a deformable convolution starts rigid
            reset()
        elif isinstance(module, nn.BatchNorm2d) and norm_fixed:
            module.requires_grad_(False)


def resnext(depth: int, groups: int, base_width: int, **options) -> ResNet:
    """ResNeXt, for example (101, 64, 4) for ResNeXt-101 64x4d."""
    return ResNet(depth, groups=groups, base_width=base_width, **options)


def resnet_c4(depth: int = 50, *, style: str = "caffe", **options) -> ResNet:
    """The first three stages, map of stride 16; the fourth stage becomes the head of each region."""
    return ResNet(depth, style=style, strides=(1, 2, 2), dilations=(1, 1, 1), out_stages=(2,), **options)


def resnet_dc5(depth: int = 50, *, style: str = "caffe", **options) -> ResNet:
    """All stages with the last one dilated instead of strided, map of stride 16."""
    return ResNet(depth, style=style, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_stages=(3,), **options)


class ResStage(FixedStatistics):
    """The last stage of a ResNet, run on every region: the head of C4 detectors (He et al. 2016, appendix A)."""

    def __init__(self, depth: int = 50, *, base_channels: int = 64, caffe: bool = True):
        super().__init__()
        self.layer4, self.channels = stage(depth, 3, base_channels=base_channels, caffe=caffe)
        init_backbone(self, norm_fixed=caffe)

    def forward(self, x: Tensor) -> Tensor:
        """[r, channels, s / 2, s / 2] of region maps [r, C, s, s]."""
        return self.layer4(x)
