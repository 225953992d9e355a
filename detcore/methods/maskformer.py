"""MaskFormer: Cheng et al., "Per-pixel classification is not all you need for semantic segmentation", 2021.

Semantic segmentation classifies pixels, instance segmentation classifies masks. MaskFormer does both in the second way.
A fixed number of learned queries look at the image through a transformer decoder; each ends as a class, which may be
"nothing", and as a vector, whose product with every pixel's features is a mask. Matching queries one to one with the
segments of the truth, objects and stuff alike, makes it a loss over sets, as DETR's, without any box. What a query
claims for itself then decides, pixel by pixel, which segment of the panoptic map it belongs to.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from detcore.backbones.resnet import ResNet
from detcore.backbones.swin import Swin
from detcore.errors import UsageError
from detcore.layers.conv import ConvBlock
from detcore.layers.position import not_padding, sine_positions
from detcore.layers.transformer import Attention, FeedForward, Layers
from detcore.ops.losses import focal, reduce_mean
from detcore.ops.masks import bitmaps
from detcore.ops.matching import hungarian, used
from detcore.structures import IGNORED, INSTANCE, Detections, Images, Target

HEADS = 8
ENCODER_LAYERS, DECODER_LAYERS = 6, 6
HIDDEN = 2048  # channels inside a layer's feed-forward part
DROPOUT = 0.1
# Losses (section 3.3); queries that stand for nothing are many and count less.
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 1.0, 20.0, 1.0
NOTHING_WEIGHT = 0.1
ALPHA, GAMMA = 0.25, 2.0
EPS = 1e-12
# Inference (section 3.4).
DETECTIONS = 100
OBJECT_SCORE = 0.8  # a query that is less sure of its class claims no pixel
VISIBLE = 0.8  # a segment that keeps less of its mask than this share is dropped


# Pixel decoders: from the backbone's maps to features of stride 4 for the masks, and a map for the queries to look at.

class _Climb(nn.Module):
    """From the coarsest map to the finest: double the size, add the backbone's map, convolve (section 4.2)."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList([ConvBlock(c, width, 1, norm="gn", act=None) for c in channels[:-1]])
        self.output_convs = nn.ModuleList([ConvBlock(width, width, 3, norm="gn") for _ in channels[:-1]])

    def climb(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """[N, width, H / 4, W / 4] from x of the coarsest map's size."""
        for feature, lateral, output in reversed(list(zip(features, self.lateral_convs, self.output_convs))):
            x = output(lateral(feature) + F.interpolate(x, size=feature.shape[2:], mode="nearest"))
        return x


class PyramidPixelDecoder(_Climb):
    """A light feature pyramid; the queries look at the backbone's last map."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__(channels, width)
        self.last_feat_conv = ConvBlock(channels[-1], width, 3, norm="gn")
        self.mask_feature = nn.Conv2d(width, width, 3, padding=1)
        init_weights(self, kaiming_normal)

    def forward(self, features: Sequence[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """Features for masks [N, width, H / 4, W / 4], and the map for the queries [N, C, h, w]."""
        return self.mask_feature(self.climb(self.last_feat_conv(features[-1]), features)), features[-1]


class EncoderLayer(nn.Module):
    """Self-attention, then two layers for each cell, each with a shortcut and a norm."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = Attention(width, HEADS, dropout)
        self.ffn = FeedForward(width, hidden, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        x = self.norms[0](x + self.self_attn(x, query_pos=position, mask=mask))
        return self.norms[1](x + self.ffn(x))


class TransformerPixelDecoder(_Climb):
    """The same pyramid on top of a transformer encoder of the last map, which the queries look at too."""

    def __init__(self, channels: Sequence[int], width: int, *, layers: int = ENCODER_LAYERS, hidden: int = HIDDEN,
                 dropout: float = DROPOUT):
        super().__init__(channels, width)
        self.mask_feature = nn.Conv2d(width, width, 3, padding=1)
        self.encoder = Layers([EncoderLayer(width, hidden, dropout) for _ in range(layers)])
        self.encoder_in_proj = nn.Conv2d(channels[-1], width, 1)
        self.encoder_out_proj = ConvBlock(width, width, 3, norm="gn")
        init_weights(self, kaiming_normal)

    def forward(self, features: Sequence[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """As `PyramidPixelDecoder`; valid: [N, h, w] bool, cells of the last map that are not padding."""
        x = self.encoder_in_proj(features[-1])
        size, position = x.shape[2:], sine_positions(valid, x.shape[1] // 2).flatten(1, 2)
        x = x.flatten(2).transpose(1, 2)
        for layer in self.encoder.layers:
            x = layer(x, position, valid.flatten(1)[:, None, None])
        memory = x.transpose(1, 2).unflatten(2, size)
        return self.mask_feature(self.climb(self.encoder_out_proj(memory), features)), memory


def init_convolutions(network: nn.Module) -> None:
    """Uniform weights that keep the variance, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


# Ground truth.

@dataclass
class Segments:
    """What is to be found in a batch: each image's objects, then the classes of stuff that it shows.

    Attributes:
        labels: [N, G]; masks: [N, G, H, W] uint8 over the padded images; valid: [N, G], which entries are real.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor


def segments(targets: list[Target], images: Images, things: int, stuff: int) -> Segments:
    """Ground truth of a batch.

    Args:
        things, stuff: number of classes of either kind; without stuff, class maps are not looked at.

    Raises:
        UsageError: a target has no masks, or no class map though there is stuff.
    """
    height, width = images.tensor.shape[2:]
    masks = [F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1]))
             for m in bitmaps([t.masks for t in targets], images.tensor.device)]
    labels = [t.labels for t in targets]
    if stuff:
        if any(t.semantic is None for t in targets):
            raise UsageError("This model finds stuff too, but its targets have no class map: load the data with its "
                             "panoptic annotations.")
        maps = torch.stack([t.semantic for t in targets])  # type: ignore[misc]
        seen = torch.zeros(len(maps), max(IGNORED, things + stuff) + 1, dtype=torch.bool, device=maps.device)
        seen = seen.scatter(1, maps.flatten(1), True)[:, things:things + stuff]
        for i, row in enumerate(seen.tolist()):
            shown = labels[i].new_tensor([things + c for c, there in enumerate(row) if there])
            labels[i] = torch.cat([labels[i], shown])
            masks[i] = torch.cat([masks[i], (maps[i] == shown[:, None, None]).to(masks[i].dtype)])
    counts = torch.tensor([len(x) for x in labels]).to(labels[0].device, non_blocking=True)
    if max(len(x) for x in labels) == 0:  # one empty slot
        labels = [x.new_zeros(1) for x in labels]
        masks = [x.new_zeros(1, height, width) for x in masks]
    padded = pad_sequence(labels, batch_first=True)
    valid = torch.arange(padded.shape[1], device=counts.device) < counts[:, None]
    return Segments(padded, pad_sequence(masks, batch_first=True), valid)


# Costs of a match, for logits [..., Q, P] of the queries and truth [..., G, P] at the same P places: [..., Q, G].

def focal_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean focal loss, which stays finite for what is all but impossible."""
    p = logits.sigmoid()
    hit, miss = -ALPHA * (p + EPS).log() * (1 - p) ** GAMMA, -(1 - ALPHA) * (1 - p + EPS).log() * p**GAMMA
    return pairwise_mean(hit, miss, truth)


def pairwise_mean(hit: Tensor, miss: Tensor, truth: Tensor) -> Tensor:
    """Mean over places of `hit` [..., Q, P] where the truth [..., G, P] is one, and of `miss` where it is zero."""
    return (hit @ truth.transpose(-1, -2) + miss @ (1 - truth).transpose(-1, -2)) / truth.shape[-1]


def dice_cost(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss."""
    p = logits.sigmoid()
    total = p.sum(-1)[..., None] + truth.sum(-1)[..., None, :]
    return 1 - (2 * p @ truth.transpose(-1, -2) + 1) / (total + 1)


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """One minus twice the overlap over the sum of the areas, [...] from [..., P] each; 1 is added to both."""
    p = logits.sigmoid()
    return 1 - (2 * (p * truth).sum(-1) + 1) / (p.sum(-1) + truth.sum(-1) + 1)


def full_mask_losses(masks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss [m] of masks [m, h, w] (logits), enlarged to the resolution of `wanted` [m, H, W]."""
    wanted = wanted.float()
    masks = F.interpolate(masks[:, None], size=wanted.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    return focal(masks, wanted, ALPHA, GAMMA).mean((1, 2)), dice(masks.flatten(1), wanted.flatten(1))


# The head.

class DecoderLayer(nn.Module):
    """Queries look at each other, then at the image, then each thinks for itself."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(width, HEADS, dropout), Attention(width, HEADS, dropout)
        self.ffn = FeedForward(width, hidden, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """[N, Q, C]; `mask` as in `Attention`, of the view of memory [N, K, C] at positions [N, K, C]."""
        x = self.norms[0](x + self.self_attn(x, query_pos=query_pos))
        x = self.norms[1](x + self.cross_attn(x, memory, query_pos=query_pos, key_pos=position, mask=mask))
        return self.norms[2](x + self.ffn(x))


class MaskFormerHead(nn.Module):
    """Pixel decoder, transformer decoder, and a class and a mask for each query (figure 2).

    Args:
        pixel_decoder: gives features for the masks and a map of `memory` channels for the queries.
        memory: None: as many as `width`.
        num_classes, stuff: classes of things and of stuff.
        queries: their number; width: channels; layers, hidden: of the transformer decoder.

    Attributes:
        object_score: a query that is less sure of its class claims no pixel of the panoptic map.
        sharp: pixels that their owner itself holds for outside are void.
    """

    class_weight, mask_weight, dice_weight = CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT
    sharp = False

    def __init__(self, pixel_decoder: nn.Module, num_classes: int, stuff: int, *, memory: int | None = None,
                 queries: int = 100, width: int = 256, layers: int = DECODER_LAYERS, hidden: int = HIDDEN,
                 layer: type[DecoderLayer] = DecoderLayer, dropout: float = DROPOUT,
                 object_score: float = OBJECT_SCORE):
        super().__init__()
        self.num_classes, self.stuff, self.object_score = num_classes, stuff, object_score
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = Layers([layer(width, hidden, dropout) for _ in range(layers)], nn.LayerNorm(width))
        self.decoder_input_proj = nn.Conv2d(memory, width, 1) if memory else None
        self.query_embed = nn.Embedding(queries, width)
        self.add_embeddings(queries, width)
        self.cls_embed = nn.Linear(width, num_classes + stuff + 1)
        self.mask_embed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                                        nn.Linear(width, width))

    def add_embeddings(self, queries: int, width: int) -> None:
        """Set what else is learned beside the queries."""

    def forward(self, features: Sequence[Tensor], images: Images) -> list[tuple[Tensor, Tensor]]:
        """After each layer, class logits [N, Q, C + 1], the last for nothing, and mask logits [N, Q, h, w]."""
        valid = not_padding((features[-1].shape[2], features[-1].shape[3]), images)
        pixels, memory = self.pixel_decoder(features, valid)
        if self.decoder_input_proj:
            memory = self.decoder_input_proj(memory)
        position = sine_positions(valid, memory.shape[1] // 2).flatten(1, 2)
        memory, mask = memory.flatten(2).transpose(1, 2), valid.flatten(1)[:, None, None]
        query_pos = self.query_embed.weight.expand(len(valid), -1, -1)
        x, found = torch.zeros_like(query_pos), []
        for layer in self.transformer_decoder.layers:
            x = layer(x, query_pos, memory, position, mask)
            found.append(self.answer(x, pixels))
        return found

    def answer(self, x: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What queries [N, Q, C] say: class logits [N, Q, C + 1], mask logits [N, Q, h, w]."""
        x = self.transformer_decoder.norm(x)
        return self.cls_embed(x), (self.mask_embed(x) @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])

    # Training (section 3.3): the queries' best match with the truth, after each layer.

    def loss(self, features: Sequence[Tensor], images: Images, truth: Segments) -> dict[str, Tensor]:
        """Losses of the classes and masks after each layer; the last one's names have no prefix."""
        logits, masks = (torch.stack(each).float() for each in zip(*self(features, images)))
        match = self.match(logits, masks, truth)
        classes = self.class_loss(logits, match, truth)
        mask, overlap = self.matched_mask_losses(masks, match, truth)
        losses: dict[str, Tensor] = {}
        for i, values in enumerate(zip(classes, mask, overlap)):
            prefix = "" if i == len(logits) - 1 else f"d{i}."
            losses |= {f"{prefix}loss_{name}": value for name, value in zip(("cls", "mask", "dice"), values)}
        return losses

    @torch.no_grad()
    def match(self, logits: Tensor, masks: Tensor, truth: Segments) -> Tensor:
        """[L, N, Q] index of each query's segment, or BACKGROUND."""
        labels = truth.labels[None, :, None].expand(*logits.shape[:3], -1)
        cost = self.mask_cost(masks, truth) - self.class_weight * logits.softmax(-1).gather(3, labels)
        return hungarian([cost], truth.valid)[0]

    def class_loss(self, logits: Tensor, match: Tensor, truth: Segments) -> Tensor:
        """[L] weighted mean of the cross-entropy over all queries."""
        nothing = logits.shape[-1] - 1
        labels = truth.labels.expand(len(match), -1, -1).gather(2, match.clamp(min=0))
        labels = labels.masked_fill(match < 0, nothing).flatten(1)
        error = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
        weight = torch.where(labels == nothing, NOTHING_WEIGHT, 1.0)
        return self.class_weight * (error * weight).sum(1) / reduce_mean(weight.sum(1))

    def matched_mask_losses(self, masks: Tensor, match: Tensor, truth: Segments) -> tuple[Tensor, Tensor]:
        """Two [L]: what the masks [L, N, Q, h, w] of matched queries lack, by pixel and by overlap.

        Both are a mean over the segments; an image without one still counts one.
        """
        count = reduce_mean(truth.valid.sum(1).clamp(1, match.shape[2]).sum().float())
        slots = truth.labels.shape[1]
        mine = match[:, :, None] == torch.arange(slots, device=match.device)[:, None]  # [L, N, G, Q]
        query, weight = mine.int().argmax(3).flatten(1), (mine.any(3) & truth.valid).flatten(1)
        index = used(truth.valid)
        layer = torch.arange(len(masks), device=index.device)[:, None]
        chosen = masks[layer, index // slots, query[:, index]]
        pixel, overlap = self.mask_losses(chosen, truth.masks.flatten(0, 1)[index])
        pixel, overlap = ((error * weight[:, index]).sum(1) / count for error in (pixel, overlap))
        return self.mask_weight * pixel, self.dice_weight * overlap

    def mask_cost(self, masks: Tensor, truth: Segments) -> Tensor:
        """[L, N, Q, G] cost of giving each segment's mask to each query, at the masks' own resolution."""
        wanted = F.interpolate(truth.masks, size=masks.shape[3:], mode="nearest").flatten(2).float()
        masks = masks.flatten(3)
        return self.mask_weight * focal_cost(masks, wanted) + self.dice_weight * dice_cost(masks, wanted)

    def mask_losses(self, masks: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Focal and dice loss [L, m] of masks [L, m, h, w] that should be `wanted` [m, H, W], at its resolution."""
        # Full masks take much memory: they are made anew in the backward pass, a layer at a time.
        each = [checkpoint(full_mask_losses, one, wanted, use_reentrant=False) for one in masks]
        pixel, overlap = (torch.stack(errors) for errors in zip(*each))
        return pixel, overlap

    # Inference (section 3.4).

    def predict(self, features: Sequence[Tensor], images: Images,
                output_sizes: list[tuple[int, int]] | None) -> list[Detections]:
        """Instances and, where there is stuff, the panoptic map, in `output_sizes` (h, w) or the network's input."""
        logits, masks = self(features, images)[-1]
        masks = resized(masks.float(), (images.tensor.shape[2], images.tensor.shape[3]))
        detections = []
        for scores, mask, (h, w), size in zip(logits.float().softmax(-1), masks, images.sizes,
                                              output_sizes or images.sizes):
            mask = resized(mask[None, :, :h, :w], size)[0]
            found = instances(scores, mask, self.num_classes)
            if self.stuff:
                found.panoptic = panoptic(scores, mask, self.num_classes, self.object_score, self.sharp)
            detections.append(found)
        return detections


def resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits [N, Q, h, w] in another `size` (h, w)."""
    return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)


def instances(scores: Tensor, masks: Tensor, things: int) -> Detections:
    """The best pairs of query and class as detections; a mask that is sure of its pixels counts more.

    Args:
        scores: [Q, C + 1], the last for nothing; masks: [Q, h, w] logits.
        things: so many classes, the first, have instances.
    """
    classes = scores.shape[1] - 1
    best, index = scores[:, :-1].flatten().topk(min(DETECTIONS, len(scores) * classes))
    thing = index % classes < things
    best, index = best[thing], index[thing]
    masks = masks[index // classes]
    inside = masks > 0
    area = inside.flatten(1).sum(1)
    best = best * (masks.sigmoid() * inside).flatten(1).sum(1) / (area + 1e-6)
    best, order = best.sort(descending=True)
    inside = inside[order]
    return Detections(boxes_around(inside), best, (index % classes)[order], inside)


def boxes_around(masks: Tensor) -> Tensor:
    """[n, 4] the smallest box around each mask [n, h, w], zeros around an empty one."""
    sides = []
    for filled in (masks.any(1), masks.any(2)):  # columns, rows
        filled = filled.int()
        sides.append((filled.argmax(1), filled.shape[1] - filled.flip(1).argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float() * masks.flatten(1).any(1)[:, None]


def panoptic(scores: Tensor, masks: Tensor, things: int, object_score: float, sharp: bool) -> Tensor:
    """int64 [h, w] panoptic map: each pixel belongs to the query whose class and mask together are surest there.

    Args:
        scores: [Q, C + 1], the last for nothing; masks: [Q, h, w] logits.
        things: number of classes of things, which come first.
        object_score, sharp: see `MaskFormerHead`.
    """
    void = scores.shape[1] - 1
    (score, label), masks = scores.max(1), masks.sigmoid()
    claims = (label != void) & (score > object_score)
    owner = (score[:, None, None] * masks).masked_fill(~claims[:, None, None], -1).argmax(0)
    held = torch.zeros_like(label).index_add(0, owner.flatten(), torch.ones_like(owner).flatten())
    whole = (masks >= 0.5).flatten(1).sum(1)
    kept = claims & (held > 0) & (whole > 0) & (held / whole >= VISIBLE)
    thing = label < things
    number = (kept & thing).cumsum(0) * thing  # stuff of one class is one segment
    answer = torch.where(kept, label + INSTANCE * number, void)[owner]
    return torch.where(masks.gather(0, owner[None])[0] >= 0.5, answer, void) if sharp else answer


class MaskFormer(nn.Module):
    """Backbone and head; there is no other neck than the pixel decoder."""

    takes_proposals = False

    def __init__(self, backbone: nn.Module, panoptic_head: MaskFormerHead):
        super().__init__()
        self.backbone, self.panoptic_head = backbone, panoptic_head
        self.num_classes = panoptic_head.num_classes

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        return self.backbone(x)

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name."""
        head = self.panoptic_head
        truth = segments(targets, images, head.num_classes, head.stuff)  # it waits for the device: before that is busy
        return head.loss(self.features(images.tensor), images, truth)

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Detections with masks and panoptic map of each image, in `output_sizes` (h, w) or the network's input."""
        return self.panoptic_head.predict(self.features(images.tensor), images, output_sizes)


def maskformer(backbone: ResNet | Swin, num_classes: int = 80, *, stuff: int = 53, encoder_layers: int = ENCODER_LAYERS,
               layers: int = DECODER_LAYERS, width: int = 256, hidden: int = HIDDEN, queries: int = 100,
               dropout: float = DROPOUT, object_score: float = OBJECT_SCORE) -> MaskFormer:
    """MaskFormer.

    Args:
        num_classes, stuff: classes of things and of stuff.
        encoder_layers: of the pixel decoder; without any, the queries look at the backbone's last map.
        layers: of the transformer decoder.
        width, hidden: channels of both, and inside their feed-forward parts.
        dropout: share of a layer's results left out in training.
        object_score: see `MaskFormerHead`.
    """
    decoder = (TransformerPixelDecoder(backbone.channels, width, layers=encoder_layers, hidden=hidden, dropout=dropout)
               if encoder_layers else PyramidPixelDecoder(backbone.channels, width))
    head = MaskFormerHead(decoder, num_classes, stuff, memory=None if encoder_layers else backbone.channels[-1],
                          queries=queries, width=width, layers=layers, hidden=hidden, dropout=dropout,
                          object_score=object_score)
    return MaskFormer(backbone, head)
