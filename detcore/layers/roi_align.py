"""Features of regions: RoIAlign on the pyramid level that fits each region's size."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


class MultiScaleRoIAlign(nn.Module):
    """RoIAlign from one or several levels (FPN, section 4.2, equation 1).

    A region of FINEST x FINEST pixels or less is read from the first level, one twice as large from the second.

    Args:
        strides: stride of each level that regions are read from. output_size: side of the pooled map.
        sampling_ratio: samples per bin and direction; 0: as many as the bin has cells.
        aligned: half-pixel correct sampling; False is the first version of RoIAlign.
    """

    FINEST = 56

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), output_size: int = 7, *, sampling_ratio: int = 0,
                 aligned: bool = True):
        super().__init__()
        self.strides, self.output_size = tuple(strides), output_size
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """[r, C, s, s] for boxes [r, 4] (x1, y1, x2, y2) in pixels of images [r] (indices into the batch)."""
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1).float()
        if len(self.strides) == 1:
            return self.pool(0, features[0], rois)
        level = self.level(boxes)
        # `shape`, not `len`: exported graphs keep the number of regions open.
        out = features[0].new_zeros(rois.shape[0], features[0].shape[1], self.output_size, self.output_size)
        for i, feature in enumerate(features[:len(self.strides)]):
            here = level == i
            if rois.device.type == "cpu":
                index = here.nonzero()[:, 0]
                out = out.index_copy(0, index, self.pool(i, feature, rois[index]))
            else:
                # Which regions a level has is known on the device alone. Those of other levels shrink to nothing, which
                # takes no samples, so that all levels together cost little more than one.
                mine = rois * torch.cat([torch.ones_like(here)[:, None], here[:, None].expand(-1, 4)], 1)
                out = torch.where(here[:, None, None, None], self.pool(i, feature, mine), out)
        return out

    def level(self, boxes: Tensor) -> Tensor:
        """[r] the pyramid level of each box [r, 4], 0 the finest."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        return torch.log2(side / self.FINEST + 1e-6).floor().clamp(0, len(self.strides) - 1).long()

    def pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        """[r, C, s, s] for rois [r, 5] (image, box in pixels) on one level's map [N, C, H, W]."""
        # Sampling positions need float32; the pooled values go back to the features' own type.
        pooled = roi_align(feature.float(), rois, (self.output_size, self.output_size), 1 / self.strides[level],
                           self.sampling_ratio, self.aligned)
        return pooled.to(feature.dtype)
