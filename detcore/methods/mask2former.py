"""Mask2Former: Cheng et al., "Masked-attention mask transformer for universal image segmentation", 2022.

MaskFormer's queries look at the whole of one coarse map, which they learn slowly. Here attention is masked: each query
looks only inside the mask that it predicted the layer before. The layers take turns with three maps of a multi-scale
deformable pixel decoder, from coarse to fine, so that small segments are seen too; queries start from learned features
instead of zeros, and look at the image before they look at each other. Cost and loss of a mask are computed at random
points instead of all pixels, more of them where the mask is uncertain, which takes a third of the memory.
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
from detcore.layers.init import init_weights, kaiming_uniform
from detcore.layers.position import sine_positions
from detcore.methods.maskformer import HEADS, OBJECT_SCORE, DecoderLayer, MaskFormer, MaskFormerHead, MaskPredictions
from detcore.ops import boxes as box
from detcore.ops.losses import binary_cross_entropy, dice
from detcore.ops.nms import PostProcess
from detcore.ops.set_matching import Matches, dice_cost, pairwise_mean
from detcore.structures import Images

LEVELS = 3  # maps that the layers take turns with, of stride 32, 16 and 8
SAMPLING_POINTS = 4  # of deformable attention, for each level and head
ENCODER_LAYERS, DECODER_LAYERS = 6, 9
ENCODER_HIDDEN, DECODER_HIDDEN = 1024, 2048  # channels inside a layer's feed-forward part
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0  # section 4.1
# Points at which masks are compared (section 3.3; ratios of PointRend): so many, of which a share is chosen where the
# mask is least certain, from so many times as many; the rest is drawn uniformly.
POINTS, IMPORTANT, OVERSAMPLING = 12544, 0.75, 3.0


class MSDeformPixelDecoder(nn.Module):
    """Multi-scale deformable attention over the three coarser of the backbone's four maps, of so many `channels`; the
    finest one is added at the end (section 4.1). `layers` and `hidden` are of the encoder."""

    def __init__(self, channels: Sequence[int], width: int, *, layers: int = ENCODER_LAYERS,
                 hidden: int = ENCODER_HIDDEN):
        super().__init__()
        coarse_first = list(reversed(channels))
        self.input_convs = nn.ModuleList([ConvBlock(c, width, 1, norm="gn", bias=True, act=None)
                                          for c in coarse_first[:LEVELS]])
        self.encoder = MSDeformEncoder(layers, width, hidden, heads=HEADS, levels=LEVELS, points=SAMPLING_POINTS)
        self.level_encoding = nn.Embedding(LEVELS, width)
        self.lateral_convs = nn.ModuleList([ConvBlock(channels[0], width, 1, norm="gn", act=None)])
        self.output_convs = nn.ModuleList([ConvBlock(width, width, 3, norm="gn")])
        self.mask_feature = nn.Conv2d(width, width, 1)
        init_weights(self, kaiming_uniform)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Pixel embeddings [N, width, H / 4, W / 4], and maps [N, width, h, w] for the queries, coarsest first."""
        maps = [conv(x) for conv, x in zip(self.input_convs, reversed(features))]
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        position = torch.cat([positions(m) + level for m, level in zip(maps, self.level_encoding.weight)], 1)
        cells = self.encoder(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), position, sizes)
        maps = [part.transpose(1, 2).unflatten(2, size)
                for part, size in zip(cells.split([h * w for h, w in sizes], 1), sizes)]
        fine = self.lateral_convs[0](features[0])
        fine = fine + F.interpolate(maps[-1], size=fine.shape[2:], mode="bilinear", align_corners=False)
        return self.mask_feature(self.output_convs[0](fine)), maps


