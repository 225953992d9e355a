"""Group normalisation: Mask R-CNN with it."""
from functools import partial

from detcore.backbones.resnet import ResNet
from detcore.methods.group_norm import gn_mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import CONVS, Pocket, training
from detcore.pocket.slim import SLIM_GN
from detcore.recipe import CAFFE
from detcore.zoo.entries import CONVERTED, Backbone, family, row
from detcore.zoo.recipes import MASKS, SCHEDULE_2X, SCHEDULE_3X

R50_GN = Backbone("ResNet-50 + GN", "Detectron", partial(ResNet, 50, norm="gn"),
                  CONVERTED + "resnet50_gn-9186a21c.pth", CAFFE, SLIM_GN, label="r50")
R101_GN = Backbone("ResNet-101 + GN", "Detectron", partial(ResNet, 101, norm="gn"),
                   CONVERTED + "resnet101_gn-cac0ab98.pth", CAFFE, SLIM_GN, label="r101")
R50_GN_CONTRIB = Backbone("ResNet-50 + GN (contributed)", "PyTorch", partial(ResNet, 50, norm="gn"),
                          CONVERTED + "resnet50_gn_thangvubk-ad1730dd.pth", slim=SLIM_GN, label="r50-contrib")

MODELS = family("gn", gn_mask_rcnn, MASKS, Pocket(CONVS, training(100, rate=1.5e-3, **pocket.MASKS)),
                row("mask-rcnn_{}_fpn_gn-all_2x_coco", (R50_GN, R50_GN_CONTRIB, R101_GN), SCHEDULE_2X),
                row("mask-rcnn_{}_fpn_gn-all_3x_coco", (R50_GN, R50_GN_CONTRIB, R101_GN), SCHEDULE_3X))
