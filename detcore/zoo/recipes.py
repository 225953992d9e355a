"""Parts of recipes that several families of the zoo share: schedules, augmentation, what a change is."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from detcore.data.augment import Expand, MinIoUCrop, PhotometricDistortion
from detcore.data.transforms import (
    Choice,
    FilterBoxes,
    Flip,
    RandomCrop,
    Resize,
    ResizeChoice,
    ResizeRange,
    ScaleJitter,
    Transform,
)
from detcore.recipe import TORCHVISION, Part, Recipe, Schedule

Change = Callable[[Recipe], Recipe]


def change(**fields: Any) -> Change:
    """What a model changes in a recipe: the fields given."""
    return lambda recipe: replace(recipe, **fields)


BOXES = Recipe()
MASKS = Recipe(masks="bitmap", metric=("bbox", "segm"))

SCHEDULE_20E = change(epochs=20, schedule=Schedule((16, 19), 20))
SCHEDULE_2X = change(epochs=24, schedule=Schedule((16, 22), 24))
SCHEDULE_3X = change(epochs=36, schedule=Schedule((28, 34), 36))
SCHEDULE_90K = change(epochs=None, iterations=90_000, val_interval=10_000,
                      schedule=Schedule((60_000, 80_000), 90_000, by_epoch=False))

POLYGONS = change(masks="polygon")
CLIPPED = change(clip_norm=35.0)
MULTI_SCALE = change(train_transforms=(ResizeChoice(tuple((1333, s) for s in range(640, 801, 32))), Flip()))
# The data set thrice an epoch, and the first drop an epoch later than usual.
MULTI_SCALE_3X = change(train_transforms=(ResizeRange((1333, 640), (1333, 800)), Flip()), repeat=3,
                        schedule=Schedule((9, 11), 12))


def large_scale_jitter(repeat: int, warmup_iters: int) -> Change:
    """64 images of 1024 x 1024 a batch, scaled by 0.1 to 2, for 25 times `repeat` epochs, in mixed precision."""
    size = (1024, 1024)

    def apply(recipe: Recipe) -> Recipe:
        return replace(
            recipe, preprocess=replace(recipe.preprocess, fixed_size=size),
            train_transforms=(ScaleJitter(size, (0.1, 2.0)), RandomCrop(size, allow_negative=True), FilterBoxes(0.01),
                              Flip()),
            optimizer=replace(recipe.optimizer, lr=recipe.optimizer.lr * 4, weight_decay=4e-5),
            schedule=Schedule((22, 24), 25, warmup_iters=warmup_iters, warmup_factor=0.067),
            epochs=25, repeat=repeat, batch_size=64, batch_per_gpu=8, amp=True, val_interval=5, aspect_grouping=False)

    return apply


LSJ_200E = large_scale_jitter(repeat=8, warmup_iters=1000)
LSJ_100E = large_scale_jitter(repeat=4, warmup_iters=500)  # what Mask R-CNN's "200e" files contain


def ssd_recipe(size: int, *, colours_first: bool = False, **fields: Any) -> Recipe:
    """SSD's augmentation, for images stretched to `size` squared, and what else differs from the common recipe."""
    to_size, colours = Resize((size, size), keep_ratio=False), PhotometricDistortion()
    crop = (Expand(), MinIoUCrop())
    train = (colours, *crop, to_size, Flip()) if colours_first else (*crop, to_size, Flip(), colours)
    return Recipe(train_transforms=train, test_transforms=(to_size,), **fields)


# Of detectors with queries
DETR_SCALES = ResizeChoice(tuple((s, 1333) for s in range(480, 801, 32)))
UNPADDED = change(preprocess=replace(TORCHVISION, pad_to=1))
SLOW_BACKBONE = Part("^backbone", lr_mult=0.1)


def detr_transforms(longest: int) -> tuple[Transform, ...]:
    """Many scales; half of the images are cropped in between, from a size of at most `longest` (DETR)."""
    larger = ResizeChoice(tuple((s, longest) for s in (400, 500, 600)))
    cropped = (larger, RandomCrop((384, 600), True, drawn=True), DETR_SCALES)
    return Flip(), Choice(((DETR_SCALES,), cropped))
