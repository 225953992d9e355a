"""Deformable DETR: Zhu et al., "Deformable DETR: deformable transformers for end-to-end object detection", 2021.

DETR has no anchors and no NMS: learned queries look at the image through a transformer, each ends as one object or as
none, and matching them one to one with the true objects makes that a loss. But each cell attends to all cells, which
costs much on large maps, so small objects are lost, and it takes 500 epochs to learn where to look. Deformable
attention looks at a few points about a reference point instead, on four levels of a pyramid at once. So a query has a
place in the image, each decoder layer can refine the box of the one before (iterative refinement), and the first boxes
can be the best of what the encoder's cells propose themselves (two-stage).
"""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detcore.backbones.resnet import ResNet
from detcore.detectors import QueryDetector, Sizes
from detcore.layers.conv import ConvBlock
from detcore.layers.deformable_attention import MSDeformAttention, MSDeformEncoder, cell_centres, of_level
from detcore.layers.init import init_normal, prior_bias
from detcore.layers.position import not_padding, sine_positions, waves
from detcore.layers.transformer import Attention, FeedForward, Layers
from detcore.ops import boxes as box
from detcore.ops.losses import focal, l1, reduce_mean
from detcore.ops.matching import CHUNK
from detcore.ops.nms import PostProcess
from detcore.ops.set_matching import Matches, by_layer, focal_cost, hungarian
from detcore.structures import Detections, Images, Target

HEADS, LEVELS, POINTS = 8, 4, 4
ENCODER_LAYERS, DECODER_LAYERS = 6, 6
HIDDEN = 1024  # channels inside a layer's feed-forward part
DROPOUT = 0.1
QUERIES = 300
HALF_CELL = -0.5  # positions count cells from their centres
# Losses (appendix A.4).
CLASS_WEIGHT, L1_WEIGHT, GIOU_WEIGHT = 2.0, 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0
PRIOR = 0.01  # at the start every query gives each class this probability
SMALL = -2.0  # logit of the sides of the first boxes
EPS_LOGIT = 1e-5
# Two-stage (appendix A.4): the side of a cell's first box, as share of the image, doubles from level to level.
FIRST_SIDE = 0.05
BORDER = 0.01  # cells whose first box begins or ends nearer to the border of the image propose nothing


class ChannelMapper(nn.Module):
    """A pyramid of `width` channels without a top-down path (appendix A.2): one convolution for each of the backbone's
    maps, of `channels`, from the second on, and a coarser level from the last."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        inputs = channels[1:]
        self.convs = nn.ModuleList([ConvBlock(c, width, 1, norm="gn", act=None) for c in inputs])
        self.extra_convs = nn.ModuleList([ConvBlock(inputs[-1], width, 3, stride=2, norm="gn", act=None)])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`LEVELS` maps [N, width, h, w], finest first."""
        return (*(conv(x) for conv, x in zip(self.convs, maps[1:])), self.extra_convs[0](maps[-1]))


# The transformer (section 4.1).

@dataclass
class Memory:
    """What the encoder gives: the cells of a pyramid, which the decoder's queries look at.

    Attributes:
        cells: [N, S, C], of all levels in a row.
        sizes: (h, w) of the levels.
        valid: [N, S] bool, cells that are not padding.
        valid_ratios: [N, levels, 2], how much of a level's width and height the image fills.
    """

    cells: Tensor
    sizes: Sizes
    valid: Tensor
    valid_ratios: Tensor


class DecoderLayer(nn.Module):
    """Self-attention of the queries, deformable attention to the image, two layers for each query (section 4.1)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.self_attn = Attention(width, HEADS, DROPOUT)
        self.cross_attn = MSDeformAttention(width, HEADS, LEVELS, POINTS)
        self.ffn = FeedForward(width, hidden, dropout=DROPOUT)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, query_pos: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """[N, Q, C] of the same shape; query_pos: [N, Q, C], added wherever queries are compared; reference: [N, Q, 2]
        points or [N, Q, 4] boxes (centre x, y, width, height) in shares of the image."""
        x = self.norms[0](x + self.self_attn(x, query_pos=query_pos))
        ratios = memory.valid_ratios.repeat(1, 1, reference.shape[2] // 2)
        attended = self.cross_attn(x + query_pos, reference[:, :, None] * ratios[:, None], memory.cells, memory.sizes,
                                   memory.valid)
        x = self.norms[1](x + self.dropout(attended))
        return self.norms[2](x + self.ffn(x))


# The prediction heads.

class BoxPredictions(NamedTuple):
    """What queries predict.

    Attributes:
        logits: [..., N, Q, C] of the classes.
        boxes: [..., N, Q, 4] (centre x, y, width, height) in shares of the image.
    """

    logits: Tensor
    boxes: Tensor


class Outputs(NamedTuple):
    """Predictions of the queries after each decoder layer, and of the encoder's cells if there are two stages."""

    layers: list[BoxPredictions]
    proposed: BoxPredictions | None


