"""The pocket profile: every method at a size that two CPU cores train in a minute and a half.

Same code, same losses, less of everything: a ResNet-18 with a quarter of the channels, images of 128 x 128, a narrow
pyramid, few proposals and samples. Training starts from a backbone pretrained on Pocket Zoo.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from detcore.backbones import efficientnet, mobilenet
from detcore.backbones.darknet import Darknet, leaky
from detcore.backbones.efficientnet import EfficientNet
from detcore.backbones.hourglass import Hourglass
from detcore.backbones.mobilenet import MobileNetV2, Stage
from detcore.backbones.regnet import Design, RegNet
from detcore.backbones.resnet import ResNet
from detcore.backbones.swin import Size, Swin
from detcore.backbones.vgg import SSDVGG
from detcore.data.instaboost import InstaBoost
from detcore.pocket.pocket_zoo import CLASSES, STUFF
from detcore.data.transforms import Flip, Resize
from detcore.methods.fast_rcnn import Keep
from detcore.methods.rpn import Limits
from detcore.methods.ssd import SIX, Extra, Layout
from detcore.methods.weight_standardization import WSConv2d
from detcore.data.tta import TestTimeAugmentation
from detcore.zoo.recipes import AdamW, Recipe, Schedule

SIZE = (128, 128)
SLIM_DESIGN = Design(first=24, slope=16, ratio=2, blocks=9, group=8)
# The fifth stage's map has stride 8, the last one 16: half the published ones, for smaller images.
SLIM_STAGES = (Stage(1, 8, 1, 1), Stage(4, 16, 1, 2), Stage(4, 24, 1, 2), Stage(4, 32, 1, 1), Stage(4, 48, 1, 1),
               Stage(4, 64, 1, 2), Stage(4, 96, 1, 1))


def slim_resnet(layout: Callable[..., ResNet] = ResNet, **options: Any) -> ResNet:
    """ResNet-18 with 16 channels in its stem, nothing frozen; `layout` is `ResNet` or one of its variants."""
    return layout(18, style="pytorch", base_channels=16, frozen_stages=-1, norm_eval=True, **options)


def slim_regnet(**options: Any) -> RegNet:
    """A RegNetX of nine narrow blocks, nothing frozen."""
    return RegNet(SLIM_DESIGN, stem=16, frozen_stages=-1, norm_eval=True, **options)


def slim_mobilenet(out_stages: Sequence[int] = (4, 7), *, stages: Sequence[Stage] = SLIM_STAGES,
                   **options: Any) -> MobileNetV2:
    """A MobileNetV2 of seven narrow blocks, of stride 16 in all; options as its own."""
    return MobileNetV2(out_stages, stages=stages, stem=8, last=128, **options)


SLIM_BLOCKS = tuple(efficientnet.Stage(*row) for row in (
    (1, 3, 8, 1, 1), (3, 3, 16, 1, 2), (3, 5, 24, 2, 2), (3, 3, 32, 1, 2), (3, 5, 48, 1, 1), (3, 5, 64, 1, 2),
    (3, 3, 96, 1, 1)))


def slim_efficientnet() -> EfficientNet:
    """An EfficientNet of eight narrow blocks, none of which is left out in training."""
    return EfficientNet(efficientnet.Scaling(1, 1), stages=SLIM_BLOCKS, stem=16, drop=0.0)


@dataclass(frozen=True)
class Slim:
    """A backbone of the pocket profile.

    Attributes:
        build: makes the network.
        file: its weights, made by `detcore pretrain`.
    """

    build: Callable[..., nn.Module]
    file: Path


def _slim(name: str, build: Callable[..., nn.Module]) -> Slim:
    return Slim(build, Path(__file__).with_name(f"pocket_{name}.safetensors"))


SLIM = _slim("backbone", slim_resnet)
POCKET_BACKBONE = SLIM.file
SLIM_GN = _slim("backbone_gn", partial(slim_resnet, norm="gn"))
SLIM_WS = _slim("backbone_ws", partial(slim_resnet, norm="gn", conv=WSConv2d))
SLIM_REGNET = _slim("backbone_regnet", slim_regnet)
SLIM_VGG = _slim("backbone_vgg", partial(SSDVGG, width=8))
SLIM_MOBILENET = _slim("backbone_mobilenet", slim_mobilenet)
# The same weights with YOLOv3's activation and the published strides.
SLIM_MOBILENET_LEAKY = replace(SLIM_MOBILENET, build=partial(
    slim_mobilenet, (2, 4, 6), act=leaky,
    stages=tuple(s._replace(stride=published.stride) for s, published in zip(SLIM_STAGES, mobilenet.STAGES))))
SLIM_DARKNET = _slim("backbone_darknet", partial(Darknet, (1, 1, 2, 2, 1), stem=6))
SLIM_EFFICIENTNET = _slim("backbone_efficientnet", slim_efficientnet)
SLIM_HOURGLASS = _slim("backbone_hourglass", partial(Hourglass, (32, 32, 48), (1, 1, 1), stem=16))
SLIM_SWIN = _slim("backbone_swin", partial(Swin, Size(24, (1, 1, 2, 2), (1, 2, 4, 8), 4), drop=0.0))
# What `detcore pretrain` can make.
SLIMS = {"resnet": SLIM, "gn": SLIM_GN, "ws": SLIM_WS, "regnet": SLIM_REGNET, "vgg": SLIM_VGG,
         "mobilenet": SLIM_MOBILENET, "darknet": SLIM_DARKNET, "efficientnet": SLIM_EFFICIENTNET,
         "hourglass": SLIM_HOURGLASS, "swin": SLIM_SWIN}


@dataclass(frozen=True)
class Pocket:
    """A family's pocket-size settings.

    Attributes:
        options: for the builder, in place of the published ones.
        recipe: the training.
        num_classes: of Pocket Zoo.
    """

    options: Mapping[str, Any]
    recipe: Recipe
    num_classes: int = len(CLASSES)


def training(iterations: int, rate: float = 2e-3, **fields: Any) -> Recipe:
    """`iterations` steps of 16 images, the rate dropping at 70 and 90 percent.

    Without clipping, some seeds throw RetinaNet's classes off in the first steps.
    """
    drops = (iterations * 7 // 10, iterations * 9 // 10)
    return Recipe(
        train_transforms=(Resize(SIZE), Flip()), test_transforms=(Resize(SIZE),),
        optimizer=AdamW(lr=rate, weight_decay=0.05), batch_size=16, batch_per_gpu=16,
        epochs=None, iterations=iterations, val_interval=iterations, min_size=8, clip_norm=10.0,
        schedule=Schedule(drops, iterations, by_epoch=False, warmup_iters=30, warmup_factor=0.05), **fields)


PYRAMID: dict[str, Any] = dict(width=48, anchor_scale=4)
PROPOSALS: dict[str, Any] = dict(rpn_samples=64, train_limits=Limits(200, 100), test_limits=Limits(200, 100))
# On the CPU RoIAlign is the slowest part, and its backward pass uses one core: two samples a bin and direction do.
REGIONS: dict[str, Any] = dict(hidden=128, samples=64, sampling=2)
TWO_STAGE = PYRAMID | PROPOSALS | REGIONS
MASKS: dict[str, Any] = dict(masks="bitmap", metric=("bbox", "segm"))

RPN = Pocket(PYRAMID | dict(samples=64, test_limits=Limits(400, 200)), training(200, metric=("proposal",)))
FAST_RCNN = Pocket(dict(width=48) | REGIONS, training(150, max_proposals=100))
FASTER_RCNN = Pocket(TWO_STAGE, training(150))
# With masks, half the regions a step leave time for more steps, which is worth more.
FEWER: dict[str, Any] = dict(samples=32)
MASK_RCNN = Pocket(TWO_STAGE | FEWER, training(150, **MASKS))
CASCADE_RCNN = Pocket(TWO_STAGE, training(120))
CASCADE_MASK_RCNN = Pocket(TWO_STAGE | FEWER, training(95, **MASKS))
RETINANET = Pocket(dict(width=48, depth=2, anchor_scale=2), training(450))

# Box heads of convolutions learn more slowly, and from random weights everything does.
CONVS: dict[str, Any] = TWO_STAGE | dict(hidden=256, box_convs=1)
GN_MASK_RCNN = WS_MASK_RCNN = Pocket(CONVS, training(100, rate=1.5e-3, **MASKS))
WS_FASTER_RCNN = Pocket(CONVS, training(120, rate=1.5e-3))
SCRATCH_FASTER_RCNN = Pocket(CONVS | dict(samples=48), training(220))
SCRATCH_MASK_RCNN = Pocket(CONVS, training(120, **MASKS))
FASTER_RCNN_DPOOL = Pocket(TWO_STAGE | dict(hidden=96), training(88))

GRID_RCNN = Pocket(TWO_STAGE | dict(grid_convs=2, grid_channels=8, most_regions=128), training(150))
MS_RCNN = Pocket(TWO_STAGE, training(100, **MASKS))

# Trained as without seesaw loss, so that the two can be compared.
ALL_SCORES: dict[str, Any] = dict(keep=Keep(score=1e-4))
SEESAW_MASK_RCNN = Pocket(TWO_STAGE | FEWER | ALL_SCORES, MASK_RCNN.recipe)
SEESAW_CASCADE_MASK_RCNN = Pocket(TWO_STAGE | FEWER | ALL_SCORES, CASCADE_MASK_RCNN.recipe)


def boosted(small: Pocket) -> Pocket:
    """The same with the objects of half the images moved about (InstaBoost)."""
    return replace(small, recipe=replace(small.recipe, train_transforms=(InstaBoost(), Resize(SIZE), Flip())))


INSTABOOST_MASK_RCNN, INSTABOOST_CASCADE_MASK_RCNN = boosted(MASK_RCNN), boosted(CASCADE_MASK_RCNN)

GA_FASTER_RCNN = Pocket(TWO_STAGE, training(140))
# Feature adaption is one layer more; with two before it, learning starts late.
GA_RETINANET = Pocket(dict(width=48, depth=1, anchor_scale=4), training(350))
DEFORMABLE_DETR = Pocket(dict(queries=50, width=64, hidden=128, encoder_layers=2, layers=3), training(400, rate=1e-3))

# After so short a training right answers often score less than the published 0.6.
PANOPTIC_FPN = Pocket(TWO_STAGE | dict(stuff=len(STUFF), stuff_area=64, semantic_channels=32,
                                       keep=Keep(score=0.3, across_classes=True)),
                      training(100, masks="bitmap", metric=("bbox", "segm", "panoptic")))

FREE_ANCHOR = Pocket(dict(width=48, depth=2, anchor_scale=2), training(250))
GFL = Pocket(dict(width=48, depth=2, anchor_scale=4), training(250))
AUTO_ASSIGN = Pocket(dict(width=48, depth=2), training(250))

SSD_BOXES = Layout((Extra(64), Extra(64)), strides=(8, 16, 32, 64), sizes=(14, 30, 52, 80, 115), ratios=(SIX,) * 4)
SSD = Pocket(dict(layout=SSD_BOXES, head_std=0.003), training(250, rate=1e-3))
SSDLITE = Pocket(dict(layout=SSD_BOXES), training(200))

# Clusters of Pocket Zoo's boxes.
YOLO_ANCHORS = (((54, 35), (64, 55), (126, 117)), ((41, 24), (32, 44), (76, 19)), ((30, 15), (21, 29), (51, 13)))
YOLO = Pocket(dict(widths=(96, 64, 48), bridges=(128, 96, 64), anchors=YOLO_ANCHORS), training(230))
EFFICIENTNET = Pocket(dict(width=48, depth=2, anchor_scale=2), training(180))
CENTRIPETALNET = Pocket(dict(pooling=16), training(160, tta=TestTimeAugmentation(sigma=0.5)))

DEFORMABLE_DETR = Pocket(dict(queries=50, width=64, hidden=128, encoder_layers=2, layers=3), training(400, rate=1e-3))

# After so short a training right answers often score less than the published 0.8.
QUERIES: dict[str, Any] = dict(queries=30, width=64, hidden=128, object_score=0.4)
MASKFORMER = Pocket(QUERIES | dict(layers=3, stuff=len(STUFF), dropout=0.0),
                    training(300, rate=1e-3, masks="bitmap", metric=("bbox", "segm", "panoptic")))
MASKED: dict[str, Any] = QUERIES | dict(encoder_layers=1, encoder_hidden=128, layers=3, points=512)
MASK2FORMER = Pocket(MASKED | dict(stuff=0), training(300, rate=1e-3, **MASKS))
MASK2FORMER_PANOPTIC = Pocket(MASKED | dict(stuff=len(STUFF)),
                              training(300, rate=1e-3, masks="bitmap", metric=("bbox", "segm", "panoptic")))
