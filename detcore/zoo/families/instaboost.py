"""InstaBoost: Mask and Cascade Mask R-CNN trained on pictures whose objects are moved about."""
from detcore.data.instaboost import InstaBoost
from detcore.data.transforms import Flip, Resize
from detcore.methods.cascade_rcnn import cascade_mask_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.pocket import profile as pocket
from detcore.pocket.profile import with_transforms
from detcore.recipe import Schedule
from detcore.zoo.backbones.resnet import R50, R101, X101_64X4D
from detcore.zoo.entries import family, row
from detcore.zoo.recipes import MASKS, change

INSTABOOST_4X = change(train_transforms=(InstaBoost(), Resize(), Flip()), epochs=48, schedule=Schedule((32, 44), 48))
BACKBONES = (R50, R101, X101_64X4D)

# The objects of half the images are moved.
POCKET = with_transforms(pocket.MASK_RCNN, InstaBoost())
CASCADE_POCKET = with_transforms(pocket.CASCADE_MASK_RCNN, InstaBoost())

MODELS = [
    *family("instaboost", mask_rcnn, MASKS, POCKET,
            row("mask-rcnn_{}_fpn_instaboost-4x_coco", BACKBONES, INSTABOOST_4X)),
    *family("instaboost", cascade_mask_rcnn, MASKS, CASCADE_POCKET,
            row("cascade-mask-rcnn_{}_fpn_instaboost-4x_coco", BACKBONES, INSTABOOST_4X)),
]
