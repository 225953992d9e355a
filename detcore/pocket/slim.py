"""The backbones of the pocket profile: the forms of the published ones with a fraction of their channels and blocks,
and weights made by `detcore pretrain`.

Each imports its network when it is built, so that a model depends on the code of its own backbone alone.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from detcore.backbones.resnet import ResNet, resnet_c4, resnet_dc5

if TYPE_CHECKING:
    from detcore.backbones.darknet import Darknet
    from detcore.backbones.efficientnet import EfficientNet
    from detcore.backbones.hourglass import Hourglass
    from detcore.backbones.mobilenet import MobileNetV2
    from detcore.backbones.regnet import RegNet
    from detcore.backbones.swin import Swin
    from detcore.backbones.vgg import SSDVGG


def slim_resnet(form: Callable[..., ResNet] = ResNet, **options: Any) -> ResNet:
    """ResNet-18 with 16 channels in its stem, nothing frozen; `form` is `ResNet`, `resnet_c4` or `resnet_dc5`."""
    return form(18, style="pytorch", base_channels=16, frozen_stages=-1, norm_eval=True, **options)


def slim_ws_resnet(**options: Any) -> ResNet:
    """The same with group norm and weight standardisation."""
    from detcore.methods.weight_standardization import WSConv2d

    return slim_resnet(norm="gn", conv=WSConv2d, **options)


def slim_regnet(**options: Any) -> RegNet:
    """A RegNetX of nine narrow blocks, nothing frozen."""
    from detcore.backbones.regnet import Design, RegNet

    design = Design(first=24, slope=16, ratio=2, blocks=9, group=8)
    return RegNet(design, stem=16, frozen_stages=-1, norm_eval=True, **options)


def slim_vgg() -> SSDVGG:
    """SSD's VGG-16 with an eighth of its channels."""
    from detcore.backbones.vgg import SSDVGG

    return SSDVGG(width=8)


def slim_mobilenet(out_stages: Sequence[int] = (4, 7), *, published_strides: bool = False,
                   **options: Any) -> MobileNetV2:
    """A MobileNetV2 of seven narrow blocks; options as its own.

    Without the published strides the fifth stage's map has stride 8, the last one 16: half of them, for small images.
    """
    from detcore.backbones.mobilenet import STAGES, MobileNetV2, Stage

    stages: tuple[Stage, ...] = (
        Stage(1, 8, 1, 1), Stage(4, 16, 1, 2), Stage(4, 24, 1, 2), Stage(4, 32, 1, 1), Stage(4, 48, 1, 1),
        Stage(4, 64, 1, 2), Stage(4, 96, 1, 1))
    if published_strides:
        stages = tuple(s._replace(stride=published.stride) for s, published in zip(stages, STAGES))
    return MobileNetV2(out_stages, stages=stages, stem=8, last=128, **options)


def slim_leaky_mobilenet() -> MobileNetV2:
    """The same with YOLOv3's activation and the published strides."""
    from detcore.backbones.darknet import leaky

    return slim_mobilenet((2, 4, 6), published_strides=True, act=leaky)


def slim_darknet() -> Darknet:
    """A Darknet of seven narrow blocks."""
    from detcore.backbones.darknet import Darknet

    return Darknet((1, 1, 2, 2, 1), stem=6)


def slim_efficientnet() -> EfficientNet:
    """An EfficientNet of eight narrow blocks, none of which is left out in training."""
    from detcore.backbones.efficientnet import EfficientNet, MBConvStage, Scaling

    stages = tuple(MBConvStage(*row) for row in (
        (1, 3, 8, 1, 1), (3, 3, 16, 1, 2), (3, 5, 24, 2, 2), (3, 3, 32, 1, 2), (3, 5, 48, 1, 1), (3, 5, 64, 1, 2),
        (3, 3, 96, 1, 1)))
    return EfficientNet(Scaling(1, 1), stages=stages, stem=16, drop=0.0)


def slim_hourglass() -> Hourglass:
    """Two hourglasses of two levels."""
    from detcore.backbones.hourglass import Hourglass

    return Hourglass((32, 32, 48), (1, 1, 1), stem=16)


def slim_swin() -> Swin:
    """A Swin Transformer of six narrow blocks with windows of 4 x 4."""
    from detcore.backbones.swin import Size, Swin

    return Swin(Size(24, (1, 1, 2, 2), (1, 2, 4, 8), 4), drop=0.0)


@dataclass(frozen=True)
class Slim:
    """A backbone of the pocket profile.

    Attributes:
        build: makes the network.
        file: its weights.
    """

    build: Callable[..., nn.Module]
    file: Path


def _slim(file: str, build: Callable[..., nn.Module]) -> Slim:
    return Slim(build, Path(__file__).with_name(f"{file}.safetensors"))


SLIM = _slim("backbone", slim_resnet)
SLIM_C4, SLIM_DC5 = (Slim(partial(slim_resnet, form), SLIM.file) for form in (resnet_c4, resnet_dc5))
SLIM_GN = _slim("backbone_gn", partial(slim_resnet, norm="gn"))
SLIM_WS = _slim("backbone_ws", slim_ws_resnet)
SLIM_REGNET = _slim("backbone_regnet", slim_regnet)
SLIM_VGG = _slim("backbone_vgg", slim_vgg)
SLIM_MOBILENET = _slim("backbone_mobilenet", slim_mobilenet)
SLIM_MOBILENET_LEAKY = _slim("backbone_mobilenet", slim_leaky_mobilenet)
SLIM_DARKNET = _slim("backbone_darknet", slim_darknet)
SLIM_EFFICIENTNET = _slim("backbone_efficientnet", slim_efficientnet)
SLIM_HOURGLASS = _slim("backbone_hourglass", slim_hourglass)
SLIM_SWIN = _slim("backbone_swin", slim_swin)
# What `detcore pretrain` can make.
SLIMS = {"resnet": SLIM, "gn": SLIM_GN, "ws": SLIM_WS, "regnet": SLIM_REGNET, "vgg": SLIM_VGG,
         "mobilenet": SLIM_MOBILENET, "darknet": SLIM_DARKNET, "efficientnet": SLIM_EFFICIENTNET,
         "hourglass": SLIM_HOURGLASS, "swin": SLIM_SWIN}
