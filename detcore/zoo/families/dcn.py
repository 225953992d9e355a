"""Deformable ConvNets: deformable convolutions and deformable RoI pooling in two-stage models."""
from detcore.methods.cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from detcore.methods.dcn import faster_rcnn_dpool
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import TWO_STAGE, Pocket, training
from detcore.zoo.backbones.deformable import deformed
from detcore.zoo.backbones.resnet import R50, R101, X101_32X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, MASKS, change

R50_DCN, R101_DCN, X101_DCN = (deformed(b) for b in (R50, R101, X101_32X4D))

MODELS = [
    *family("dcn", faster_rcnn, BOXES, pocket.FASTER_RCNN,
            row("faster-rcnn_{}-dconv-c3-c5_fpn_1x_coco", (R50_DCN, R101_DCN, X101_DCN))),
    *family("dcn", faster_rcnn_dpool, BOXES, Pocket(TWO_STAGE | dict(hidden=96), training(88)),
            row("faster-rcnn_r50_fpn_dpool_1x_coco", R50)),
    *family("dcn", mask_rcnn, MASKS, pocket.MASK_RCNN,
            row("mask-rcnn_{}-dconv-c3-c5_fpn_1x_coco", (R50_DCN, R101_DCN)),
            row("mask-rcnn_r50-dconv-c3-c5_fpn_amp-1x_coco", R50_DCN, change(amp=True))),
    *family("dcn", cascade_rcnn, BOXES, pocket.CASCADE_RCNN,
            row("cascade-rcnn_{}-dconv-c3-c5_fpn_1x_coco", (R50_DCN, R101_DCN))),
    *family("dcn", cascade_mask_rcnn, MASKS, pocket.CASCADE_MASK_RCNN,
            row("cascade-mask-rcnn_{}-dconv-c3-c5_fpn_1x_coco", (R50_DCN, R101_DCN, X101_DCN))),
]
