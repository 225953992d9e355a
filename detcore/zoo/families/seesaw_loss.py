"""Seesaw loss: Mask and Cascade Mask R-CNN on LVIS."""
from typing import Any

from detcore.data.sampling import ClassBalanced
from detcore.methods.seesaw_loss import seesaw_cascade_mask_rcnn, seesaw_mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import FEWER, TWO_STAGE, Pocket
from detcore.zoo.backbones.resnet import R50, R101
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import MASKS, MULTI_SCALE, SCHEDULE_2X, change

LVIS_2X = (MULTI_SCALE, SCHEDULE_2X, change(val_interval=24, layout="lvis"))
BALANCED = change(sampling=ClassBalanced(1e-3))

# Trained as without seesaw loss, so that the two can be compared.
ALL_SCORES: dict[str, Any] = dict(score_threshold=1e-4, max_detections=100)
POCKET = Pocket(TWO_STAGE | FEWER | ALL_SCORES, pocket.MASK_RCNN.recipe)
CASCADE_POCKET = Pocket(TWO_STAGE | FEWER | ALL_SCORES, pocket.CASCADE_MASK_RCNN.recipe)

MODELS = [
    *family("seesaw_loss", seesaw_mask_rcnn, MASKS, POCKET,
            row("mask-rcnn_{}_fpn_seesaw-loss_random-ms-2x_lvis-v1", (R50, R101), *LVIS_2X),
            row("mask-rcnn_{}_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1", (R50, R101), *LVIS_2X, BALANCED),
            row("mask-rcnn_{}_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1", (R50, R101), *LVIS_2X,
                normed_masks=True),
            row("mask-rcnn_{}_fpn_seesaw-loss-normed-mask_sample1e-3-ms-2x_lvis-v1", (R50, R101), *LVIS_2X, BALANCED,
                normed_masks=True),
            num_classes=1203),
    *family("seesaw_loss", seesaw_cascade_mask_rcnn, MASKS, CASCADE_POCKET,
            row("cascade-mask-rcnn_r101_fpn_seesaw-loss_random-ms-2x_lvis-v1", R101, *LVIS_2X),
            row("cascade-mask-rcnn_r101_fpn_seesaw-loss_sample1e-3-ms-2x_lvis-v1", R101, *LVIS_2X, BALANCED),
            row("cascade-mask-rcnn_r101_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1", R101, *LVIS_2X,
                normed_masks=True),
            row("cascade-mask-rcnn_r101_fpn_seesaw-loss-normed-mask_sample1e-3-ms-2x_lvis-v1", R101, *LVIS_2X,
                BALANCED, normed_masks=True),
            num_classes=1203),
]
