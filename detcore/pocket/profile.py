"""The pocket profile: every method at a size that two CPU cores train in two minutes.

Same code, same losses, less of everything: a ResNet-18 with a quarter of the channels, images of 128 x 128, a narrow
pyramid, few proposals and samples. Training starts from a backbone pretrained on Pocket Zoo. Here stands what several
families share; the rest is in the families' files.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from detcore.data.transforms import Flip, Resize
from detcore.detectors import Detector
from detcore.pocket.names import CLASSES
from detcore.recipe import AdamW, Recipe, Schedule

SIZE = (128, 128)


@dataclass(frozen=True)
class Pocket:
    """A family's pocket-size settings.

    Attributes:
        options: for the builder, in place of the published ones.
        recipe: the training.
        num_classes: of Pocket Zoo.
        builder: in place of the family's, with the same arguments; None: the family's.
    """

    options: Mapping[str, Any]
    recipe: Recipe
    num_classes: int = len(CLASSES)
    builder: Callable[..., Detector] | None = field(default=None, repr=False)


def training(iterations: int, rate: float = 2e-3, batch: int = 16, **fields: Any) -> Recipe:
    """`iterations` steps of `batch` images, the rate dropping at 70 and 90 percent; `fields` are the recipe's.

    Without clipping, some seeds throw RetinaNet's classes off in the first steps.
    """
    drops = (iterations * 7 // 10, iterations * 9 // 10)
    return Recipe(
        train_transforms=(Resize(SIZE), Flip()), test_transforms=(Resize(SIZE),),
        optimizer=AdamW(lr=rate, weight_decay=0.05), batch_size=batch, batch_per_gpu=batch,
        epochs=None, iterations=iterations, val_interval=iterations, min_size=8, clip_norm=10.0,
        schedule=Schedule(drops, iterations, by_epoch=False, warmup_iters=30, warmup_factor=0.05), **fields)


def compared(**fields: Any) -> Recipe:
    """The training of the methods that the chapters compare: 3,200 images."""
    return training(400, rate=1.5e-3, batch=8, **fields)


# Options of two-stage models.
PYRAMID: dict[str, Any] = dict(width=48, anchor_scale=4)
PROPOSALS: dict[str, Any] = dict(rpn_pre_nms_top_n_train=200, rpn_post_nms_top_n_train=100,
                                 rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=100)
# On the CPU RoIAlign is a slow part, and its backward pass uses one core: two samples a bin and direction do.
ROIS: dict[str, Any] = dict(hidden=128, samples=64, sampling_ratio=2)
TWO_STAGE = PYRAMID | PROPOSALS | ROIS | dict(rpn_samples=64)
SINGLE_MAP = PROPOSALS | ROIS | dict(rpn_samples=64)
# With masks, half the regions a step leave time for more steps, which is worth more.
FEWER: dict[str, Any] = dict(samples=32)
# The methods that the chapters compare see as many images, regions and RoIAlign's samples as each other, in steps of 8
# images: for the same images and about the same time, small steps are more steps. Cascade Mask R-CNN, with three heads
# and three mask heads, takes longest and sets how many images there is time for; half the mask heads' convolutions
# save a fifth of Mask R-CNN's time and cost a hundredth of mask AP.
COMPARED: dict[str, Any] = FEWER | dict(sampling_ratio=1)
MASK_CONVS: dict[str, Any] = dict(mask_convs=2)
# Box heads of convolutions learn more slowly.
CONVS: dict[str, Any] = TWO_STAGE | dict(hidden=256, box_convs=1)

# Fields of the recipe.
MASKS: dict[str, Any] = dict(masks="bitmap", metric=("bbox", "segm"))
PANOPTIC: dict[str, Any] = dict(masks="bitmap", metric=("bbox", "segm", "panoptic"))

RPN = Pocket(PYRAMID | dict(samples=64, pre_nms_top_n=400, max_detections=200), compared(metric=("proposal",)))
FAST_RCNN = Pocket(dict(width=48) | ROIS | COMPARED, compared(max_proposals=100))
FASTER_RCNN = Pocket(TWO_STAGE | COMPARED, compared())
FASTER_RCNN_SINGLE_MAP = Pocket(SINGLE_MAP, training(150))
MASK_RCNN = Pocket(TWO_STAGE | COMPARED | MASK_CONVS, compared(**MASKS))
CASCADE_RCNN = Pocket(TWO_STAGE | COMPARED, compared())
CASCADE_MASK_RCNN = Pocket(TWO_STAGE | COMPARED | MASK_CONVS, compared(**MASKS))
RETINANET = Pocket(dict(width=48, depth=2, anchor_scale=2), compared())

# Options of models that say masks by queries. After so short a training right answers often score less than the
# published 0.8.
QUERIES: dict[str, Any] = dict(queries=30, width=64, hidden=128, object_score=0.4)


def with_transforms(pocket: Pocket, *first: Any) -> Pocket:
    """The same settings with training transforms before the common ones."""
    return replace(pocket, recipe=replace(pocket.recipe, train_transforms=(*first, *pocket.recipe.train_transforms)))
