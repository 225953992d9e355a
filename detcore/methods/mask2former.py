"""Mask2Former: Cheng et al., "Masked-attention mask transformer for universal image segmentation", 2022.

MaskFormer's queries look at the whole of one coarse map, which they learn slowly. Here each looks only where it saw its
segment the layer before: attention is masked by the query's own, current mask. The layers take turns with three maps of
a multi-scale deformable pixel decoder, from coarse to fine, so that small segments are seen too; queries start from
learned features instead of zeros, and look at the image before they look at each other. Cost and loss of a mask are
computed at random points instead of all pixels, more of them where the mask is unsure, which takes a third of the
memory.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.resnet import ResNet
from detcore.backbones.swin import Swin
from detcore.layers.conv import ConvBlock
from detcore.layers.deformable_attention import MSDeformEncoder
from detcore.layers.position import sine_positions
from detcore.ops.losses import binary_cross_entropy
from detcore.methods.maskformer import (
    HEADS,
    DecoderLayer,
    MaskFormer,
    MaskFormerHead,
    Segments,
    dice,
    dice_cost,
    init_convolutions,
    pairwise_mean,
)
from detcore.structures import Images

LEVELS = 3  # maps that the queries take turns with, of stride 32, 16 and 8
POINTS = 4  # of deformable attention, for each level and head
ENCODER_LAYERS, DECODER_LAYERS = 6, 9
ENCODER_HIDDEN, DECODER_HIDDEN = 1024, 2048  # channels inside a layer's feed-forward part
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
# Points of a mask (section 3.3).
NUMBER, OVERSAMPLING, IMPORTANT = 12544, 3.0, 0.75


class PixelDecoder(nn.Module):
    """Multi-scale deformable attention over the three coarser maps; the finest one is added at the end (section 3.2.1).

    Args:
        channels: of the backbone's four maps; width: of all that is given.
        layers, hidden: of the encoder.
    """

    def __init__(self, channels: Sequence[int], width: int, *, layers: int = ENCODER_LAYERS,
                 hidden: int = ENCODER_HIDDEN):
        super().__init__()
        coarse_first = list(reversed(channels))
        self.input_convs = nn.ModuleList([ConvBlock(c, width, 1, norm="gn", bias=True, act=None)
                                          for c in coarse_first[:LEVELS]])
        self.encoder = MSDeformEncoder(layers, width, hidden, heads=HEADS, levels=LEVELS, points=POINTS)
        self.level_encoding = nn.Embedding(LEVELS, width)
        self.lateral_convs = nn.ModuleList([ConvBlock(channels[0], width, 1, norm="gn", act=None)])
        self.output_convs = nn.ModuleList([ConvBlock(width, width, 3, norm="gn")])
        self.mask_feature = nn.Conv2d(width, width, 1)
        init_weights(self, kaiming_normal)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Features for masks [N, width, H / 4, W / 4], and maps [N, width, h, w] for the queries, coarsest first."""
        maps = [conv(x) for conv, x in zip(self.input_convs, reversed(features))]
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        position = torch.cat([everywhere(m) + level for m, level in zip(maps, self.level_encoding.weight)], 1)
        x = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        x = self.encoder(x, position, sizes)
        maps = [part.transpose(1, 2).unflatten(2, size) for part, size in zip(x.split([h * w for h, w in sizes], 1),
                                                                              sizes)]
        fine = self.lateral_convs[0](features[0])
        fine = fine + F.interpolate(maps[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.mask_feature(self.output_convs[0](fine)), maps


def everywhere(x: Tensor) -> Tensor:
    """[N, h * w, C] where the cells of a map [N, C, h, w] lie, padding included."""
    valid = x.new_ones(len(x), *x.shape[2:], dtype=torch.bool)
    return sine_positions(valid, x.shape[1] // 2).flatten(1, 2)


class MaskedLayer(DecoderLayer):
    """Queries look at the image, each where its mask is, then at each other (section 3.2.3)."""

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        x = self.norms[0](x + self.cross_attn(x, memory, query_pos=query_pos, key_pos=position, mask=mask))
        x = self.norms[1](x + self.self_attn(x, query_pos=query_pos))
        return self.norms[2](x + self.ffn(x))


def visible(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 1, Q, h * w] bool: where queries with masks [N, Q, H, W] (logits) may look on a map of `size` (h, w).

    A query whose mask is empty there may look everywhere.
    """
    small = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False)
    inside = small.flatten(2).sigmoid() >= 0.5
    return (inside | ~inside.any(2, keepdim=True))[:, None]


@dataclass
class RandomPoints:
    """Where masks are compared (section 3.3); coordinates are (x, y) in shares of the image, 0 to 1.

    Attributes:
        number: of points.
        oversampling: so many times as many are drawn to choose from.
        important: share of the points that is chosen, where the mask is least sure; the rest lies anywhere.
    """

    number: int = NUMBER
    oversampling: float = OVERSAMPLING
    important: float = IMPORTANT

    def anywhere(self, count: int, device: torch.device) -> Tensor:
        """[count, number, 2]."""
        return torch.rand(count, self.number, 2, device=device)

    def unsure(self, masks: Tensor) -> Tensor:
        """[m, number, 2] for masks [m, h, w] (logits)."""
        drawn = torch.rand(len(masks), int(self.number * self.oversampling), 2, device=masks.device)
        chosen = int(self.number * self.important)
        best = at_points(masks[:, None], drawn)[:, 0].abs().topk(chosen, 1, largest=False).indices
        best = drawn.gather(1, best[..., None].expand(-1, -1, 2))
        return torch.cat([best, torch.rand(len(masks), self.number - chosen, 2, device=masks.device)], 1)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """[N, C, P] what maps [N, C, h, w] hold at points [N, P, 2], between cell centres bilinearly, zero outside."""
    return F.grid_sample(maps, points[:, None] * 2 - 1, align_corners=False)[:, :, 0]


class Mask2FormerHead(MaskFormerHead):
    """Pixel decoder, masked transformer decoder, and a class and a mask for each query before and after each layer.

    Attributes:
        mask_points: where masks are compared in training.
    """

    class_weight, mask_weight, dice_weight = CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT
    sharp = True

    def __init__(self, pixel_decoder: PixelDecoder, num_classes: int, stuff: int, *, points: int = NUMBER,
                 **options: Any):
        super().__init__(pixel_decoder, num_classes, stuff, layer=MaskedLayer, dropout=0.0, **options)
        self.mask_points = RandomPoints(points)

    def add_embeddings(self, queries: int, width: int) -> None:
        """Set the features that queries start from, and what tells the levels apart."""
        self.query_feat = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)

    def forward(self, features: Sequence[Tensor], images: Images) -> list[tuple[Tensor, Tensor]]:
        """Before and after each layer, class logits [N, Q, C + 1], the last for nothing, mask logits [N, Q, h, w]."""
        pixels, maps = self.pixel_decoder(features)
        views = []
        for x, level in zip(maps, self.level_embed.weight):
            views.append((x.flatten(2).transpose(1, 2) + level, everywhere(x), (x.shape[2], x.shape[3])))
        query_pos, x = (e.weight.expand(len(pixels), -1, -1) for e in (self.query_embed, self.query_feat))
        found = [self.answer(x, pixels)]
        for i, layer in enumerate(self.transformer_decoder.layers):
            memory, position, size = views[i % LEVELS]
            x = layer(x, query_pos, memory, position, visible(found[-1][1], size))
            found.append(self.answer(x, pixels))
        return found

    def mask_cost(self, masks: Tensor, truth: Segments) -> Tensor:
        """[L, N, Q, G] cost of giving each segment's mask to each query, at points that an image's masks share."""
        points = self.mask_points.anywhere(len(truth.masks), masks.device)
        wanted, cost = at_points(truth.masks.float(), points), []
        for one in masks:
            logits = at_points(one, points)
            pixel = pairwise_mean(F.softplus(-logits), F.softplus(logits), wanted)
            cost.append(self.mask_weight * pixel + self.dice_weight * dice_cost(logits, wanted))
        return torch.stack(cost)

    def mask_losses(self, masks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and dice loss [L, m] of masks [L, m, h, w] that should be `wanted` [m, H, W], at points."""
        layers, flat = len(masks), masks.flatten(0, 1)
        with torch.no_grad():
            points = self.mask_points.unsure(flat)
            # All layers' points of a segment in one row.
            rows = points.unflatten(0, (layers, -1)).transpose(0, 1).flatten(1, 2)
            truth = at_points(wanted[:, None].float(), rows).unflatten(2, (layers, -1))[:, 0].transpose(0, 1)
        logits = at_points(flat[:, None], points)[:, 0].view_as(truth)
        return binary_cross_entropy(logits, truth).mean(2), dice(logits, truth)


def mask2former(backbone: ResNet | Swin, num_classes: int = 80, *, stuff: int = 53,
                encoder_layers: int = ENCODER_LAYERS, layers: int = DECODER_LAYERS, width: int = 256,
                encoder_hidden: int = ENCODER_HIDDEN, hidden: int = DECODER_HIDDEN, **options: Any) -> MaskFormer:
    """Mask2Former.

    Args:
        num_classes, stuff: classes of things and of stuff; without stuff there is no panoptic map.
        encoder_layers, layers: of pixel decoder and transformer decoder.
        width: channels of both; encoder_hidden, hidden: inside their feed-forward parts.
        options: as in `Mask2FormerHead` and `MaskFormerHead`.
    """
    decoder = PixelDecoder(backbone.channels, width, layers=encoder_layers, hidden=encoder_hidden)
    return MaskFormer(backbone, Mask2FormerHead(decoder, num_classes, stuff, width=width, layers=layers, hidden=hidden,
                                                **options))
