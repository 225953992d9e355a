"""EfficientNet: RetinaNet on EfficientNet-B3."""
from dataclasses import replace

from detcore.backbones.efficientnet import EfficientNet
from detcore.data.transforms import Flip, RandomCrop, Resize, ScaleJitter
from detcore.methods.efficientnet import efficientnet_retinanet
from detcore.pocket.profile import Pocket, training
from detcore.pocket.slim import SLIM_EFFICIENTNET
from detcore.recipe import SGD, TORCHVISION, Recipe, Schedule
from detcore.zoo.entries import Backbone, family, row
from detcore.zoo.recipes import change

EFFICIENTNET_B3 = Backbone(
    "EfficientNet-B3", "TensorFlow", EfficientNet, "https://download.openmmlab.com/mmclassification/v0/efficientnet/"
    "efficientnet-b3_3rdparty_8xb32-aa_in1k_20220119-5b4887a0.pth", slim=SLIM_EFFICIENTNET)

MODELS = family(
    "efficientnet", efficientnet_retinanet,
    Recipe(optimizer=SGD(lr=0.04, norm_decay_mult=0.0), batch_size=32, batch_per_gpu=4,
           schedule=Schedule(warmup_iters=1000, warmup_factor=0.1),
           train_transforms=(ScaleJitter((896, 896), (0.8, 1.2)), RandomCrop((896, 896)), Flip()),
           test_transforms=(Resize((896, 896)),)),
    Pocket(dict(width=48, depth=2, anchor_scale=2), training(180)),
    row("retinanet_effb3_fpn_8xb4-crop896-1x_coco", EFFICIENTNET_B3,
        change(preprocess=replace(TORCHVISION, fixed_size=(896, 896)))))
