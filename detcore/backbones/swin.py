"""Swin Transformer: Liu et al., "Swin transformer: hierarchical vision transformer using shifted windows", 2021.

Attention inside small windows costs as much as the image has pixels, not their square. Every second block shifts the
windows by half their size, so that neighbours in different windows meet. Stages halve the map and double its channels,
as a ResNet's do.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from detcore.layers.transformer import FeedForward

PATCH = 4  # side of the first cells, in pixels
MLP_RATIO = 4
DROP_PATH = 0.3  # share of the last block's branches left out in training; it rises linearly from zero
BLOCKED = -100.0  # what is added where a shifted window joins opposite borders of the map

# Names in the files of Swin's authors, and here.
NAMES = {r"^layers\.": "stages.", r"\.attn\.(?!w_msa)": ".attn.w_msa.", r"\.mlp\.fc1\.": ".ffn.layers.0.0.",
         r"\.mlp\.fc2\.": ".ffn.layers.1.", r"^patch_embed\.proj\.": "patch_embed.projection."}


class Size(NamedTuple):
    """Channels of the first stage, depth and heads of each stage, side of the windows in cells."""

    channels: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int


SWIN_T = Size(96, (2, 2, 6, 2), (3, 6, 12, 24), 7)
SWIN_S = Size(96, (2, 2, 18, 2), (3, 6, 12, 24), 7)
SWIN_B = Size(128, (2, 2, 18, 2), (4, 8, 16, 32), 12)
SWIN_L = Size(192, (2, 2, 18, 2), (6, 12, 24, 48), 12)


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """[N, H, W, C] with zeros at bottom and right, so that both sides are multiples."""
    return F.pad(x, (0, 0, 0, -x.shape[2] % multiple, 0, -x.shape[1] % multiple))


def window_partition(x: Tensor, side: int) -> Tensor:
    """[N, H, W, C] as [N * windows, side * side, C]."""
    x = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def window_reverse(x: Tensor, height: int, width: int, side: int) -> Tensor:
    """[N, H, W, C] from what `window_partition` made of it, [N * windows, side * side, C]."""
    x = x.view(-1, height // side, width // side, side, side, x.shape[-1])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


class WindowAttention(nn.Module):
    """Attention among the cells of a window, with a learned bias for each distance between two (section 3.2)."""

    relative_position_index: Tensor

    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads, span = heads, 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.zeros(span * span, heads))
        cells = torch.arange(window)
        distance = cells[:, None] - cells + window - 1  # [from, to], along one axis
        index = distance[:, None, :, None] * span + distance[None, :, None, :]  # [y, x, to y, to x]
        self.register_buffer("relative_position_index", index.reshape(window**2, window**2))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[N * windows, cells, C] of the same shape; mask: [windows, 1, cells, cells], added to the logits."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask).repeat(len(x) // len(mask), 1, 1, 1)
        out = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype).expand(len(x), -1, -1, -1))
        return self.proj(out.transpose(1, 2).flatten(2))


class ShiftedWindows(nn.Module):
    """Attention in windows of a map, `shift` cells further than the map's corner (figure 4).

    The map is rolled, so that the windows at its end hold cells of both borders, which must not see each other.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int):
        super().__init__()
        self.window, self.shift = window, shift
        self.w_msa = WindowAttention(channels, heads, window)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] of the same shape."""
        height, width = x.shape[1:3]
        x = pad_to(x, self.window)
        size, mask = (x.shape[1], x.shape[2]), None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = self.attention_mask(size, x.device)
        x = window_reverse(self.w_msa(window_partition(x, self.window), mask), *size, self.window)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def attention_mask(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """[windows, 1, cells, cells]: zero between cells of one region before rolling, else `BLOCKED`; size: (h, w)."""
        def regions(n: int) -> Tensor:
            cells = torch.arange(n, device=device)
            return (cells >= n - self.window).int() + (cells >= n - self.shift).int()

        region = regions(size[0])[:, None] * 3 + regions(size[1])
        region = window_partition(region[None, :, :, None], self.window)[..., 0]
        return (region[:, None, :, None] != region[:, None, None, :]) * BLOCKED


class SwinBlock(nn.Module):
    """Attention in windows, then two layers for each cell, each behind a norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, window: int, shift: int, drop: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = ShiftedWindows(channels, heads, window, shift)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = FeedForward(channels, MLP_RATIO * channels, act=nn.GELU)
        self.drop = StochasticDepth(drop, "row")

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] of the same shape."""
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.ffn(self.norm2(x)))


class PatchMerging(nn.Module):
    """Four cells become one of twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] to [N, H / 2, W / 2, 2 C], rounded up."""
        x = pad_to(x, 2).unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        return self.reduction(self.norm(x.permute(0, 1, 3, 5, 2, 4).flatten(3)))  # the four of a channel side by side


class SwinStage(nn.Module):
    """Blocks with regular and shifted windows by turns, then the next stage's smaller map."""

    def __init__(self, channels: int, heads: int, window: int, drops: Sequence[float], last: bool):
        super().__init__()
        self.blocks = nn.ModuleList([SwinBlock(channels, heads, window, window // 2 * (i % 2), drop)
                                     for i, drop in enumerate(drops)])
        self.downsample = None if last else PatchMerging(channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map [N, H, W, C] that the blocks give, and what the next stage starts from."""
        for block in self.blocks:
            x = block(x)
        return x, x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """Cells of 4 x 4 pixels."""

    def __init__(self, channels: int):
        super().__init__()
        self.projection = nn.Conv2d(3, channels, PATCH, PATCH)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] to [N, H / 4, W / 4, C], rounded up."""
        x = F.pad(x, (0, -x.shape[3] % PATCH, 0, -x.shape[2] % PATCH))
        return self.norm(self.projection(x).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """Four stages; gives the maps of all, each behind a norm.

    Args:
        drop: share of the last block's branches left out in training.
    """

    added = ("norm0.", "norm1.", "norm2.", "norm3.")  # layers that a classifier does not have

    def __init__(self, size: Size, *, drop: float = DROP_PATH):
        super().__init__()
        self.channels = tuple(size.channels * 2**i for i in range(len(size.depths)))
        self.patch_embed = PatchEmbed(size.channels)
        total, first, stages = sum(size.depths), 0, []
        for channels, depth, heads in zip(self.channels, size.depths, size.heads):
            drops = [drop * i / max(total - 1, 1) for i in range(first, first + depth)]
            first += depth
            stages.append(SwinStage(channels, heads, size.window, drops, last=first == total))
        self.stages = nn.ModuleList(stages)
        for i, channels in enumerate(self.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps [N, channels[i], H / s, W / s], s = 4, 8, 16, 32, rounded up."""
        x, out = self.patch_embed(x), []
        for i, stage in enumerate(self.stages):
            stage_map, x = stage(x)
            out.append(getattr(self, f"norm{i}")(stage_map).permute(0, 3, 1, 2).contiguous())
        return tuple(out)

    @staticmethod
    def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of a file of Swin's authors, or of this class, as this class has them."""
        out = {}
        for name, value in state.items():
            if name.endswith("attn_mask"):  # made anew for each size of image
                continue
            if name.startswith("layers.") and ".downsample." in name:  # [..., x, y, channel] in their files
                value = value.unflatten(-1, (2, 2, -1)).transpose(-1, -3).flatten(-3)
            for theirs, ours in NAMES.items():
                name = re.sub(theirs, ours, name)
            out[name] = value
        return out