class DeformableDETRHead(nn.Module):
    """Classes and boxes from queries, by one of `branches` for each decoder layer, and one for the encoder's cells if
    there are two stages; with `refine` each has weights of its own, else all share them."""

    def __init__(self, width: int, num_classes: int, branches: int, *, refine: bool, two_stage: bool):
        super().__init__()
        self.num_classes = num_classes
        classes = nn.Linear(width, num_classes)
        nn.init.constant_(classes.bias, prior_bias(PRIOR))
        last = nn.Linear(width, 4)
        init_normal(last, std=0.0)
        boxes = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)
        others = [[copy.deepcopy(branch) if refine else branch for _ in range(branches - 1)]
                  for branch in (classes, boxes)]
        if not two_stage:  # else proposals give boxes their size
            nn.init.constant_(last.bias[2:], SMALL)
        self.cls_branches, self.reg_branches = nn.ModuleList([classes, *others[0]]), nn.ModuleList([boxes, *others[1]])

    def forward(self, i: int, x: Tensor, reference: Tensor) -> BoxPredictions:
        """Classes and boxes of queries x [N, Q, width] after layer i, relative to points or boxes whose logits are
        `reference` [N, Q, 2 or 4]."""
        offset = self.reg_branches[i](x).float()
        moved = torch.cat([offset[..., :reference.shape[-1]] + reference, offset[..., reference.shape[-1]:]], -1)
        return BoxPredictions(self.cls_branches[i](x), moved.sigmoid())


def logit(share: Tensor) -> Tensor:
    """The inverse of the sigmoid, finite everywhere."""
    return share.clamp(EPS_LOGIT, 1 - EPS_LOGIT).logit()


# The detector.

