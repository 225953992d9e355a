"""Deformable convolution and RoI pooling: Dai et al., "Deformable convolutional networks", 2017; modulated in Zhu et
al., "Deformable ConvNets v2", 2019.

The taps of a convolution stand on a rigid grid. In a deformable convolution each tap is moved by an offset of its own,
different at every place, that a small convolution reads off the same features; so the receptive field takes the
object's shape. The second version also weighs every tap between 0 and 1.

RoI pooling cuts a region into a rigid grid of bins. Here the region is pooled once, two small layers read from the
result how far each bin should move, in fractions of the region's size, and it is pooled again with the bins moved:
each bin can go to the part of the object that it should look at. The second version also weighs each bin. Bins are
averages of bilinear samples, so the movement has a gradient and is learned without supervision of its own.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.detectors import TwoStageDetector
from detcore.layers.roi_align import MultiScaleRoIAlign
from detcore.methods.faster_rcnn import faster_rcnn
from detcore.ops import boxes as box
from detcore.ops.deform import deform_conv
from detcore.options import forwards

GAMMA = 0.1  # an offset of 1 moves a bin by this share of the region
HIDDEN = 1024


class DeformConv2d(nn.Conv2d):
    """A deformable convolution with the convolution that makes its offsets (2017, section 2.1).

    Args:
        offset_groups: groups of channels that have offsets of their own. modulated: weigh the taps too (DCNv2).
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

def deform_roi_pool(feature: Tensor, rois: Tensor, size: int, scale: float, offsets: Tensor | None = None,
                    max_samples: int | None = None) -> Tensor:
    """RoIAlign whose bins are moved by offsets, [r, C, size, size] in float32; differentiable in both (equation 5).

    Every bin is a weighted sum of a few cells, so the pooling is one embedding bag: its indices are the cells around
    the bin's samples, its weights their bilinear shares.

    Args:
        feature: [N, C, H, W]; rois: [r, 5], index of the image and box in pixels; scale: cells a pixel.
        offsets: [r, 2, size, size], (x, y) of each bin in units of `GAMMA` times the region's size; None: no offset.
        max_samples: no bin has more samples; None: they are counted, for which a GPU has to be waited for.
    """
    n, channels, h, w = feature.shape
    boxes = rois[:, 1:].float() * scale - 0.5
    start, extent = boxes[:, :2], box.sizes(boxes)
    samples = (extent / size).ceil().clamp(min=0)  # of a bin in each direction, as in RoIAlign
    total = samples.prod(1)
    if max_samples is None:
        max_samples = max(int(total.max()), 1) if len(rois) else 1
    number = torch.arange(max_samples, device=rois.device)
    across = samples[:, :1].clamp(min=1).long()
    step = torch.stack([number % across, number.div(across, rounding_mode="floor")], 1)  # [r, 2, samples], row by row
    share = (number < total[:, None]) / total.clamp(min=1)[:, None]
    # Where each bin starts, [r, 2, size, size, 1], and the samples after that.
    place = torch.arange(size, device=rois.device)
    place = torch.stack([place.expand(size, size), place[:, None].expand(size, size)])
    bin_size = extent / size
    corner = start[:, :, None, None] + place * bin_size[:, :, None, None]
    if offsets is not None:
        corner = corner + GAMMA * extent[:, :, None, None] * offsets.float()
    within = (step + 0.5) * (bin_size / samples.clamp(min=1))[:, :, None]
    x, y = (corner[..., None] + within[:, :, None, None]).unbind(1)  # [r, size, size, samples]
    share = share[:, None, None] * ((x >= -1) & (x <= w) & (y >= -1) & (y <= h))
    (left, right, to_right), (top, bottom, to_bottom) = _neighbours(x, w), _neighbours(y, h)
    first = rois[:, 0].long()[:, None, None, None] * (h * w)
    cell = torch.stack([first + row * w + column for row in (top, bottom) for column in (left, right)], -1)
    weight = torch.stack([share * a * b for a in (1 - to_bottom, to_bottom) for b in (1 - to_right, to_right)], -1)
    table = feature.float().permute(0, 2, 3, 1).reshape(n * h * w, channels)
    cell, weight = (v.flatten(0, 2).flatten(1) for v in (cell, weight))  # a row for each bin
    pooled = F.embedding_bag(cell, table, mode="sum", per_sample_weights=weight)
    return pooled.view(len(rois), size, size, channels).permute(0, 3, 1, 2)


