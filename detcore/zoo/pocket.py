"""The pocket profile: every method at a size that two CPU cores train in a minute and a half.

Same code, same losses, less of everything: a ResNet-18 with a quarter of the channels, images of 128 x 128, a narrow
pyramid, few proposals and samples. Training starts from a backbone pretrained on Pocket Zoo.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from detcore.backbones.regnet import Design, RegNet
from detcore.backbones.resnet import Residual, ResNet
from detcore.data.instaboost import InstaBoost
from detcore.data.pocket_zoo import CLASSES, STUFF
from detcore.data.transforms import Flip, Resize
from detcore.methods.fast_rcnn import Keep
from detcore.methods.rpn import Limits
from detcore.methods.weight_standardization import WSConv2d
from detcore.zoo.recipes import AdamW, Recipe, Schedule

SIZE = (128, 128)
SLIM_DESIGN = Design(first=24, slope=16, ratio=2, blocks=9, group=8)


def slim_resnet(layout: Callable[..., ResNet] = ResNet, **options: Any) -> ResNet:
    """ResNet-18 with 16 channels in its stem, nothing frozen; `layout` is `ResNet` or one of its variants."""
    return layout(18, style="pytorch", base_channels=16, frozen_stages=-1, norm_eval=True, **options)


def slim_regnet(**options: Any) -> RegNet:
    """A RegNetX of nine narrow blocks, nothing frozen."""
    return RegNet(SLIM_DESIGN, stem=16, frozen_stages=-1, norm_eval=True, **options)


@dataclass(frozen=True)
class Slim:
    """A backbone of the pocket profile.

    Attributes:
        build: makes the network.
        file: its weights, made by `detcore pretrain`.
    """

    build: Callable[..., Residual]
    file: Path


def _slim(name: str, build: Callable[..., Residual]) -> Slim:
    return Slim(build, Path(__file__).with_name(f"pocket_{name}.safetensors"))


SLIM = _slim("backbone", slim_resnet)
POCKET_BACKBONE = SLIM.file
SLIM_GN = _slim("backbone_gn", partial(slim_resnet, norm="gn"))
SLIM_WS = _slim("backbone_ws", partial(slim_resnet, norm="gn", conv=WSConv2d))
SLIM_REGNET = _slim("backbone_regnet", slim_regnet)
# What `detcore pretrain` can make.
SLIMS = {"resnet": SLIM, "gn": SLIM_GN, "ws": SLIM_WS, "regnet": SLIM_REGNET}


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
FASTER_RCNN_DPOOL = Pocket(TWO_STAGE | dict(hidden=96), training(85))

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
# After so short a training right answers often score less than the published 0.6.
PANOPTIC_FPN = Pocket(TWO_STAGE | dict(stuff=len(STUFF), stuff_area=64, semantic_channels=32,
                                       keep=Keep(score=0.3, across_classes=True)),
                      training(100, masks="bitmap", metric=("bbox", "segm", "panoptic")))