class DeformableDETR(QueryDetector):
    """Backbone, pyramid, encoder, decoder, head.

    Args:
        queries: objects that can be found in an image.
        refine: each layer starts from the boxes of the one before (section 4.2).
        two_stage: the queries are the encoder's best proposals instead of learned ones (section 4.2).
        postprocess: which detections are kept; there is no NMS.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module, bbox_head: DeformableDETRHead, *, width: int, hidden: int,
                 encoder_layers: int, layers: int, queries: int, refine: bool, two_stage: bool,
                 postprocess: PostProcess):
        super().__init__(backbone, neck)
        self.bbox_head, self.num_classes = bbox_head, bbox_head.num_classes
        self.queries, self.refine, self.two_stage, self.postprocess = queries, refine, two_stage, postprocess
        self.level_embed = nn.Parameter(torch.randn(LEVELS, width))
        self.encoder = MSDeformEncoder(encoder_layers, width, hidden, heads=HEADS, levels=LEVELS, points=POINTS,
                                       dropout=DROPOUT)
        decoder = [DecoderLayer(width, hidden) for _ in range(layers)]
        self.decoder = Layers(decoder)
        for layer in decoder:
            layer.cross_attn.reset_parameters()
        if two_stage:
            self.memory_trans_fc, self.memory_trans_norm = nn.Linear(width, width), nn.LayerNorm(width)
            self.pos_trans_fc, self.pos_trans_norm = nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width)
            nn.init.xavier_uniform_(self.memory_trans_fc.weight)
            nn.init.xavier_uniform_(self.pos_trans_fc.weight)
        else:
            self.query_embedding = nn.Embedding(queries, 2 * width)
            self.reference_points_fc = nn.Linear(width, 2)
            nn.init.xavier_uniform_(self.reference_points_fc.weight)
            nn.init.zeros_(self.reference_points_fc.bias)

    def outputs(self, features: Sequence[Tensor], images: Images) -> Outputs:
        memory = self.encode(features, images)
        proposed = None
        if self.two_stage:
            proposed = self.propose(memory)
            x, query_pos, reference = self.queries_from(proposed)
        else:
            query_pos, x = self.query_embedding.weight.expand(len(images), -1, -1).chunk(2, 2)
            reference = self.reference_points_fc(query_pos).float().sigmoid()
        layers = []
        for i, layer in enumerate(self.decoder.layers):
            x = layer(x, query_pos, reference, memory)
            layers.append(self.bbox_head(i, x, logit(reference)))
            if self.refine:
                reference = layers[-1].boxes.detach()
        return Outputs(layers, proposed)

    def encode(self, maps: Sequence[Tensor], images: Images) -> Memory:
        """The cells of maps [N, C, h, w] after deformable attention, each about itself (section 4.1)."""
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        valid = [not_padding(size, images) for size in sizes]
        ratios = torch.stack([torch.stack([v[:, 0].float().mean(1), v[:, :, 0].float().mean(1)], 1) for v in valid], 1)
        position = torch.cat([sine_positions(v, m.shape[1] // 2, HALF_CELL).flatten(1, 2) + level
                              for v, m, level in zip(valid, maps, self.level_embed)], 1)
        flat_valid = torch.cat([v.flatten(1) for v in valid], 1)
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        return Memory(self.encoder(cells, position, sizes, flat_valid, ratios), sizes, flat_valid, ratios)

    def propose(self, memory: Memory) -> BoxPredictions:
        """An objectness, in place of the first class, and a box from each of the encoder's cells (appendix A.4)."""
        counts = [h * w for h, w in memory.sizes]
        centres = cell_centres(memory.sizes, memory.cells.device) / of_level(memory.valid_ratios, counts)
        sides = torch.cat([centres.new_full((n, 2), FIRST_SIDE * 2**level) for level, n in enumerate(counts)])
        first = torch.cat([centres, sides.expand_as(centres)], 2)
        usable = ((first > BORDER) & (first < 1 - BORDER)).all(2) & memory.valid
        # A box of infinite logits is the whole image's lower right corner, which no object matches.
        reference = first.logit().masked_fill(~usable[..., None], math.inf)
        x = self.memory_trans_norm(self.memory_trans_fc(memory.cells.masked_fill(~usable[..., None], 0.0)))
        return self.bbox_head(len(self.decoder.layers), x, reference)

    def queries_from(self, proposed: BoxPredictions) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, Q, C], their positions [N, Q, C] and reference boxes [N, Q, 4] from the best proposals."""
        objectness = proposed.logits[..., 0]
        best = objectness.topk(min(self.queries, objectness.shape[1]), 1).indices
        reference = box.gather(proposed.boxes, best).detach()
        code = waves(reference * 2 * math.pi, self.level_embed.shape[1] // 2).flatten(2)
        query_pos, x = self.pos_trans_norm(self.pos_trans_fc(code)).chunk(2, 2)
        return x, query_pos, reference

    def set_loss(self, outputs: Outputs, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Losses "loss_cls", "loss_bbox", "loss_iou" after the last decoder layer; those of layer i before it are named
        "d{i}.loss_cls" and so on, those of the encoder's proposals "enc_loss_cls" and so on."""
        scale = scales(images, outputs.layers[0].boxes)
        sets = {"": BoxPredictions(*map(torch.stack, zip(*outputs.layers)))}
        objects = [targets]
        if outputs.proposed is not None:  # the cells propose objects of any class
            sets["enc_"] = BoxPredictions(outputs.proposed.logits[None], outputs.proposed.boxes[None])
            objects.append([Target(t.boxes, torch.zeros_like(t.labels)) for t in targets])
        costs = [match_costs(predictions, some, scale) for predictions, some in zip(sets.values(), objects)]
        matches = hungarian(costs, [torch.ones_like(t.labels, dtype=torch.bool) for t in targets])
        losses: dict[str, Tensor] = {}
        for (prefix, predictions), matched, some in zip(sets.items(), matches, objects):
            losses |= by_layer(set_losses(predictions, matched, some, scale), prefix)
        return losses

    def detections(self, outputs: Outputs, images: Images, output_sizes: Sizes) -> list[Detections]:
        """The best pairs of query and class, of those above the score threshold."""
        logits, boxes = outputs.layers[-1]
        scores, index = logits.float().sigmoid().flatten(1).topk(
            min(self.postprocess.max_detections, logits[0].numel()), 1)
        labels, query = index % self.num_classes, index // self.num_classes
        boxes = box.gather(corners(boxes, scales(images, boxes)[:, None]), query)
        boxes = box.clip(boxes, box.size_tensor(images.sizes, boxes))
        result = []
        for b, s, c, size, output_size in zip(boxes, scores, labels, images.sizes, output_sizes):
            kept = s > self.postprocess.score_threshold
            result.append(Detections(box.rescale(b[kept], size, output_size), s[kept], c[kept]))
        return result


