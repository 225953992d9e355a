"""MaskFormer: Cheng et al., "Per-pixel classification is not all you need for semantic segmentation", 2021.

Semantic segmentation classifies pixels, instance segmentation classifies masks. MaskFormer does both in the second way:
it predicts N pairs of a class, which may be "no object", and a binary mask. Three modules do that (figure 2). The
pixel-level module gives an embedding of every pixel; the transformer module makes N learned queries into N segment
embeddings by looking at the image; the segmentation module makes each of them a class and a mask embedding, whose
product with the pixel embeddings is the mask. Matching the pairs one to one with the true segments, objects and stuff
alike, makes it a loss over sets, as DETR's, without any box.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from detcore.backbones.resnet import ResNet
from detcore.backbones.swin import Swin
from detcore.detectors import QueryDetector, Sizes
from detcore.errors import UsageError
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_weights, kaiming_uniform
from detcore.layers.position import not_padding, sine_positions
from detcore.layers.transformer import Attention, FeedForward, Layers
from detcore.ops.losses import dice, focal, reduce_mean
from detcore.ops.masks import bitmaps
from detcore.ops.nms import PostProcess
from detcore.ops.set_matching import Matches, by_layer, dice_cost, focal_cost, hungarian, pairwise_mean
from detcore.structures import INSTANCE, Detections, Images, Target

HEADS = 8
ENCODER_LAYERS, DECODER_LAYERS = 6, 6
HIDDEN = 2048  # channels inside a layer's feed-forward part
DROPOUT = 0.1
# Losses (section 4.1).
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 1.0, 20.0, 1.0
NO_OBJECT_WEIGHT = 0.1  # queries without a segment are many and count less
ALPHA, GAMMA = 0.25, 2.0
# Panoptic inference (section 3.4).
OBJECT_SCORE = 0.8  # queries that are less sure of their class have no segment
MASK_THRESHOLD = 0.5
VISIBLE = 0.8  # a segment of which less than this share of its mask is left is dropped
AT_A_TIME = 2**25  # pixels of masks that are enlarged together: a picture of 12 megapixels has 48 MB a mask


# The pixel-level module (section 3.3; the decoders are told in section 4.1): from the backbone's maps to pixel
# embeddings of stride 4, and to the map that the queries look at.

class PixelDecoder(nn.Module):
    """The top-down path that the pixel decoders share, from maps of `channels` to pixel embeddings of `width`."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        self.lateral_convs = nn.ModuleList([ConvBlock(c, width, 1, norm="gn", act=None) for c in channels[:-1]])
        self.output_convs = nn.ModuleList([ConvBlock(width, width, 3, norm="gn") for _ in channels[:-1]])

    def top_down(self, x: Tensor, features: Sequence[Tensor]) -> Tensor:
        """[N, width, H / 4, W / 4] from x, of the coarsest map's size: by turns enlarge, add the next map, convolve."""
        for feature, lateral, output in reversed(list(zip(features, self.lateral_convs, self.output_convs))):
            x = output(lateral(feature) + F.interpolate(x, size=feature.shape[2:], mode="nearest"))
        return x


class PyramidPixelDecoder(PixelDecoder):
    """A light feature pyramid; the queries look at the backbone's last map."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__(channels, width)
        self.last_feat_conv = ConvBlock(channels[-1], width, 3, norm="gn")
        self.mask_feature = nn.Conv2d(width, width, 3, padding=1)
        init_weights(self, kaiming_uniform)

    def forward(self, features: Sequence[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """Pixel embeddings [N, width, H / 4, W / 4], and the map [N, C, h, w] that the queries look at, from the
        backbone's maps, finest first; `valid` [N, h, w] bool: cells of the last that are not padding."""
        return self.mask_feature(self.top_down(self.last_feat_conv(features[-1]), features)), features[-1]


