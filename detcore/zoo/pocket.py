"""The pocket profile: every method at a size that two CPU cores train in a minute and a half.

Same code, same losses, less of everything: a ResNet-18 with a quarter of the channels, images of 128 x 128, a narrow
pyramid, few proposals and samples. Training starts from a backbone pretrained on Pocket Zoo.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detcore.backbones.regnet import Design, RegNet
from detcore.backbones.resnet import ResNet
from detcore.data.instaboost import InstaBoost
from detcore.data.pocket_zoo import CLASSES, STUFF
from detcore.data.transforms import Flip, Resize
from detcore.methods.fast_rcnn import Keep
from detcore.methods.rpn import Limits
from detcore.zoo.recipes import AdamW, Recipe, Schedule

POCKET_BACKBONE = Path(__file__).with_name("pocket_backbone.safetensors")
SIZE = (128, 128)
SLIM_REGNET = Design(first=24, slope=16, ratio=2, blocks=9, group=8)


def slim_resnet(layout: Callable[..., ResNet] = ResNet, **options: Any) -> ResNet:
    """ResNet-18 with 16 channels in its stem, nothing frozen; `layout` is `ResNet` or one of its variants."""
    return layout(18, style="pytorch", base_channels=16, frozen_stages=-1, norm_eval=True, **options)


def slim_regnet(**options: Any) -> RegNet:
    """A RegNetX of nine narrow blocks, nothing frozen."""
    return RegNet(SLIM_REGNET, stem=16, frozen_stages=-1, norm_eval=False, **options)


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


def training(iterations: int, **fields: Any) -> Recipe:
    """`iterations` steps of 16 images, the rate dropping at 70 and 90 percent.

    Without clipping, some seeds throw RetinaNet's classes off in the first steps.
    """
    drops = (iterations * 7 // 10, iterations * 9 // 10)
    return Recipe(
        train_transforms=(Resize(SIZE), Flip()), test_transforms=(Resize(SIZE),),
        optimizer=AdamW(lr=2e-3, weight_decay=0.05), batch_size=16, batch_per_gpu=16,
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
MASK_RCNN = Pocket(TWO_STAGE, training(120, **MASKS))
CASCADE_RCNN = Pocket(TWO_STAGE, training(120))
CASCADE_MASK_RCNN = Pocket(TWO_STAGE, training(70, **MASKS))
RETINANET = Pocket(dict(width=48, depth=2, anchor_scale=2), training(250))

# With a norm that trains, learning takes longer; from random weights longer still.
FOUR_CONVS: dict[str, Any] = dict(width=32)
GN_MASK_RCNN = WS_MASK_RCNN = Pocket(TWO_STAGE | FOUR_CONVS, training(100, **MASKS))
WS_FASTER_RCNN = Pocket(TWO_STAGE | FOUR_CONVS, training(120))
SCRATCH_FASTER_RCNN = Pocket(TWO_STAGE | FOUR_CONVS, training(200))
SCRATCH_MASK_RCNN = Pocket(TWO_STAGE | FOUR_CONVS, training(120, **MASKS))
FASTER_RCNN_DPOOL = Pocket(TWO_STAGE | dict(hidden=96), training(120))
REGNET_FASTER_RCNN = Pocket(TWO_STAGE, training(200))
REGNET_MASK_RCNN = Pocket(TWO_STAGE, training(120, **MASKS))
REGNET_CASCADE_MASK_RCNN = Pocket(TWO_STAGE, training(70, **MASKS))
REGNET_RETINANET = Pocket(dict(width=48, depth=2, anchor_scale=2), training(250))

GRID_RCNN = Pocket(TWO_STAGE | dict(grid_convs=2, grid_channels=8, most_regions=96), training(120))
MS_RCNN = Pocket(TWO_STAGE, training(100, **MASKS))

# Trained as without seesaw loss, so that the two can be compared.
ALL_SCORES: dict[str, Any] = dict(keep=Keep(score=1e-4))
SEESAW_MASK_RCNN = Pocket(TWO_STAGE | ALL_SCORES, MASK_RCNN.recipe)
SEESAW_CASCADE_MASK_RCNN = Pocket(TWO_STAGE | ALL_SCORES, CASCADE_MASK_RCNN.recipe)


def boosted(small: Pocket) -> Pocket:
    """The same with the objects of half the images moved about (InstaBoost)."""
    return replace(small, recipe=replace(small.recipe, train_transforms=(InstaBoost(), Resize(SIZE), Flip())))


INSTABOOST_MASK_RCNN, INSTABOOST_CASCADE_MASK_RCNN = boosted(MASK_RCNN), boosted(CASCADE_MASK_RCNN)

GA_RPN = Pocket(PYRAMID | dict(samples=64, test_limits=Limits(400, 200)), training(200, metric=("proposal",)))
GA_FASTER_RCNN = Pocket(TWO_STAGE, training(150))
GA_RETINANET = Pocket(dict(width=48, depth=2, anchor_scale=2), training(250))
PANOPTIC_FPN = Pocket(TWO_STAGE | dict(stuff=len(STUFF), stuff_area=64, semantic_channels=32),
                      training(110, masks="bitmap", metric=("bbox", "segm", "panoptic")))
