"""MaskFormer."""
from dataclasses import replace

from detcore.methods.maskformer import maskformer
from detcore.pocket.names import STUFF
from detcore.pocket.profile import PANOPTIC, QUERIES, Pocket, training
from detcore.recipe import AdamW, Part, Schedule
from detcore.zoo.backbones.resnet import R50_WHOLE
from detcore.zoo.backbones.swin import SWIN_L_384_22K
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import MASKS, SLOW_BACKBONE, UNPADDED, change, detr_transforms

RECIPE = replace(MASKS, metric=("bbox", "segm", "panoptic"), clip_norm=0.01, batch_per_gpu=1,
                 train_transforms=detr_transforms(1333))

POCKET = Pocket(QUERIES | dict(layers=3, stuff=len(STUFF), dropout=0.0), training(300, rate=1e-3, **PANOPTIC))

MODELS = family(
    "maskformer", maskformer, RECIPE, POCKET,
    row("maskformer_r50_ms-16xb1-75e_coco", R50_WHOLE, UNPADDED,
        change(epochs=75, schedule=Schedule((50,), 75, warmup_iters=0),
               optimizer=AdamW(1e-4, 1e-4, norm_decay_mult=0,
                               parts=(SLOW_BACKBONE, Part("query_embed", decay_mult=0))))),
    row("maskformer_swin-l-p4-w12_64xb1-ms-300e_coco", SWIN_L_384_22K, UNPADDED,
        change(epochs=300, batch_size=64, schedule=Schedule((250,), 300, warmup_iters=1500, warmup_factor=1e-6),
               optimizer=AdamW(6e-5, 0.01, norm_decay_mult=0, parts=(
                   Part("relative_position_bias_table|query_embed", decay_mult=0), SLOW_BACKBONE))),
        encoder_layers=0))
