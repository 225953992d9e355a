"""Features of regions: RoIAlign on the pyramid level that fits each region's size."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align


class RoIPyramid(nn.Module):
    """RoIAlign from one or several levels (FPN, section 4.2, equation 1).

    A region of FINEST x FINEST pixels or less is read from the first level, one twice as large from the second.

    Args:
        strides: stride of each level that regions are read from.
        size: side of the pooled map.
        sampling: samples per bin and direction; 0: as many as the bin has pixels.
        aligned: half-pixel correct sampling; False is the first version of RoIAlign.
    """

    FINEST = 56

    def __init__(self, strides: Sequence[int] = (4, 8, 16, 32), size: int = 7, *, sampling: int = 0,
                 aligned: bool = True):
        super().__init__()
        self.strides, self.size, self.sampling, self.aligned = tuple(strides), size, sampling, aligned

    def forward(self, features: Sequence[Tensor], boxes: Tensor, image: Tensor) -> Tensor:
        """[r, C, size, size] for boxes [r, 4] in pixels of images [r] (indices into the batch)."""
        rois = torch.cat([image[:, None].to(boxes.dtype), boxes], 1).float()
        if len(self.strides) == 1:
            return self.pool(0, features[0], rois)
        level = self.level(boxes)
        out = features[0].new_zeros(rois.shape[0], features[0].shape[1], self.size, self.size)
        for i, feature in enumerate(features[:len(self.strides)]):
            here = (level == i).nonzero()[:, 0]
            out = out.index_copy(0, here, self.pool(i, feature, rois[here]))
        return out

    def level(self, boxes: Tensor) -> Tensor:
        """[r] the pyramid level of each box, 0 the finest."""
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp(min=0).sqrt()
        return torch.log2(side / self.FINEST + 1e-6).floor().clamp(0, len(self.strides) - 1).long()

    def pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        """[r, C, size, size] for rois [r, 5] (image, box in pixels) on one level's map [N, C, H, W]."""
        # Sampling positions need float32; the pooled values go back to the features' own type.
        pooled = roi_align(feature.float(), rois, (self.size, self.size), 1 / self.strides[level], self.sampling,
                           self.aligned)
        return pooled.to(feature.dtype)
