"""Deformable convolution and RoI pooling: Dai et al., "Deformable convolutional networks", 2017; modulated in Zhu et al.,
"Deformable ConvNets v2", 2019.

The taps of a convolution stand on a rigid grid. In a deformable convolution each tap is moved by an offset of its own,
different at every place, that a small convolution reads off the same features; so the receptive field takes the
object's shape. The second version also weighs every tap between 0 and 1.

RoI pooling cuts a region into a rigid grid of bins. Here the region is pooled once, two small layers read from the
result how far each bin should move, in fractions of the region's size, and it is pooled again with the bins moved:
each bin can go to the part of the object that it should look at. The second version also weighs each bin. Bins are
averages of bilinear samples, so the movement has a gradient and is learned without supervision of its own.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.ops.deform import deform_conv
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.faster_rcnn import FasterRCNN, faster_rcnn

GAMMA = 0.1  # an offset of 1 moves a bin by this share of the region
HIDDEN = 1024


class DeformConv2d(nn.Conv2d):
    """A deformable convolution with the convolution that makes its offsets (2017, section 2.1).

    Args:
        offset_groups: groups of channels that have offsets of their own.
        modulated: weigh the taps too (DCNv2).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0,
                 dilation: int = 1, groups: int = 1, bias: bool = False, *, offset_groups: int = 1,
                 modulated: bool = False):
        super().__init__(in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False)
        self.modulated, self.positions = modulated, offset_groups * kernel**2 * 2
        channels = offset_groups * kernel**2 * (3 if modulated else 2)
        self.conv_offset = nn.Conv2d(in_channels, channels, kernel, stride, padding, dilation)
        self.reset_offsets()

    def reset_offsets(self) -> None:
        """No offsets, and with modulation half weights: training starts from the rigid grid."""
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, O, h, w] of x [N, C, H, W]."""
        offsets, mask = self.conv_offset(x), None
        if self.modulated:
            offsets, mask = offsets[:, :self.positions], offsets[:, self.positions:].sigmoid()
        return deform_conv(x, offsets, self.weight, mask, stride=self.stride[0], padding=int(self.padding[0]),
                           dilation=self.dilation[0])


# Deformable RoI pooling (2017, section 2.2)

def deform_roi_pool(feature: Tensor, rois: Tensor, size: int, scale: float, offsets: Tensor | None = None) -> Tensor:
    """RoIAlign whose bins are moved by offsets; differentiable in the features and in the offsets (equation 5).

    Every bin is a weighted sum of a few cells, so the pooling is one embedding bag: its indices are the cells around
    the bin's samples, its weights their bilinear shares.

    Args:
        feature: [N, C, H, W].
        rois: [r, 5], index of the image and box in pixels; `scale` is cells a pixel.
        offsets: [r, 2, size, size], (x, y) of each bin in units of `GAMMA` times the region's size; None: no offset.

    Returns:
        [r, C, size, size] in float32.
    """
    channels = feature.shape[1]
    boxes = rois[:, 1:].float() * scale - 0.5
    start, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    samples = (extent / size).ceil()  # of a bin in each direction, as in RoIAlign
    most = max(int(samples.max()), 1) if len(rois) else 1
    moved = torch.zeros(len(rois), 2, size, size, device=rois.device) if offsets is None else offsets.float()
    moved = GAMMA * extent[:, :, None, None] * moved

    def axis(i: int, cells: int, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Cells [r, size, size, 2 * most] of one axis (0: x, 1: y) that each bin reads, and their shares."""
        width = extent[:, i, None, None] / size
        step = torch.arange(most, device=rois.device)
        within = (step + 0.5) * (width / samples[:, i, None, None].clamp(min=1))[..., None]
        at = (start[:, i, None, None] + moved[:, i] + bins * width)[..., None] + within
        counts = (step < samples[:, i, None, None, None]) & (at >= -1) & (at <= cells)
        at = at.clamp(0, cells - 1)
        low = at.detach().floor().clamp(max=cells - 1)
        share = at - low
        index = torch.stack([low, (low + 1).clamp(max=cells - 1)], -1).long()
        weight = torch.stack([1 - share, share], -1) * counts[..., None]
        return index.flatten(-2), weight.flatten(-2)

    number = torch.arange(size, device=rois.device)
    n, _, h, w = feature.shape
    column, column_share = axis(0, w, number[None, :].expand(size, size))
    row, row_share = axis(1, h, number[:, None].expand(size, size))
    cell = rois[:, 0].long()[:, None, None, None, None] * (h * w) + row[..., :, None] * w + column[..., None, :]
    share = row_share[..., :, None] * column_share[..., None, :]
    share = share / samples.prod(1).clamp(min=1)[:, None, None, None, None]
    table = feature.float().permute(0, 2, 3, 1).reshape(n * h * w, channels)
    cell, share = (x.flatten(0, 2).flatten(1) for x in (cell, share))  # a row for each bin
    pooled = F.embedding_bag(cell, table, mode="sum", per_sample_weights=share)
    return pooled.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


class DeformRoIPool(nn.Module):
    """Pools regions, reads off how its bins should move, and pools again (figure 4).

    Args:
        channels: of the features; size: side of the pooled map; stride: pixels a cell.
        modulated: weigh the bins too (2019, section 3.2).
    """

    def __init__(self, channels: int, size: int, stride: int, *, modulated: bool = False, hidden: int = HIDDEN):
        super().__init__()
        self.size, self.stride = size, stride
        inputs = channels * size**2
        self.offset_fc = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                       nn.Linear(hidden, 2 * size**2))
        last: list[Any] = [self.offset_fc[-1]]
        if modulated:
            self.mask_fc = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, size**2), nn.Sigmoid())
            last.append(self.mask_fc[-2])
        for layer in last:  # training starts from the rigid grid
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor, rois: Tensor) -> Tensor:
        """[r, C, size, size] of rois [r, 5] on a map [N, C, H, W]."""
        with torch.autocast(feature.device.type, enabled=False):
            x = deform_roi_pool(feature, rois, self.size, 1 / self.stride).flatten(1)
            offsets = self.offset_fc(x).view(-1, 2, self.size, self.size)
            pooled = deform_roi_pool(feature, rois, self.size, 1 / self.stride, offsets)
            if hasattr(self, "mask_fc"):
                pooled = pooled * self.mask_fc(x).view(-1, 1, self.size, self.size)
        return pooled.to(feature.dtype)


class DeformRoIPyramid(MultiScaleRoIAlign):
    """Deformable pooling from several levels, each with layers of its own."""

    def __init__(self, channels: int, strides: Sequence[int] = (4, 8, 16, 32), size: int = 7, *,
                 modulated: bool = False, hidden: int = HIDDEN):
        super().__init__(strides, size)
        self.roi_layers = nn.ModuleList([DeformRoIPool(channels, size, stride, modulated=modulated, hidden=hidden)
                                         for stride in strides])

    def pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        return self.roi_layers[level](feature, rois)


def faster_rcnn_dpool(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = HIDDEN,
                      modulated: bool = False, **options: Any) -> FasterRCNN:
    """Faster R-CNN that pools its regions deformably; options as in `faster_rcnn`."""
    model = faster_rcnn(backbone, num_classes, width=width, hidden=hidden, **options)
    model.roi_head.bbox_roi_extractor = DeformRoIPyramid(width, modulated=modulated, hidden=hidden)
    return model
