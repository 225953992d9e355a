"""Group normalisation: Wu & He, "Group normalization", 2018; and He et al., "Rethinking ImageNet pre-training", 2019.

Batch norm measures mean and variance over the images of a batch. Detectors train with one or two images a GPU, too
few to measure anything, and therefore keep the pretrained statistics frozen. Group norm measures over groups of
channels of a single image instead, so the batch may have any size, and the norm can train like everything else. It
then pays to have it everywhere: in the backbone, in the pyramid, and in a box head of four convolutions and one layer
in place of two layers. With a norm that trains, the detector can even start from random weights (2019), given time.
"""
from __future__ import annotations

from functools import partial

from detcore.layers.conv import ConvBlock
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.mask_rcnn import mask_rcnn

# The box head of section 4.2 of the first paper; its groups are 32 (`detcore.layers.conv.GROUPS`).
BOX_CONVS = 4

gn_faster_rcnn = partial(faster_rcnn, block=partial(ConvBlock, norm="gn"), box_convs=BOX_CONVS)
gn_mask_rcnn = partial(mask_rcnn, block=partial(ConvBlock, norm="gn"), box_convs=BOX_CONVS)
