"""Deformable convolution: Dai et al., "Deformable convolutional networks", 2017; modulated in Zhu et al., 2019.

The taps of a convolution stand on a rigid grid. Here each tap is moved by an offset of its own, different at every
place, that a small convolution reads off the same features; so the receptive field takes the object's shape. The
modulated version (DCNv2) also weighs every tap between 0 and 1.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from detcore.errors import UsageError


def deform_conv(x: Tensor, offsets: Tensor, weight: Tensor, mask: Tensor | None = None, *, stride: int = 1,
                padding: int = 1, dilation: int = 1) -> Tensor:
    """Convolution whose taps are moved by offsets (2017, equation 2; 2019, equation 1).

    Args:
        x: [N, C, H, W]; weight: [O, C / groups, k, k].
        offsets: [N, G * k * k * 2, h, w] in cells, (y, x) of each tap in turn, for each of G groups of channels.
        mask: [N, G * k * k, h, w], the weight of each tap; None: 1.

    Raises:
        UsageError: the channels of `offsets` or `mask` do not fit the kernel.
    """
    taps = weight.shape[2] * weight.shape[3]
    groups, rest = divmod(offsets.shape[1], 2 * taps)
    if rest or not groups:
        raise UsageError(f"A deformable convolution of {taps} taps needs {2 * taps} offset channels (or a multiple of "
                         f"them), not {offsets.shape[1]}.")
    if mask is not None and mask.shape[1] != groups * taps:
        raise UsageError(f"A deformable convolution of {taps} taps and {groups} groups of offsets needs "
                         f"{groups * taps} mask channels, not {mask.shape[1]}.")
    # Positions need float32; the result goes back to the features' own type.
    with torch.autocast(x.device.type, enabled=False):
        conv = _sampled_conv if x.device.type == "cpu" else deform_conv2d
        out = conv(x.float(), offsets.float(), weight.float(), None, stride, padding, dilation,
                   None if mask is None else mask.float())
    return out.to(x.dtype)


def _sampled_conv(x: Tensor, offsets: Tensor, weight: Tensor, bias: None, stride: int, padding: int, dilation: int,
                  mask: Tensor | None) -> Tensor:
    """`deform_conv2d` by sampling all taps, then a matrix product: ten times as fast on the CPU, with more memory."""
    n, channels, height, width = x.shape
    h, w, k = offsets.shape[2], offsets.shape[3], weight.shape[2]
    offsets = offsets.reshape(-1, k, k, 2, h, w)
    tap = torch.arange(k, device=x.device) * dilation - padding
    y = offsets[..., 0, :, :] + tap[:, None, None, None] + torch.arange(h, device=x.device)[:, None] * stride
    x_at = offsets[..., 1, :, :] + tap[:, None, None] + torch.arange(w, device=x.device) * stride
    # `grid_sample` counts from -1 to 1, from border to border.
    grid = torch.stack([(2 * x_at + 1) / width - 1, (2 * y + 1) / height - 1], -1).view(len(offsets), -1, w, 2)
    taps = F.grid_sample(x.reshape(len(offsets), -1, height, width), grid, align_corners=False)
    if mask is not None:
        taps = taps * mask.reshape(len(offsets), 1, -1, w)
    columns = taps.reshape(n, channels // weight.shape[1], -1, h * w)
    return (weight.reshape(columns.shape[1], -1, columns.shape[2]) @ columns).view(n, -1, h, w)


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
