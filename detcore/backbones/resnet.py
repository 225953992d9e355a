"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017).

Two styles of the bottleneck are published: "pytorch" strides in the 3x3 convolution, "caffe" in the first 1x1.
Detectors keep batch norm's statistics frozen, and the stem and first stage fixed.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detcore.layers.conv import Conv, make_norm
from detcore.layers.init import freeze_norm_statistics, init_weights, kaiming_normal

STAGE_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResidualBlock(nn.Module):
    """What the residual blocks share: their norms are called `bn1` or `gn1`, and so on."""

    def __init__(self, norm: str):
        super().__init__()
        self.norm = norm

    def add_norm(self, index: int, channels: int) -> None:
        self.add_module(f"{self.norm}{index}", make_norm(self.norm, channels))

    def normalize(self, index: int, x: Tensor) -> Tensor:
        return getattr(self, f"{self.norm}{index}")(x)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions with a shortcut; options as in `Bottleneck`."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, *, caffe: bool = False,
                 groups: int = 1, base_width: int = 64, norm: str = "bn", conv: Conv = nn.Conv2d,
                 deform: Conv | None = None):
        super().__init__(norm)
        self.conv1 = conv(in_channels, width, 3, stride, dilation, dilation, bias=False)
        self.add_norm(1, width)
        self.conv2 = (deform or conv)(width, width, 3, 1, 1, bias=False)
        self.add_norm(2, width)
        self.downsample = _shortcut(in_channels, width, stride, norm, conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.normalize(2, self.conv2(self.normalize(1, self.conv1(x)).relu()))
        return (out + (self.downsample(x) if self.downsample else x)).relu()


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (grouped in ResNeXt), 1x1 convolutions with a shortcut.

    Args:
        width: channels of the block's last convolution over `expansion`.
        caffe: stride in the first convolution, not in the second.
        groups, base_width: of ResNeXt.
        norm: "bn" or "gn". conv: the kind of convolution; deform: that of the 3x3 one, where it differs.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1, dilation: int = 1, *, caffe: bool = False,
                 groups: int = 1, base_width: int = 64, norm: str = "bn", conv: Conv = nn.Conv2d,
                 deform: Conv | None = None):
        super().__init__(norm)
        # The blocks of RegNet, of expansion 1, have groups but are as wide inside as outside.
        inner = width if groups == 1 or self.expansion == 1 else int(width * base_width / 64) * groups
        out_channels = width * self.expansion
        s1, s2 = (stride, 1) if caffe else (1, stride)
        self.conv1 = conv(in_channels, inner, 1, s1, bias=False)
        self.add_norm(1, inner)
        self.conv2 = (deform or conv)(inner, inner, 3, s2, dilation, dilation, groups, bias=False)
        self.add_norm(2, inner)
        self.conv3 = conv(inner, out_channels, 1, bias=False)
        self.add_norm(3, out_channels)
        self.downsample = _shortcut(in_channels, out_channels, stride, norm, conv)

    def forward(self, x: Tensor) -> Tensor:
        out = self.normalize(1, self.conv1(x)).relu()
        out = self.normalize(2, self.conv2(out)).relu()
        out = self.normalize(3, self.conv3(out))
        return (out + (self.downsample(x) if self.downsample else x)).relu()


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: str, conv: Conv) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride, bias=False), make_norm(norm, out_channels))


def stage(depth: int, index: int, *, base_channels: int = 64, stride: int | None = None, dilation: int = 1,
          **options: Any) -> tuple[nn.Sequential, int]:
    """Stage `index` (0 to 3) of a ResNet, and its number of output channels; options as in `Bottleneck`."""
    block = BasicBlock if depth < 50 else Bottleneck
    width = base_channels * 2**index
    in_channels = base_channels if index == 0 else width // 2 * block.expansion
    stride = (1 if index == 0 else 2) if stride is None else stride
    blocks = [block(in_channels, width, stride, dilation, **options)]
    for _ in range(STAGE_BLOCKS[depth][index] - 1):
        blocks.append(block(width * block.expansion, width, 1, dilation, **options))
    return nn.Sequential(*blocks), width * block.expansion


class Residual(nn.Module):
    """What residual networks share: a stem, stages `layer1` to `layer4`, and what of them is fixed.

    Attributes:
        channels: of the maps that are given.
    """

    def assemble(self, stem: nn.Conv2d, norm: str, stages: Sequence[tuple[nn.Module, int]], out_stages: Sequence[int],
                 frozen_stages: int, norm_eval: bool, norm_fixed: bool) -> None:
        """Set the parts: the stem's convolution, and the stages, each with its number of channels."""
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
        x, out = self.stem(x), []
        for i, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if i in self.out_stages:
                out.append(x)
        return tuple(out)

    def train(self, mode: bool = True) -> Residual:
        super().train(mode)
        if mode and self.norm_eval:
            freeze_norm_statistics(self)
        for module in self._frozen():
            module.eval()
        return self


class ResNet(Residual):
    """Stem and up to four stages; gives the stages asked for.

    Args:
        depth: 18, 34, 50 or 101.
        style: "pytorch" or "caffe".
        groups, base_width: 32 and 4 make ResNeXt 32x4d.
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
        super().__init__()
        self.depth, self.style, self.groups, self.base_width = depth, style, groups, base_width
        self.base_channels = base_channels
        caffe = style == "caffe"
        stages = [
            stage(depth, i, base_channels=base_channels, stride=stride, dilation=dilation, caffe=caffe, groups=groups,
                  base_width=base_width, norm=norm, conv=conv, deform=deform if i in deform_stages else None)
            for i, (stride, dilation) in enumerate(zip(strides, dilations))]
        self.assemble(conv(3, base_channels, 7, 2, 3, bias=False), norm, stages, out_stages, frozen_stages, norm_eval,
                      caffe if norm_fixed is None else norm_fixed)

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


class ResStage(nn.Module):
    """The last stage of a ResNet, run on every region: the head of C4 detectors (He et al. 2016, appendix A).

    Attributes:
        channels: of the maps that it gives.
    """

    def __init__(self, depth: int = 50, *, base_channels: int = 64, caffe: bool = True):
        super().__init__()
        self.layer4, self.channels = stage(depth, 3, base_channels=base_channels, caffe=caffe)
        init_backbone(self, norm_fixed=caffe)

    def forward(self, x: Tensor) -> Tensor:
        """[r, channels, s / 2, s / 2] of region maps [r, C, s, s]."""
        return self.layer4(x)

    def train(self, mode: bool = True) -> ResStage:
        super().train(mode)
        if mode:
            freeze_norm_statistics(self)
        return self
