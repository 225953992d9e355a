"""AutoAssign."""
from detcore.methods.autoassign import autoassign
from detcore.pocket.profile import Pocket, training
from detcore.recipe import DETECTRON, SGD, Recipe, Schedule
from detcore.zoo.backbones.resnet import R50_CAFFE
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import change

MODELS = family("autoassign", autoassign,
                Recipe(optimizer=SGD(lr=0.01, norm_decay_mult=0.0), schedule=Schedule(warmup_iters=1000)),
                Pocket(dict(width=48, depth=2), training(250)),
                row("autoassign_r50-caffe_fpn_1x_coco", R50_CAFFE, change(preprocess=DETECTRON)))