def _neighbours(position: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells beside positions on an axis, and how far each is from the first of them, in cells."""
    position = position.clamp(0, cells - 1)
    low = position.detach().floor()
    return low.long(), (low + 1).clamp(max=cells - 1).long(), position - low


def samples_bound(height: int, width: int, size: int, max_area: float) -> int:
    """No bin of a region within a map of height x width cells has more samples, if the region has so many cells.

    A region of x by y cells has at most (x / size + 1) (y / size + 1), and x + y is largest where one of them is.
    """
    area = min(max_area, height * width)
    return int(area / size**2 + max(width + area / width, height + area / height) / size + 1.001)


class DeformRoIPool(nn.Module):
    """Pools regions, reads off how its bins should move, and pools again (figure 4).

    Args:
        channels: channels of the features; size: side of the pooled map; stride: pixels a cell.
        modulated: weigh the bins too (2019, section 3.2). hidden: width of the layers.
    """

    def __init__(self, channels: int, size: int, stride: int, *, modulated: bool = False, hidden: int = HIDDEN):
        super().__init__()
        self.size, self.stride, self.modulated = size, stride, modulated
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

    def forward(self, feature: Tensor, rois: Tensor, max_samples: int | None = None) -> Tensor:
        """[r, C, size, size] of rois [r, 5] on a map [N, C, H, W]; max_samples as in `deform_roi_pool`."""
        pool = partial(deform_roi_pool, feature, rois, self.size, 1 / self.stride, max_samples=max_samples)
        with torch.autocast(feature.device.type, enabled=False):
            x = pool().flatten(1)
            pooled = pool(offsets=self.offset_fc(x).view(-1, 2, self.size, self.size))
            if self.modulated:
                pooled = pooled * self.mask_fc(x).view(-1, 1, self.size, self.size)
        return pooled.to(feature.dtype)


class DeformRoIAlign(MultiScaleRoIAlign):
    """Deformable pooling from several levels, each with layers of its own; arguments as in `DeformRoIPool`.

    Regions have to lie in their image.
    """

    def __init__(self, channels: int, strides: Sequence[int] = (4, 8, 16, 32), output_size: int = 7, *,
                 modulated: bool = False, hidden: int = HIDDEN):
        super().__init__(strides, output_size)
        self.roi_layers = nn.ModuleList([
            DeformRoIPool(channels, output_size, stride, modulated=modulated, hidden=hidden) for stride in strides])

    def pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        if rois.device.type == "cpu":
            return self.roi_layers[level](feature, rois)
        # A GPU should not be waited for, so the number of samples is bounded by the regions that a level can have.
        last = level + 1 == len(self.strides)
        area = math.inf if last else (self.FINEST * 2 ** (level + 1) / self.strides[level]) ** 2
        bound = samples_bound(feature.shape[2], feature.shape[3], self.output_size, area)
        return self.roi_layers[level](feature, rois, bound)


@forwards(faster_rcnn, without=["roi_align"])
def faster_rcnn_dpool(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = HIDDEN,
                      modulated: bool = False, **options: Any) -> TwoStageDetector:
    """Faster R-CNN that pools its regions deformably; options as in `faster_rcnn` and `DeformRoIPool`."""
    roi_align = DeformRoIAlign(width, modulated=modulated, hidden=hidden)
    return faster_rcnn(backbone, num_classes, width=width, hidden=hidden, roi_align=roi_align, **options)
