"""Weight standardisation: Qiao et al., "Micro-batch training with batch-channel normalization and weight
standardization", 2019.

Norms tame activations; weight standardisation tames what makes them. Before each use, a convolution's weights are
shifted and scaled so that every output channel's filter has mean zero and variance one. That smooths the loss like
batch norm does, without looking at the batch, and so closes group norm's gap to batch norm with large batches. It is a
convolution of its own kind; backbone, pyramid and heads use it with group norm.
"""
from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from detcore.layers.conv import ConvBlock
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.methods.group_norm import BOX_CONVS
from detcore.methods.mask_rcnn import mask_rcnn

EPSILON = 1e-5


class WSConv2d(nn.Conv2d):
    """A convolution whose filters are standardised at each use (equation 5)."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        deviation = self.weight.flatten(1).std(1)[:, None, None, None]
        weight = (self.weight - mean) / (deviation + EPSILON)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


ws_block = partial(ConvBlock, norm="gn", conv=WSConv2d)
ws_faster_rcnn = partial(faster_rcnn, block=ws_block, box_convs=BOX_CONVS)
ws_mask_rcnn = partial(mask_rcnn, block=ws_block, box_convs=BOX_CONVS)
