"""Deformable ConvNets v2: modulated deformable convolutions and pooling in two-stage models."""
from detcore.methods.dcn import faster_rcnn_dpool
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import TWO_STAGE, Pocket, training
from detcore.zoo.backbones.deformable import deformed
from detcore.zoo.backbones.resnet import R50
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import BOXES, MASKS, change

R50_DCN2, R50_DCN2_4 = deformed(R50, modulated=True), deformed(R50, modulated=True, offset_groups=4)

MODELS = [
    *family("dcnv2", faster_rcnn, BOXES, pocket.FASTER_RCNN,
            row("faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", R50_DCN2),
            row("faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco", R50_DCN2_4)),
    *family("dcnv2", faster_rcnn_dpool, BOXES, Pocket(TWO_STAGE | dict(hidden=96), training(88)),
            row("faster-rcnn_r50_fpn_mdpool_1x_coco", R50, modulated=True)),
    *family("dcnv2", mask_rcnn, MASKS, pocket.MASK_RCNN,
            row("mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", R50_DCN2),
            row("mask-rcnn_r50-mdconv-c3-c5_fpn_amp-1x_coco", R50_DCN2, change(amp=True))),
]