class EncoderLayer(nn.Module):
    """Self-attention, then two layers for each cell, each with a shortcut and a norm."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn = Attention(width, HEADS, dropout)
        self.ffn = FeedForward(width, hidden, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])

    def forward(self, x: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """[N, S, C] of the same shape; position: [N, S, C]; mask: as in `Attention`."""
        x = self.norms[0](x + self.self_attn(x, query_pos=position, mask=mask))
        return self.norms[1](x + self.ffn(x))


class TransformerPixelDecoder(PixelDecoder):
    """The same pyramid on top of a transformer encoder of the last map, which the queries look at too."""

    def __init__(self, channels: Sequence[int], width: int, *, layers: int = ENCODER_LAYERS, hidden: int = HIDDEN,
                 dropout: float = DROPOUT):
        super().__init__(channels, width)
        self.mask_feature = nn.Conv2d(width, width, 3, padding=1)
        self.encoder = Layers([EncoderLayer(width, hidden, dropout) for _ in range(layers)])
        self.encoder_in_proj = nn.Conv2d(channels[-1], width, 1)
        self.encoder_out_proj = ConvBlock(width, width, 3, norm="gn")
        init_weights(self, kaiming_uniform)

    def forward(self, features: Sequence[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        """As `PyramidPixelDecoder`."""
        x = self.encoder_in_proj(features[-1])
        size, position = x.shape[2:], sine_positions(valid, x.shape[1] // 2).flatten(1, 2)
        x = x.flatten(2).transpose(1, 2)
        for layer in self.encoder.layers:
            x = layer(x, position, valid.flatten(1)[:, None, None])
        memory = x.transpose(1, 2).unflatten(2, size)
        return self.mask_feature(self.top_down(self.encoder_out_proj(memory), features)), memory


# The transformer module (section 3.3): a decoder as DETR's.

class DecoderLayer(nn.Module):
    """Self-attention of the queries, attention to the image, two layers for each query."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attn, self.cross_attn = Attention(width, HEADS, dropout), Attention(width, HEADS, dropout)
        self.ffn = FeedForward(width, hidden, dropout=dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(self, x: Tensor, query_pos: Tensor, memory: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """[N, Q, C] of the same shape; query_pos: [N, Q, C], added wherever queries are compared; memory, position:
        [N, K, C], the cells of the image and where they are; mask: as in `Attention`, where a query may look."""
        x = self.norms[0](x + self.self_attn(x, query_pos=query_pos))
        x = self.norms[1](x + self.cross_attn(x, memory, query_pos=query_pos, key_pos=position, mask=mask))
        return self.norms[2](x + self.ffn(x))


# The segmentation module (section 3.3) and the head that holds all of them.

class MaskPredictions(NamedTuple):
    """The pairs of class and mask that queries predict.

    Attributes:
        logits: [N, Q, C + 1] of the classes, the last for no object.
        masks: [N, Q, h, w] logits, h = H / 4.
    """

    logits: Tensor
    masks: Tensor


@dataclass
class Segments:
    """The true segments of a batch: of each image its objects, then one of each class of stuff.

    Attributes:
        labels: [T]; masks: [T, H, W] uint8 over the padded images.
        valid: [T] bool, false for stuff that the image does not show.
        counts: segments of each image, T in all.
    """

    labels: Tensor
    masks: Tensor
    valid: Tensor
    counts: list[int]


class MaskFormerHead(nn.Module):
    """All three modules but the backbone; options as in `maskformer`.

    Args:
        pixel_decoder: gives pixel embeddings and a map of `memory` channels (None: `width`) for the queries.
        postprocess: which detections are kept; there is no NMS.

    Attributes:
        void_outside_masks: pixels that lie outside the mask of their own segment are void in the panoptic map.
    """

    class_weight, mask_weight, dice_weight = CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT
    void_outside_masks = False

    def __init__(self, pixel_decoder: nn.Module, num_classes: int, stuff: int, *, memory: int | None = None,
                 queries: int = 100, width: int = 256, layers: int = DECODER_LAYERS, hidden: int = HIDDEN,
                 layer: type[DecoderLayer] = DecoderLayer, dropout: float = DROPOUT,
                 object_score: float = OBJECT_SCORE, postprocess: PostProcess | None = None):
        super().__init__()
        self.num_classes, self.stuff, self.object_score = num_classes, stuff, object_score
        self.postprocess = postprocess or PostProcess(score_threshold=0.0)
        self.pixel_decoder = pixel_decoder
        self.transformer_decoder = Layers([layer(width, hidden, dropout) for _ in range(layers)], nn.LayerNorm(width))
        self.decoder_input_proj = nn.Conv2d(memory, width, 1) if memory else None
        self.add_embeddings(queries, width)
        self.cls_embed = nn.Linear(width, num_classes + stuff + 1)
        self.mask_embed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                                        nn.Linear(width, width))

    def add_embeddings(self, queries: int, width: int) -> None:
        """Add what the transformer decoder starts from: here learned positions of the queries."""
        self.query_embed = nn.Embedding(queries, width)

    def forward(self, features: Sequence[Tensor], images: Images) -> list[MaskPredictions]:
        """Predictions after each decoder layer, from maps [N, C, h, w], finest first."""
        valid = not_padding((features[-1].shape[2], features[-1].shape[3]), images)
        pixel_embeddings, memory = self.pixel_decoder(features, valid)
        if self.decoder_input_proj:
            memory = self.decoder_input_proj(memory)
        position = sine_positions(valid, memory.shape[1] // 2).flatten(1, 2)
        memory, mask = memory.flatten(2).transpose(1, 2), valid.flatten(1)[:, None, None]
        query_pos = self.query_embed.weight.expand(len(valid), -1, -1)
        x, predictions = torch.zeros_like(query_pos), []
        for layer in self.transformer_decoder.layers:
            x = layer(x, query_pos, memory, position, mask)
            predictions.append(self.segment(x, pixel_embeddings))
        return predictions

    def segment(self, x: Tensor, pixel_embeddings: Tensor) -> MaskPredictions:
        """The segmentation module: a class and a mask from each segment embedding [N, Q, C] (section 3.3)."""
        x = self.transformer_decoder.norm(x)
        masks = self.mask_embed(x) @ pixel_embeddings.flatten(2)
        return MaskPredictions(self.cls_embed(x), masks.unflatten(2, pixel_embeddings.shape[2:]))

    # The mask classification loss (section 3.2).

    def loss(self, predictions: list[MaskPredictions], gt: Segments) -> dict[str, Tensor]:
        """Losses "loss_cls", "loss_mask", "loss_dice" after the last layer; those of layer i before it are named
        "d{i}.loss_cls" and so on."""
        matched = self.match(predictions, gt)
        loss_mask, loss_dice = self.mask_losses([p.masks for p in predictions], matched, gt.masks)
        # An image without a segment still counts one.
        count = reduce_mean(loss_mask.new_full((), sum(max(pairs, 1) for pairs in matched.counts)))
        return by_layer(dict(loss_cls=self.class_loss(torch.stack([p.logits for p in predictions]), matched, gt.labels),
                             loss_mask=self.mask_weight * loss_mask.sum(1) / count,
                             loss_dice=self.dice_weight * loss_dice.sum(1) / count))

    @torch.no_grad()
    def match(self, predictions: list[MaskPredictions], gt: Segments) -> Matches:
        """The best pairs of a query and a true segment after each layer."""
        costs = []
        for i, (labels, masks) in enumerate(zip(gt.labels.split(gt.counts), gt.masks.split(gt.counts))):
            probability = torch.stack([p.logits[i] for p in predictions]).float().softmax(-1)
            costs.append(self.mask_cost([p.masks[i] for p in predictions], masks)
                         - self.class_weight * probability[..., labels])
        return hungarian([costs], gt.valid.split(gt.counts))[0]

    def mask_cost(self, masks: list[Tensor], gt_masks: Tensor) -> Tensor:
        """[L, Q, G] cost of giving the masks [G, H, W] of an image's segments to its queries, at the size of their own
        masks [Q, h, w] after each of L layers."""
        targets = F.interpolate(gt_masks[:, None], size=masks[0].shape[1:], mode="nearest").flatten(1).float()
        costs = []
        for logits in masks:
            logits = logits.flatten(1).float()
            pixel_cost = pairwise_mean(*focal_cost(logits, ALPHA, GAMMA), targets)
            costs.append(self.mask_weight * pixel_cost + self.dice_weight * dice_cost(logits, targets))
        return torch.stack(costs)

    def class_loss(self, logits: Tensor, matched: Matches, gt_labels: Tensor) -> Tensor:
        """[L] weighted mean of the cross-entropy over all queries, from logits [L, N, Q, C + 1]."""
        no_object = logits.shape[3] - 1
        labels = matched.labels(gt_labels, logits.shape[2], no_object).flatten(1)
        error = F.cross_entropy(logits.float().flatten(0, 2), labels.flatten(), reduction="none").view_as(labels)
        weight = torch.where(labels == no_object, NO_OBJECT_WEIGHT, 1.0)
        return self.class_weight * (error * weight).sum(1) / reduce_mean(weight.sum(1))

    def mask_losses(self, masks: list[Tensor], matched: Matches, gt_masks: Tensor) -> tuple[Tensor, Tensor]:
        """Focal and dice loss [L, M] of the M matched masks after each layer, at the images' resolution, from masks
        [N, Q, h, w] (logits) of each layer and those of the batch, `gt_masks` [T, H, W]."""
        # Full masks take much memory: they are made again in the backward pass, a layer at a time.
        losses = [checkpoint(full_mask_losses, layer[image, query], gt_masks, index, use_reentrant=False,
                             preserve_rng_state=False)
                  for layer, image, query, index in zip(masks, matched.image, matched.query, matched.index)]
        loss_mask, loss_dice = (torch.stack(each) for each in zip(*losses))
        return loss_mask, loss_dice

    # Inference (section 3.4). Only masks that an instance or a panoptic segment can come from are enlarged.

    def detections(self, predictions: MaskPredictions, images: Images, output_sizes: Sizes) -> list[Detections]:
        """Instances and, where there is stuff, the panoptic map of each image, in its `output_sizes` (h, w)."""
        padded, result = (images.tensor.shape[2], images.tensor.shape[3]), []
        for logits, masks, size, output_size in zip(*predictions, images.sizes, output_sizes):
            probability = logits.float().softmax(-1)
            scores, labels, instance = self.instance_candidates(probability)
            needed = torch.zeros_like(probability[:, 0], dtype=torch.bool).index_fill(0, instance, True)
            position = needed.cumsum(0) - 1  # of a needed query's mask among those
            detections = instances(scores, labels, enlarged(masks[needed], padded, size, output_size),
                                   position[instance], self.postprocess.score_threshold)
            if self.stuff:
                segment = self.segment_candidates(probability)
                detections.panoptic = panoptic(
                    probability[segment], enlarged(masks[segment], padded, size, output_size), self.num_classes,
                    self.void_outside_masks)
            result.append(detections)
        return result

    def instance_candidates(self, probability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and queries [n] of the best pairs of query and class, of those that are things and score high
        enough, from the probabilities [Q, C + 1] of an image's queries."""
        classes = probability.shape[1] - 1
        scores, pair = probability[:, :-1].flatten().topk(
            min(self.postprocess.max_detections, len(probability) * classes))
        kept = (pair % classes < self.num_classes) & (scores > self.postprocess.score_threshold)
        scores, pair = scores[kept], pair[kept]
        return scores, pair % classes, pair // classes

    def segment_candidates(self, probability: Tensor) -> Tensor:
        """[n] the queries, with probabilities [Q, C + 1], that can have a segment of the panoptic map."""
        score, label = probability.max(1)
        kept = (label != probability.shape[1] - 1) & (score > self.object_score)
        return kept.nonzero()[:, 0] if self.stuff else label[:0]


# What the loss compares with.

def gt_segments(targets: list[Target], images: Images, things: int, stuff: int) -> Segments:
    """The true segments of a batch, of so many classes of things and stuff; without stuff, class maps don't matter.
    Nothing here waits for the device.

    Raises:
        UsageError: a target has no masks, or no class map though there is stuff.
    """
    height, width = images.tensor.shape[2:]
    classes = torch.arange(things, things + stuff, device=images.tensor.device)
    labels, masks, valid = [], [], []
    for target, objects in zip(targets, bitmaps([t.masks for t in targets], images.tensor.device)):
        labels.append(target.labels)
        masks.append(F.pad(objects, (0, width - objects.shape[2], 0, height - objects.shape[1])))
        valid.append(torch.ones_like(target.labels, dtype=torch.bool))
        if stuff:
            if target.semantic is None:
                raise UsageError("This model finds stuff too, but its targets have no class map: load the data with "
                                 "its panoptic annotations.")
            # Which classes an image shows is known on the device alone, so there is a slot for each of them.
            shown = target.semantic == classes[:, None, None]
            labels.append(classes)
            masks.append(shown.to(torch.uint8))
            valid.append(shown.flatten(1).any(1))
    return Segments(torch.cat(labels), torch.cat(masks), torch.cat(valid), [len(t.labels) + stuff for t in targets])


def full_mask_losses(logits: Tensor, gt_masks: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss [M] of masks [M, h, w] (logits), enlarged to the size of `gt_masks` [T, H, W]; index [M] says
    which of those each should be."""
    targets = gt_masks[index].float()
    logits = resize(logits.float(), (targets.shape[1], targets.shape[2]))
    return focal(logits, targets, ALPHA, GAMMA).mean((1, 2)), dice(logits.flatten(1), targets.flatten(1))


# From masks to detections and panoptic map.

def resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits [n, h, w] in another `size` (h, w)."""
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def enlarged(masks: Tensor, padded: tuple[int, int], size: tuple[int, int],
             output_size: tuple[int, int]) -> Iterator[Tensor]:
    """Mask logits [K, h, w] of an image in its `output_size`, a few at a time; it has `size` in a `padded` batch."""
    pixels = max(padded[0] * padded[1], output_size[0] * output_size[1])
    # How many there are is not known while a graph is traced.
    parts = [masks] if torch.compiler.is_exporting() else masks.split(max(1, AT_A_TIME // pixels))
    for part in parts:
        yield resize(resize(part.float(), padded)[:, :size[0], :size[1]], output_size)


def instances(scores: Tensor, labels: Tensor, masks: Iterable[Tensor], index: Tensor,
              score_threshold: float) -> Detections:
    """Detections whose score is that of their class times the mean probability of the pixels inside their mask, and
    above the threshold; from scores and labels [n] of the classes, and `index` [n] into masks [K, h, w] (logits), which
    come in parts."""
    parts, mask_scores = [], []
    for part in masks:
        inside = part > 0
        mask_scores.append((part.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6))
        parts.append(inside)
    scores, order = (scores * torch.cat(mask_scores)[index]).sort(descending=True)
    kept = scores > score_threshold
    scores, order = scores[kept], order[kept]
    index = index[order]
    boxes = torch.cat([boxes_around(inside) for inside in parts])[index]
    return Detections(boxes, scores, labels[order], parts[0][index] if len(parts) == 1 else chosen_rows(parts, index))


def chosen_rows(parts: list[Tensor], index: Tensor) -> Tensor:
    """`torch.cat(parts)[index]` without holding both for long; `parts` is emptied."""
    rows: list[Tensor | None] = [row for part in parts for row in part]
    out, places = parts[0].new_empty(len(index), *parts[0].shape[1:]), index.tolist()
    parts.clear()
    last = {row: place for place, row in enumerate(places)}
    rows = [row if i in last else None for i, row in enumerate(rows)]
    for place, i in enumerate(places):
        row = rows[i]
        assert row is not None
        out[place] = row
        if last[i] == place:
            rows[i] = None
    return out


def boxes_around(masks: Tensor) -> Tensor:
    """[n, 4] the smallest box (x1, y1, x2, y2) around each mask [n, h, w], in pixels; zeros around an empty one."""
    sides = []
    for filled in (masks.any(1), masks.any(2)):  # columns, rows
        filled = filled.int()
        sides.append((filled.argmax(1), filled.shape[1] - filled.flip(1).argmax(1)))
    (left, right), (top, bottom) = sides
    return torch.stack([left, top, right, bottom], 1).float() * masks.flatten(1).any(1)[:, None]


def panoptic(probability: Tensor, masks: Tensor | Iterable[Tensor], things: int, void_outside_masks: bool) -> Tensor:
    """int64 [h, w] panoptic map: each pixel has the segment whose class and mask together are most probable there.

    Args:
        probability: [K, C + 1] of the queries that have a segment; masks: [K, h, w] logits, or parts of those in turn.
        things: number of classes of things, which come first.
        void_outside_masks: see `MaskFormerHead`.
    """
    void, (score, label) = probability.shape[1] - 1, probability.max(1)
    first, areas, seen = 0, [], None
    for part in [masks] if isinstance(masks, Tensor) else masks:
        part = part.sigmoid()
        if seen is None:
            # Segment 0 is void; it has the pixels only where there is no other.
            empty = torch.zeros_like(part[:0].sum(0))
            seen = empty - 1, empty.long(), empty
        most, owner, own_mask = seen
        areas.append((part >= MASK_THRESHOLD).flatten(1).sum(1))
        most, place = torch.cat([most[None], score[first:first + len(part), None, None] * part]).max(0)
        owner = torch.where(place > 0, place + first, owner)
        seen = most, owner, torch.cat([own_mask[None], part]).gather(0, place[None])[0]
        first += len(part)
    assert seen is not None
    _, owner, own_mask = seen
    area = label.new_zeros(label.shape[0] + 1).index_add(0, owner.flatten(), torch.ones_like(owner).flatten())[1:]
    mask_area = torch.cat(areas)
    kept = (area > 0) & (mask_area > 0) & (area / mask_area >= VISIBLE)
    thing = label < things
    number = (kept & thing).cumsum(0) * thing  # stuff of one class is one segment
    result = F.pad(torch.where(kept, label + INSTANCE * number, void), (1, 0), value=void)[owner]
    return torch.where(own_mask >= MASK_THRESHOLD, result, void) if void_outside_masks else result


# The detector.

class MaskFormer(QueryDetector):
    """Backbone and head; there is no other neck than the pixel decoder."""

    def __init__(self, backbone: nn.Module, panoptic_head: MaskFormerHead):
        super().__init__(backbone, None)
        self.panoptic_head, self.num_classes = panoptic_head, panoptic_head.num_classes

    def outputs(self, features: Sequence[Tensor], images: Images) -> list[MaskPredictions]:
        return self.panoptic_head(features, images)

    def set_loss(self, outputs: list[MaskPredictions], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        gt = gt_segments(targets, images, self.num_classes, self.panoptic_head.stuff)
        return self.panoptic_head.loss(outputs, gt)

    def detections(self, outputs: list[MaskPredictions], images: Images, output_sizes: Sizes) -> list[Detections]:
        return self.panoptic_head.detections(outputs[-1], images, output_sizes)


def maskformer(backbone: ResNet | Swin, num_classes: int = 80, *, stuff: int = 53, encoder_layers: int = ENCODER_LAYERS,
               layers: int = DECODER_LAYERS, width: int = 256, hidden: int = HIDDEN, queries: int = 100,
               dropout: float = DROPOUT, object_score: float = OBJECT_SCORE, score_threshold: float = 0.0,
               max_detections: int = 100) -> MaskFormer:
    """MaskFormer.

    Args:
        num_classes, stuff: classes of things, which come first, and of stuff; without stuff there is no panoptic map.
        encoder_layers: of the pixel decoder; without any, the queries look at the backbone's last map.
        layers, queries: of the transformer decoder.
        width, hidden: channels of both decoders, and inside their feed-forward parts.
        dropout: share of a layer's results left out in training.
        object_score: a query whose class is less probable has no segment in the panoptic map.
        score_threshold: detections must score higher (see `PostProcess`).
        max_detections: best pairs of query and class, of which those of things become an image's detections.
    """
    decoder = (TransformerPixelDecoder(backbone.channels, width, layers=encoder_layers, hidden=hidden, dropout=dropout)
               if encoder_layers else PyramidPixelDecoder(backbone.channels, width))
    head = MaskFormerHead(decoder, num_classes, stuff, memory=None if encoder_layers else backbone.channels[-1],
                          queries=queries, width=width, layers=layers, hidden=hidden, dropout=dropout,
                          object_score=object_score,
                          postprocess=PostProcess(score_threshold, max_detections=max_detections))
    return MaskFormer(backbone, head)
