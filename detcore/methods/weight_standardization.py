"""Weight standardisation: Qiao et al., "Micro-batch training with batch-channel normalization and weight
standardization", 2019.

Norms tame activations; weight standardisation tames what makes them. Before each use, a convolution's weights are
shifted and scaled so that every output channel's filter has mean zero and variance one. That smooths the loss like
batch norm does, without looking at the batch, and so closes group norm's gap to batch norm with large batches. It is a
convolution of its own kind; backbone, pyramid and heads use it with group norm.
"""
from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.conv import Block, ConvBlock
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.group_norm import BOX_CONVS
from detcore.methods.mask_rcnn import mask_rcnn
from detcore.options import forwards

EPSILON = 1e-5


class WSConv2d(nn.Conv2d):
    """A convolution whose filters are standardised at each use (equation 5)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.flatten(1).std(1)[:, None, None, None]
        weight = (self.weight - mean) / (deviation + EPSILON)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


WS_BLOCK = partial(ConvBlock, norm="gn", conv=WSConv2d)


@forwards(faster_rcnn)
def ws_faster_rcnn(backbone: ResNet, num_classes: int = 80, *, block: Block = WS_BLOCK, box_convs: int = BOX_CONVS,
                   **options: Any) -> TwoStageDetector:
    """Faster R-CNN with standardised weights in pyramid and heads; options as in `faster_rcnn`."""
    return faster_rcnn(backbone, num_classes, block=block, box_convs=box_convs, **options)


@forwards(mask_rcnn)
def ws_mask_rcnn(backbone: ResNet, num_classes: int = 80, *, block: Block = WS_BLOCK, box_convs: int = BOX_CONVS,
                 **options: Any) -> TwoStageDetector:
    """Mask R-CNN with standardised weights in pyramid and heads; options as in `mask_rcnn`."""
    return mask_rcnn(backbone, num_classes, block=block, box_convs=box_convs, **options)
