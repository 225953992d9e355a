"""Deformable DETR."""
from dataclasses import replace
from functools import partial

from detcore.methods.deformable_detr import deformable_detr
from detcore.pocket.profile import Pocket, training
from detcore.recipe import AdamW, Part, Recipe, Schedule
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import SLOW_BACKBONE, UNPADDED, detr_transforms

# Batch norm stays as it is.
R50_FROZEN_NORM = replace(R50, build=partial(R50.build, norm_fixed=True))

POCKET = Pocket(dict(queries=50, width=64, hidden=128, encoder_layers=2, layers=3), training(400, rate=1e-3))

MODELS = family(
    "deformable_detr", deformable_detr,
    Recipe(train_transforms=detr_transforms(4200), filter_empty=False, epochs=50, batch_size=32, clip_norm=0.1,
           schedule=Schedule((40,), 50, warmup_iters=0),
           optimizer=AdamW(2e-4, 1e-4, parts=(SLOW_BACKBONE, Part("sampling_offsets|reference_points", lr_mult=0.1)))),
    POCKET,
    row("deformable-detr_r50_16xb2-50e_coco", R50_FROZEN_NORM, UNPADDED),
    row("deformable-detr-refine_r50_16xb2-50e_coco", R50_FROZEN_NORM, UNPADDED, refine=True),
    row("deformable-detr-refine-twostage_r50_16xb2-50e_coco", R50_FROZEN_NORM, UNPADDED, refine=True, two_stage=True))
