"""SSD at the size of the pocket profile, which several families share."""
from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from detcore.backbones.vgg import SSDVGG
from detcore.detectors import OneStageDetector
from detcore.layers.init import init_weights
from detcore.methods.ssd import SIX, Extra, SSDLayout, ssd
from detcore.options import forwards
from detcore.pocket.profile import Pocket, training

HEAD_STD = 0.003
LAYOUT = SSDLayout((Extra(64), Extra(64)), strides=(8, 16, 32, 64), sizes=(14, 30, 52, 80, 115), ratios=(SIX,) * 4)


@forwards(ssd)
def small_ssd(backbone: SSDVGG, num_classes: int, **options: Any) -> OneStageDetector:
    """SSD with small first weights in its head.

    VGG's features are large, so the first losses are, and a short training has no time to recover from them.
    """
    model = ssd(backbone, num_classes, **options)
    init_weights(model.get_submodule("bbox_head"), partial(nn.init.normal_, std=HEAD_STD))
    return model


SSD = Pocket(dict(layout=LAYOUT), training(250, rate=1e-3), builder=small_ssd)
