"""RetinaNet."""
from detcore.methods.retinanet import retinanet
from detcore.pocket import profile as pocket
from detcore.recipe import SGD, Recipe
from detcore.zoo.backbones.resnet import R18, R50, R50_CAFFE, R101, R101_CAFFE, X101, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import LSJ_200E, MULTI_SCALE, MULTI_SCALE_3X, SCHEDULE_2X, SCHEDULE_3X, SCHEDULE_90K, change

MODELS = family(
    "retinanet", retinanet, Recipe(optimizer=SGD(lr=0.01)), pocket.RETINANET,
    row("retinanet_{}_fpn_1x_coco", (R18, R50, R50_CAFFE, R101, R101_CAFFE, *X101)),
    row("retinanet_{}_fpn_2x_coco", (R50, R101, *X101), SCHEDULE_2X),
    row("retinanet_{}_fpn_8xb8-amp-lsj-200e_coco", (R18, R50, R101), LSJ_200E),
    row("retinanet_{}_fpn_ms-640-800-3x_coco", (R50, R101, X101_64X4D), MULTI_SCALE_3X),
    row("retinanet_r18_fpn_1xb8-1x_coco", R18, change(optimizer=SGD(lr=0.005), batch_per_gpu=8)),
    row("retinanet_r50_fpn_90k_coco", R50, SCHEDULE_90K),
    row("retinanet_r50_fpn_amp-1x_coco", R50, change(amp=True)),
    row("retinanet_r50-caffe_fpn_ms-1x_coco", R50_CAFFE, MULTI_SCALE),
    row("retinanet_r50-caffe_fpn_ms-2x_coco", R50_CAFFE, MULTI_SCALE, SCHEDULE_2X),
    row("retinanet_{}_fpn_ms-3x_coco", (R50_CAFFE, R101_CAFFE), MULTI_SCALE, SCHEDULE_3X))