def positions(x: Tensor) -> Tensor:
    """[N, h * w, C] sine positions of the cells of a map [N, C, h, w], padding included."""
    valid = x.new_ones(len(x), *x.shape[2:], dtype=torch.bool)
    return sine_positions(valid, x.shape[1] // 2).flatten(1, 2)


class MaskedAttentionLayer(DecoderLayer):
    """Masked attention to the image, then self-attention of the queries (sections 3.2.1 and 3.2.3)."""

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """As `DecoderLayer`; the mask is `attention_mask`'s."""
        x = self.norms[0](x + self.cross_attn(x, memory, query_pos=query_pos, key_pos=position, mask=mask))
        x = self.norms[1](x + self.self_attn(x, query_pos=query_pos))
        return self.norms[2](x + self.ffn(x))


def attention_mask(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, 1, Q, h * w] bool: where queries with masks [N, Q, H, W] (logits) may look on a map of `size` (h, w);
    everywhere, if their mask is empty there (equation 3, as the authors run it)."""
    small = F.interpolate(masks.detach(), size=size, mode="bilinear", align_corners=False)
    inside = small.flatten(2).sigmoid() >= 0.5
    return (inside | ~inside.any(2, keepdim=True))[:, None]


@dataclass
class RandomPoints:
    """Points at which masks are compared (section 3.3); coordinates are (x, y) in shares of the image, 0 to 1."""

    number: int = POINTS

    def uniform(self, count: int, device: torch.device) -> Tensor:
        """[count, number, 2] anywhere."""
        return torch.rand(count, self.number, 2, device=device)

    def uncertain(self, masks: Tensor) -> Tensor:
        """[m, number, 2] for masks [m, h, w] (logits), mostly where these are uncertain."""
        drawn = torch.rand(len(masks), int(self.number * OVERSAMPLING), 2, device=masks.device)
        chosen = int(self.number * IMPORTANT)
        index = at_points(masks[:, None], drawn)[:, 0].abs().topk(chosen, 1, largest=False).indices
        rest = torch.rand(len(masks), self.number - chosen, 2, device=masks.device)
        return torch.cat([box.gather(drawn, index), rest], 1)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """[N, C, P] what maps [N, C, h, w] hold at points [N, P, 2], between cell centres bilinearly, zero outside."""
    return F.grid_sample(maps, points[:, None] * 2 - 1, align_corners=False)[:, :, 0]


class Mask2FormerHead(MaskFormerHead):
    """Pixel decoder, masked transformer decoder, and the segmentation module before and after each of its layers; masks
    are compared at `mask_points` in training."""

    class_weight, mask_weight, dice_weight = CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT
    void_outside_masks = True

    def __init__(self, pixel_decoder: MSDeformPixelDecoder, num_classes: int, stuff: int, *, points: int = POINTS,
                 **options: Any):
        super().__init__(pixel_decoder, num_classes, stuff, layer=MaskedAttentionLayer, dropout=0.0, **options)
        self.mask_points = RandomPoints(points)

    def add_embeddings(self, queries: int, width: int) -> None:
        """Add the queries' positions, the features that they start from, and what tells the levels apart."""
        super().add_embeddings(queries, width)
        self.query_feat = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(LEVELS, width)

    def forward(self, features: Sequence[Tensor], images: Images) -> list[MaskPredictions]:
        """Predictions before and after each decoder layer, from maps [N, C, h, w], finest first."""
        pixel_embeddings, maps = self.pixel_decoder(features)
        levels = [(m.flatten(2).transpose(1, 2) + level, positions(m), (m.shape[2], m.shape[3]))
                  for m, level in zip(maps, self.level_embed.weight)]
        query_pos, x = (e.weight.expand(len(pixel_embeddings), -1, -1) for e in (self.query_embed, self.query_feat))
        predictions = [self.segment(x, pixel_embeddings)]
        for i, layer in enumerate(self.transformer_decoder.layers):
            memory, position, size = levels[i % LEVELS]
            x = layer(x, query_pos, memory, position, attention_mask(predictions[-1].masks, size))
            predictions.append(self.segment(x, pixel_embeddings))
        return predictions

    def mask_cost(self, masks: list[Tensor], gt_masks: Tensor) -> Tensor:
        """[L, Q, G] cost of giving the masks [G, H, W] of an image's segments to its queries, at uniformly drawn points
        that all masks share."""
        points = self.mask_points.uniform(1, gt_masks.device)
        targets, costs = at_points(gt_masks[None].float(), points)[0], []
        for layer in masks:
            logits = at_points(layer[None].float(), points)[0]
            pixel_cost = pairwise_mean(F.softplus(-logits), F.softplus(logits), targets)  # cross-entropy
            costs.append(self.mask_weight * pixel_cost + self.dice_weight * dice_cost(logits, targets))
        return torch.stack(costs)

    def mask_losses(self, masks: list[Tensor], matched: Matches, gt_masks: Tensor) -> tuple[Tensor, Tensor]:
        """As there, with cross-entropy in place of focal loss, mostly at points where the masks are uncertain."""
        chosen = torch.cat([layer[i, q] for layer, i, q in zip(masks, matched.image, matched.query)]).float()
        with torch.no_grad():
            points = self.mask_points.uncertain(chosen)
            targets = torch.cat([at_points(gt_masks[index][:, None].float(), p)
                                 for index, p in zip(matched.index, points.unflatten(0, (len(masks), -1)))])[:, 0]
        logits = at_points(chosen[:, None], points)[:, 0]
        loss_mask, loss_dice = binary_cross_entropy(logits, targets).mean(1), dice(logits, targets)
        return loss_mask.view(len(masks), -1), loss_dice.view(len(masks), -1)


def mask2former(backbone: ResNet | Swin, num_classes: int = 80, *, stuff: int = 53,
                encoder_layers: int = ENCODER_LAYERS, layers: int = DECODER_LAYERS, width: int = 256,
                encoder_hidden: int = ENCODER_HIDDEN, hidden: int = DECODER_HIDDEN, queries: int = 100,
                points: int = POINTS, object_score: float = OBJECT_SCORE, score_threshold: float = 0.0,
                max_detections: int = 100) -> MaskFormer:
    """Mask2Former; options as in `maskformer`, and:

    Args:
        encoder_layers, layers: of pixel decoder and transformer decoder.
        encoder_hidden, hidden: channels inside their feed-forward parts.
        points: at which masks are compared in training.
    """
    decoder = MSDeformPixelDecoder(backbone.channels, width, layers=encoder_layers, hidden=encoder_hidden)
    head = Mask2FormerHead(decoder, num_classes, stuff, points=points, queries=queries, width=width, layers=layers,
                           hidden=hidden, object_score=object_score,
                           postprocess=PostProcess(score_threshold, max_detections=max_detections))
    return MaskFormer(backbone, head)
