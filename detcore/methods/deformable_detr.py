"""Deformable DETR: Zhu et al., "Deformable DETR: deformable transformers for end-to-end object detection", 2021.

DETR has no anchors and no NMS: learned queries look at the image through a transformer, each ends as one object or as
none, and matching them one to one with the truth makes that a loss. But each cell attends to all cells, which is dear
on large maps, so small objects are lost, and it takes 500 epochs to learn where to look. Deformable attention looks at
a few points about a reference point instead, on four levels of a pyramid at once. So a query has a place in the image,
each decoder layer can refine the box of the one before (iterative refinement), and the first boxes can be the best of
what the encoder's cells propose themselves (two-stage).
"""
from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from detcore.ops import boxes as box
from detcore.backbones.resnet import ResNet
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal
from detcore.layers.deformable_attention import MSDeformAttention, MSDeformEncoder, cell_centres, of_level
from detcore.layers.position import not_padding, sine_positions, waves
from detcore.layers.transformer import Attention, FeedForward, Layers
from detcore.ops.losses import focal, l1, reduce_mean
from detcore.ops.matching import hungarian, pad_targets
from detcore.methods.fast_rcnn import to_output
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
PRIOR = 0.01  # at the start every query says "mine" with this probability to each class
SMALL = -2.0  # logit of the sides of the first boxes
EPS, EPS_LOGIT = 1e-12, 1e-5
# Two-stage (appendix A.4): the side of a cell's first box, as share of the image, doubles from level to level.
FIRST_SIDE = 0.05
BORDER = 0.01  # cells whose first box begins or ends nearer to the border of the image propose nothing
DETECTIONS = 100


class ChannelMapper(nn.Module):
    """A pyramid without a top-down path: one convolution for each of the backbone's maps from the second on, and a
    coarser level from the last."""

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        used = channels[1:]
        self.convs = nn.ModuleList([ConvBlock(c, width, 1, norm="gn", act=None) for c in used])
        self.extra_convs = nn.ModuleList([ConvBlock(used[-1], width, 3, stride=2, norm="gn", act=None)])

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`LEVELS` maps [N, width, h, w], finest first."""
        return (*(conv(x) for conv, x in zip(self.convs, maps[1:])), self.extra_convs[0](maps[-1]))


@dataclass
class Memory:
    """A pyramid as the attention sees it.

    Attributes:
        cells: [N, S, C], of all levels in a row.
        sizes: (h, w) of the levels.
        valid: [N, S] bool, cells that are not padding.
        shares: [N, levels, 2], how much of a level's width and height the image fills.
    """

    cells: Tensor
    sizes: list[tuple[int, int]]
    valid: Tensor
    shares: Tensor


class DecoderLayer(nn.Module):
    """Queries look at each other, then at points of the image, then each thinks for itself (section 4.1)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.self_attn = Attention(width, HEADS, DROPOUT)
        self.cross_attn = MSDeformAttention(width, HEADS, LEVELS, POINTS)
        self.ffn = FeedForward(width, hidden, dropout=DROPOUT)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, query_pos: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        """[N, Q, C]; reference: [N, Q, 2] points or [N, Q, 4] boxes (centre x, y, width, height), shares of the image.
        """
        x = self.norms[0](x + self.self_attn(x, query_pos=query_pos))
        shares = memory.shares.repeat(1, 1, reference.shape[2] // 2)
        seen = self.cross_attn(x + query_pos, reference[:, :, None] * shares[:, None], memory.cells, memory.sizes,
                               memory.valid)
        x = self.norms[1](x + self.dropout(seen))
        return self.norms[2](x + self.ffn(x))


class Answers(NamedTuple):
    """What queries say.

    Attributes:
        logits: [..., N, Q, C] of the classes.
        boxes: [..., N, Q, 4] (centre x, y, width, height) in shares of the image.
    """

    logits: Tensor
    boxes: Tensor


class DeformableDETRHead(nn.Module):
    """What turns queries into classes and boxes, after each decoder layer, and for the encoder's cells if there are
    `branches` for them.

    Args:
        refine: each layer has branches of its own; else all share one.
    """

    def __init__(self, width: int, num_classes: int, branches: int, *, refine: bool, two_stage: bool):
        super().__init__()
        self.num_classes = num_classes
        classes = nn.Linear(width, num_classes)
        nn.init.constant_(classes.bias, -math.log((1 - PRIOR) / PRIOR))
        last = nn.Linear(width, 4)
        init_normal(last, std=0.0)
        boxes = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), last)
        others = [[copy.deepcopy(branch) if refine else branch for _ in range(branches - 1)]
                  for branch in (classes, boxes)]
        if not two_stage:
            nn.init.constant_(last.bias[2:], SMALL)
        self.cls_branches, self.reg_branches = nn.ModuleList([classes, *others[0]]), nn.ModuleList([boxes, *others[1]])

    def forward(self, i: int, x: Tensor, reference: Tensor) -> Answers:
        """Classes and boxes after layer i.

        Args:
            x: [N, Q, width].
            reference: [N, Q, 2 or 4], logits of the points or boxes that the new boxes are relative to.
        """
        raw = self.reg_branches[i](x).float()
        moved = torch.cat([raw[..., :reference.shape[-1]] + reference, raw[..., reference.shape[-1]:]], -1)
        return Answers(self.cls_branches[i](x), moved.sigmoid())


