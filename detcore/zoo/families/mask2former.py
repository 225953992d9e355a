"""Mask2Former, for instances and for panoptic segmentation."""
from dataclasses import replace

from detcore.data.transforms import AsFloat, FilterBoxes, Flip, RandomCrop, Resize, ScaleJitter
from detcore.methods.mask2former import mask2former
from detcore.pocket import profile as pocket
from detcore.pocket.names import STUFF
from detcore.pocket.profile import PANOPTIC, QUERIES, Pocket, training
from detcore.recipe import TORCHVISION, AdamW, Part, Schedule
from detcore.zoo.backbones.resnet import R50_WHOLE, R101_WHOLE
from detcore.zoo.backbones.swin import SWIN_B_384, SWIN_B_384_22K, SWIN_L_384_22K, SWIN_S_224, SWIN_T_224
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, MASKS, SLOW_BACKBONE, change

PARTS = (Part("query_embed|query_feat|level_embed", decay_mult=0), SLOW_BACKBONE)
RECIPE = replace(
    MASKS, clip_norm=0.01, epochs=None, iterations=368_750, val_interval=5000,
    schedule=Schedule((327_778, 355_092), 368_750, by_epoch=False, warmup_iters=0),
    train_transforms=(AsFloat(), Flip(), ScaleJitter(), RandomCrop(allow_negative=True), FilterBoxes(1e-5)),
    test_transforms=(AsFloat(), Resize()),
    optimizer=AdamW(1e-4, 0.05, norm_decay_mult=0, parts=PARTS))
LSJ_SIZE = change(preprocess=replace(TORCHVISION, fixed_size=(1024, 1024)))
# Norms and position biases of Swin do not decay either.
SWIN_PARTS = change(optimizer=replace(RECIPE.optimizer, parts=(
    Part("^backbone.*(norm|bias_table)", lr_mult=0.1, decay_mult=0), *PARTS)))

OPTIONS = QUERIES | dict(encoder_layers=1, encoder_hidden=128, layers=3, points=512)
POCKET = Pocket(OPTIONS | dict(stuff=0), training(300, rate=1e-3, **pocket.MASKS))
PANOPTIC_POCKET = Pocket(OPTIONS | dict(stuff=len(STUFF)), training(300, rate=1e-3, **PANOPTIC))

MODELS = [
    *family("mask2former", mask2former, RECIPE, POCKET,
            row("mask2former_{}_8xb2-lsj-50e_coco", (R50_WHOLE, R101_WHOLE), LSJ_SIZE, stuff=0),
            row("mask2former_{}_8xb2-lsj-50e_coco", (SWIN_T_224, SWIN_S_224), LSJ_SIZE, SWIN_PARTS, stuff=0)),
    *family("mask2former", mask2former,
            replace(RECIPE, metric=("bbox", "segm", "panoptic"),
                    train_transforms=RECIPE.train_transforms[:-1], test_transforms=BOXES.test_transforms),
            PANOPTIC_POCKET,
            row("mask2former_{}_8xb2-lsj-50e_coco-panoptic", (R50_WHOLE, R101_WHOLE), LSJ_SIZE),
            row("mask2former_{}_8xb2-lsj-50e_coco-panoptic", (SWIN_T_224, SWIN_S_224, SWIN_B_384, SWIN_B_384_22K),
                LSJ_SIZE, SWIN_PARTS),
            row("mask2former_{}_16xb1-lsj-100e_coco-panoptic", SWIN_L_384_22K, LSJ_SIZE, SWIN_PARTS,
                change(iterations=737_500, batch_per_gpu=1,
                       schedule=Schedule((655_556, 710_184), 737_500, by_epoch=False, warmup_iters=0)),
                queries=200)),
]