# The loss over sets, as in DETR (Carion et al. 2020, section 3.1), with focal loss for the classes.

def scales(images: Images, like: Tensor) -> Tensor:
    """[N, 4] (width, height, width, height) of the images, in pixels."""
    return box.size_tensor(images.sizes, like).flip(1).repeat(1, 2)


def corners(boxes: Tensor, scale: Tensor) -> Tensor:
    """[..., 4] in pixels (x1, y1, x2, y2) from (centre x, y, width, height) in shares of the image."""
    return box_convert(boxes, "cxcywh", "xyxy") * scale


@torch.no_grad()
def match_costs(predictions: BoxPredictions, targets: list[Target], scale: Tensor) -> list[Tensor]:
    """For each image [L, Q, G], the cost of giving each object to each query after each of L layers, from predictions
    [L, N, Q, ...] and the `scales` of the images."""
    costs = []
    for logits, boxes, target, size in zip(predictions.logits.unbind(1), predictions.boxes.unbind(1), targets, scale):
        positive, negative = focal_cost(logits, ALPHA, GAMMA)
        class_cost = (positive - negative)[..., target.labels]
        gt_boxes = box_convert(target.boxes / size, "xyxy", "cxcywh").expand(len(boxes), -1, -1)
        # Some queries at a time: with thousands of proposals and objects the table of overlaps is large.
        step = max(CHUNK // max(len(boxes) * len(target.boxes), 1), 1)
        overlap = torch.cat([box.giou(corners(some, size)[..., None, :], target.boxes)
                             for some in boxes.split(step, 1)], 1)
        costs.append(CLASS_WEIGHT * class_cost + L1_WEIGHT * torch.cdist(boxes, gt_boxes, p=1) - GIOU_WEIGHT * overlap)
    return costs


def set_losses(predictions: BoxPredictions, matched: Matches, targets: list[Target],
               scale: Tensor) -> dict[str, Tensor]:
    """Focal loss of the classes, L1 and generalised IoU loss of matched boxes, [L] each, over the number of pairs;
    arguments as in `match_costs`."""
    logits, boxes = predictions
    labels = matched.labels(torch.cat([t.labels for t in targets]), logits.shape[2], no_object=logits.shape[3])
    one_hot = labels[..., None] == torch.arange(logits.shape[3], device=labels.device)
    boxes, scale = boxes[matched.layer, matched.image, matched.query], scale[matched.image]
    gt_boxes = torch.cat([t.boxes for t in targets])[matched.index]
    losses = dict(loss_cls=CLASS_WEIGHT * focal(logits, one_hot, ALPHA, GAMMA).sum((1, 2, 3)),
                  loss_bbox=L1_WEIGHT * l1(boxes, box_convert(gt_boxes / scale, "xyxy", "cxcywh")).sum((1, 2)),
                  loss_iou=GIOU_WEIGHT * (1 - box.giou(corners(boxes, scale), gt_boxes)).sum(1))
    count = reduce_mean(scale.new_full((), sum(matched.counts))).clamp(min=1)
    return {name: loss / count for name, loss in losses.items()}


def deformable_detr(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = HIDDEN,
                    encoder_layers: int = ENCODER_LAYERS, layers: int = DECODER_LAYERS, queries: int = QUERIES,
                    refine: bool = False, two_stage: bool = False, score_threshold: float = 0.0,
                    max_detections: int = 100) -> DeformableDETR:
    """Deformable DETR.

    Args:
        width, hidden: channels of the transformer, and inside its feed-forward parts.
        encoder_layers, layers: of encoder and decoder; queries, refine, two_stage: see `DeformableDETR`.
        score_threshold, max_detections: which detections are kept (see `PostProcess`).
    """
    head = DeformableDETRHead(width, num_classes, layers + two_stage, refine=refine, two_stage=two_stage)
    return DeformableDETR(backbone, ChannelMapper(backbone.channels, width), head, width=width, hidden=hidden,
                          encoder_layers=encoder_layers, layers=layers, queries=queries, refine=refine,
                          two_stage=two_stage, postprocess=PostProcess(score_threshold, max_detections=max_detections))
