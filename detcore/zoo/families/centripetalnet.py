"""CentripetalNet."""
from dataclasses import replace

from detcore.backbones.hourglass import Hourglass
from detcore.data.augment import CornerCrop, PhotometricDistortion
from detcore.data.transforms import AsFloat, Flip, Resize
from detcore.data.tta import TestTimeAugmentation
from detcore.methods.centripetalnet import centripetalnet
from detcore.pocket.profile import Pocket, training
from detcore.pocket.slim import SLIM_HOURGLASS
from detcore.recipe import TORCHVISION, Adam, Recipe, Schedule
from detcore.zoo.entries import Backbone, family, row

HOURGLASS104 = Backbone("Hourglass-104 (from scratch)", "none",
                        Hourglass, None, replace(TORCHVISION, pad_to=1, canvas=128), SLIM_HOURGLASS)
TTA = TestTimeAugmentation(sigma=0.5)

MODELS = family(
    "centripetalnet", centripetalnet,
    Recipe(optimizer=Adam(lr=5e-4), clip_norm=35.0, epochs=210, batch_size=96, batch_per_gpu=6,
           schedule=Schedule((190,), 210, warmup_factor=1 / 3),
           train_transforms=(PhotometricDistortion(), CornerCrop(), Resize((511, 511), keep_ratio=False), Flip()),
           test_transforms=(AsFloat(),), tta=TTA),
    Pocket(dict(pooling=16), training(160, tta=TTA)),
    row("centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco", HOURGLASS104))