def logit(share: Tensor) -> Tensor:
    """The inverse of the sigmoid, finite everywhere."""
    return share.clamp(EPS_LOGIT, 1 - EPS_LOGIT).logit()


class DeformableDETR(nn.Module):
    """Backbone, pyramid, encoder, decoder, head.

    Args:
        queries: number of objects that can be found.
        refine: each layer starts from the boxes of the one before (section 4.2).
        two_stage: the queries are the encoder's best proposals instead of learned ones (section 4.2).
    """

    takes_proposals = False

    def __init__(self, backbone: nn.Module, neck: nn.Module, bbox_head: DeformableDETRHead, *, width: int, hidden: int,
                 encoder_layers: int, layers: int, queries: int, refine: bool, two_stage: bool):
        super().__init__()
        self.backbone, self.neck, self.bbox_head = backbone, neck, bbox_head
        self.num_classes = bbox_head.num_classes
        self.queries, self.refine, self.two_stage = queries, refine, two_stage
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

    def features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of images [N, 3, H, W], finest first."""
        return self.neck(self.backbone(x))

    def forward(self, images: Images) -> tuple[list[Answers], Answers | None]:
        """What the queries say after each layer, and what the encoder's cells propose, if two-stage."""
        memory = self.encode(self.features(images.tensor), images)
        if self.two_stage:
            x, query_pos, reference, proposed = self.propose(memory)
        else:
            query_pos, x = self.query_embedding.weight.expand(len(images), -1, -1).chunk(2, 2)
            reference, proposed = self.reference_points_fc(query_pos).float().sigmoid(), None
        found = []
        for i, layer in enumerate(self.decoder.layers):
            x = layer(x, query_pos, reference, memory)
            found.append(self.bbox_head(i, x, logit(reference)))
            if self.refine:
                reference = found[-1].boxes.detach()
        return found, proposed

    def encode(self, maps: Sequence[Tensor], images: Images) -> Memory:
        """Cells that have looked at points of all levels, each about itself (section 4.1)."""
        sizes = [(m.shape[2], m.shape[3]) for m in maps]
        valid = [not_padding(size, images) for size in sizes]
        shares = torch.stack([torch.stack([v[:, 0].float().mean(1), v[:, :, 0].float().mean(1)], 1) for v in valid], 1)
        position = torch.cat([sine_positions(v, m.shape[1] // 2, HALF_CELL).flatten(1, 2) + level
                              for v, m, level in zip(valid, maps, self.level_embed)], 1)
        inside = torch.cat([v.flatten(1) for v in valid], 1)
        cells = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)
        return Memory(self.encoder(cells, position, sizes, inside, shares), sizes, inside, shares)

    def propose(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor, Answers]:
        """Queries' features, positions and boxes, the best of what the encoder's cells propose; and all of that."""
        counts = [h * w for h, w in memory.sizes]
        centres = cell_centres(memory.sizes, memory.cells.device) / of_level(memory.shares, counts)
        sides = torch.cat([centres.new_full((n, 2), FIRST_SIDE * 2**level) for level, n in enumerate(counts)])
        first = torch.cat([centres, sides.expand_as(centres)], 2)
        usable = ((first > BORDER) & (first < 1 - BORDER)).all(2) & memory.valid
        # A box of infinite logits is the whole image's lower right corner, which no object matches.
        anchors = first.logit().masked_fill(~usable[..., None], math.inf)
        x = self.memory_trans_norm(self.memory_trans_fc(memory.cells.masked_fill(~usable[..., None], 0.0)))
        proposed = self.bbox_head(len(self.decoder.layers), x, anchors)
        # Here the first class is "object".
        best = proposed.logits[..., 0].topk(min(self.queries, x.shape[1]), 1).indices
        reference = proposed.boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        code = waves(reference * 2 * math.pi, x.shape[2] // 2).flatten(2)
        query_pos, query = self.pos_trans_norm(self.pos_trans_fc(code)).chunk(2, 2)
        return query, query_pos, reference, proposed

    # Training: a loss over sets, as in DETR.

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Losses of classes and boxes after each layer; the last one's names have no prefix."""
        found, proposed = self(images)
        boxes, labels, valid = pad_targets(targets)
        truth = Truth(boxes, labels, valid, scales(images, boxes))
        answers, truths = {"": Answers(*map(torch.stack, zip(*found)))}, [truth]
        if proposed is not None:  # the cells propose objects of any class
            answers["enc_"] = Answers(proposed.logits[None], proposed.boxes[None])
            truths.append(replace(truth, labels=torch.zeros_like(labels)))
        matches = hungarian([match_cost(a, t) for a, t in zip(answers.values(), truths)], valid)
        losses = {}
        for (prefix, answer), match, t in zip(answers.items(), matches, truths):
            for name, values in set_losses(answer, match, t).items():
                for i, value in enumerate(values):
                    losses[f"d{i}.{name}" if i < len(values) - 1 else prefix + name] = value
        return losses

    @torch.no_grad()
    def predict(self, images: Images, *, output_sizes: list[tuple[int, int]] | None = None,
                proposals: list[Tensor] | None = None) -> list[Detections]:
        """Detections of each image, in its `output_sizes` (h, w) or in the network's input."""
        logits, boxes = self(images)[0][-1]
        scores, index = logits.float().sigmoid().flatten(1).topk(min(DETECTIONS, logits[0].numel()), 1)
        labels, query = index % self.num_classes, index // self.num_classes
        boxes = corners(boxes, scales(images, boxes)).gather(1, query[..., None].expand(-1, -1, 4))
        boxes = box.clip(boxes, box.size_tensor(images.sizes, boxes))
        return to_output([Detections(*each) for each in zip(boxes, scores, labels)], images, output_sizes)


@dataclass
class Truth:
    """The objects of a batch.

    Attributes:
        boxes: [N, G, 4] (x1, y1, x2, y2) in pixels; labels: [N, G]; valid: [N, G], which entries are real.
        scale: [N, 1, 4] (width, height, width, height) of the images.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    scale: Tensor


def scales(images: Images, like: Tensor) -> Tensor:
    """[N, 1, 4] (width, height, width, height) of the images."""
    return box.size_tensor(images.sizes, like).flip(1).repeat(1, 2)[:, None]


def corners(boxes: Tensor, scale: Tensor) -> Tensor:
    """[..., 4] in pixels (x1, y1, x2, y2) from (centre x, y, width, height) in shares of the image."""
    return box_convert(boxes, "cxcywh", "xyxy") * scale


@torch.no_grad()
def match_cost(answers: Answers, truth: Truth) -> Tensor:
    """[L, N, Q, G] cost of giving each object to each of the queries, whose answers are those of L layers."""
    logits, boxes = answers
    p = logits.float().sigmoid()
    hit = -ALPHA * (1 - p) ** GAMMA * (p + EPS).log()
    miss = -(1 - ALPHA) * p**GAMMA * (1 - p + EPS).log()
    labels = truth.labels[None, :, None].expand(*logits.shape[:3], -1)
    wanted = box_convert(truth.boxes / truth.scale, "xyxy", "cxcywh")
    overlap = box.giou(corners(boxes, truth.scale)[..., None, :], truth.boxes[:, None])
    return (CLASS_WEIGHT * (hit - miss).gather(3, labels) + L1_WEIGHT * torch.cdist(boxes, wanted.expand(
        len(boxes), -1, -1, -1), p=1) - GIOU_WEIGHT * overlap)


def set_losses(answers: Answers, match: Tensor, truth: Truth) -> dict[str, Tensor]:
    """Focal loss of the classes, L1 and generalised IoU loss of matched boxes, [L] each, over the number of objects.

    Args:
        answers: of L layers; match: [L, N, Q] index of each query's object, or BACKGROUND.
    """
    logits, boxes = answers
    matched, at = match >= 0, match.clamp(min=0)
    count = reduce_mean(truth.valid.sum(1).clamp(max=match.shape[2]).sum().float()).clamp(min=1)
    labels = truth.labels.expand(len(match), -1, -1).gather(2, at)
    one_hot = (labels[..., None] == torch.arange(logits.shape[3], device=labels.device)) & matched[..., None]
    wanted = truth.boxes.expand(len(match), -1, -1, -1).gather(2, at[..., None].expand(-1, -1, -1, 4))
    distance = l1(boxes, box_convert(wanted / truth.scale, "xyxy", "cxcywh")).sum(3)
    apart = 1 - box.giou(corners(boxes, truth.scale), wanted)
    values = dict(cls=CLASS_WEIGHT * focal(logits, one_hot, ALPHA, GAMMA).sum(3),
                  bbox=L1_WEIGHT * distance * matched, iou=GIOU_WEIGHT * apart * matched)
    return {f"loss_{name}": value.sum((1, 2)) / count for name, value in values.items()}


def deformable_detr(backbone: ResNet, num_classes: int = 80, *, width: int = 256, hidden: int = HIDDEN,
                    encoder_layers: int = ENCODER_LAYERS, layers: int = DECODER_LAYERS, queries: int = QUERIES,
                    refine: bool = False, two_stage: bool = False) -> DeformableDETR:
    """Deformable DETR; arguments as in `DeformableDETR`.

    Args:
        width, hidden: channels of the transformer, and inside its feed-forward parts.
        encoder_layers, layers: of encoder and decoder.
    """
    head = DeformableDETRHead(width, num_classes, layers + two_stage, refine=refine, two_stage=two_stage)
    return DeformableDETR(backbone, ChannelMapper(backbone.channels, width), head, width=width, hidden=hidden,
                          encoder_layers=encoder_layers, layers=layers, queries=queries, refine=refine,
                          two_stage=two_stage)
