"""Group normalisation: Wu & He, "Group normalization", 2018; and He et al., "Rethinking ImageNet pre-training", 2019.

Batch norm measures mean and variance over the images of a batch. Detectors train with one or two images a GPU, too
few to measure anything, and therefore keep the pretrained statistics frozen. Group norm measures over groups of
channels of a single image instead, so the batch may have any size, and the norm can train like everything else. It
then pays to have it everywhere: in the backbone, in the pyramid, and in a box head of four convolutions and one layer
in place of two layers. With a norm that trains, the detector can even start from random weights (2019), given time.
"""
from __future__ import annotations

from functools import partial
from typing import Any

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.conv import Block, ConvBlock
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.options import forwards

# The box head of section 4.2 of the first paper; its groups are 32 (`detcore.layers.conv.GROUPS`).
BOX_CONVS = 4

GN_BLOCK = partial(ConvBlock, norm="gn")


@forwards(faster_rcnn)
def gn_faster_rcnn(backbone: ResNet, num_classes: int = 80, *, block: Block = GN_BLOCK, box_convs: int = BOX_CONVS,
                   **options: Any) -> TwoStageDetector:
    """Faster R-CNN with group norm in pyramid and heads; options as in `faster_rcnn`."""
    return faster_rcnn(backbone, num_classes, block=block, box_convs=box_convs, **options)


@forwards(mask_rcnn)
def gn_mask_rcnn(backbone: ResNet, num_classes: int = 80, *, block: Block = GN_BLOCK, box_convs: int = BOX_CONVS,
                 **options: Any) -> TwoStageDetector:
    """Mask R-CNN with group norm in pyramid and heads; options as in `mask_rcnn`."""
    return mask_rcnn(backbone, num_classes, block=block, box_convs=box_convs, **options)
