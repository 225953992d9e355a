"""Convolution whose taps are moved by offsets (deformable convolution, guided anchoring, CentripetalNet)."""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
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
