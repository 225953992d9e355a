"""CentripetalNet: Dong et al., "CentripetalNet: Pursuing high-quality keypoint pairs for object detection", 2020.

CornerNet finds the top-left and the bottom-right corners of objects as peaks of heat maps, and must then say which two
belong together. It compared learned embeddings, which confuses objects that look alike. Here every corner points to
the centre of its object (its centripetal shift), and two corners are a pair if they point to the same place. Where to
look to know that is learned too: a guiding shift, trained to point to the centre, gives the offsets of a deformable
convolution whose taps reach across the object (cross-star deformable convolution).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.ops import boxes as box
from detcore.backbones.hourglass import Hourglass
from detcore.layers.conv import ConvBlock
from detcore.layers.init import init_normal, init_weights, kaiming_normal
from detcore.layers.corner_pool import CornerPool
from detcore.ops.deform import deform_conv
from detcore.ops.losses import SmoothL1, reduce_mean
from detcore.ops.matching import pad_targets
from detcore.methods.retinanet import RetinaNet
from detcore.structures import Detections, Images, Target

# Heat maps (CornerNet, sections 3.2 and 3.4).
ALPHA, GAMMA = 2.0, 4.0
MIN_OVERLAP = 0.3  # of an object's box with the one whose corners are off by the radius
PRIOR = 0.1
GUIDING_WEIGHT = 0.05
# Pairs (section 3.1): both corners point into the middle region of their box, and to about the same place.
CORNERS, PAIRS, DETECTIONS = 100, 1000, 100
FARTHEST = 0.5  # area between the two centres, as a share of the middle region's
MIDDLE, MIDDLE_LARGE, LARGE = 1 / 2.4, 1 / 2.1, 3500  # the region's sides in those of the box; area of a large box
SIGMA = 0.5  # of soft-NMS
EPS = 1e-12

TOP_LEFT, BOTTOM_RIGHT = "tl", "br"
TOWARDS = {TOP_LEFT: ("top", "left"), BOTTOM_RIGHT: ("bottom", "right")}
SIGN = {TOP_LEFT: 1, BOTTOM_RIGHT: -1}  # of the way from the corner to the centre
Output = tuple[list[Tensor], ...]


def branch(channels: int, outputs: int) -> nn.Sequential:
    """Two convolutions that predict `outputs` channels."""
    return nn.Sequential(ConvBlock(channels, channels, 3), ConvBlock(channels, outputs, 1, act=None))


class CentripetalHead(nn.Module):
    """Predicts both kinds of corners on the map of every hourglass (figure 2).

    Args:
        channels: of the maps; maps: their number.
        pooling: channels of corner pooling's two ways.
    """

    def __init__(self, channels: int, num_classes: int, *, maps: int = 2, pooling: int = 128):
        super().__init__()
        self.num_classes, self.smooth_l1 = num_classes, SmoothL1()
        parts = {
            "pool": lambda kind: CornerPool(channels, TOWARDS[kind], pooling),
            "heat": lambda kind: branch(channels, num_classes),
            "off": lambda kind: branch(channels, 2),
            "feat_adaption": lambda kind: nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            "dcn_offset": lambda kind: ConvBlock(2, 2 * 9, 1, bias=False, act=None),
            "guiding_shift": lambda kind: branch(channels, 2),
            "centripetal_shift": lambda kind: branch(channels, 2),
        }
        for part, make in parts.items():
            for kind in TOWARDS:
                self.add_module(f"{kind}_{part}", nn.ModuleList([make(kind) for _ in range(maps)]))
        for level in range(maps):
            for kind in TOWARDS:
                init_weights(self.part(kind, "pool", level), kaiming_normal)
                init_normal(self.part(kind, "feat_adaption", level))
                init_normal(self.part(kind, "dcn_offset", level).conv, 0.1)
                nn.init.constant_(self.part(kind, "heat", level)[1].conv.bias, -math.log((1 - PRIOR) / PRIOR))

    def part(self, kind: str, name: str, level: int) -> Any:
        """The module that predicts `name` for one kind of corner on one map."""
        return getattr(self, f"{kind}_{name}")[level]

    def corner(self, kind: str, level: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One kind of corner on one map: class logits [N, C, h, w]; then, each [N, 2, h, w] (x, y) in cells, the
        corner's place in its cell, the guiding shift, and the logarithm of the centripetal shift."""
        pooled = self.part(kind, "pool", level)(x)
        guiding = self.part(kind, "guiding_shift", level)(pooled)
        offsets = self.part(kind, "dcn_offset", level)(guiding.detach())
        star = deform_conv(pooled, offsets, self.part(kind, "feat_adaption", level).weight)
        return (self.part(kind, "heat", level)(pooled), self.part(kind, "off", level)(pooled), guiding,
                self.part(kind, "centripetal_shift", level)(star))

    def forward(self, features: Sequence[Tensor]) -> Output:
        """What `corner` gives, top-left and bottom-right in turn; each for every map."""
        both = [[self.corner(kind, level, x) for level, x in enumerate(features)] for kind in TOWARDS]
        return tuple([at_level[i] for at_level in kind] for i in range(4) for kind in both)

    def loss(self, features: Sequence[Tensor], targets: list[Target], size: tuple[int, int]) -> dict[str, Tensor]:
        """Losses of heat maps, offsets, guiding and centripetal shifts, of all maps (section 3.4).

        Args:
            size: (h, w) of the padded batch.
        """
        output = self(features)
        truth, labels, valid = pad_targets(targets)
        goals = [corner_targets(kind, truth, labels, valid, size, output[0][0].shape) for kind in TOWARDS]
        losses = dict.fromkeys(("det_loss", "off_loss", "guiding_loss", "centripetal_loss"), truth.new_zeros(()))
        for level in range(len(features)):
            heats, *shifts = ([output[2 * i][level], output[2 * i + 1][level]] for i in range(4))
            for goal, heat, *shift in zip(goals, heats, *shifts):
                corners = reduce_mean((goal.heat == 1).sum().float()).clamp(min=1)
                cells = reduce_mean(goal.owned.sum().float()).clamp(min=1)
                parts = [gaussian_focal(heat, goal.heat).sum() / corners]
                for predicted, wanted in zip(shift, (goal.offset, goal.guiding, goal.centripetal)):
                    found = predicted.flatten(2).transpose(1, 2).gather(1, goal.cell[..., None].expand(-1, -1, 2))
                    parts.append((self.smooth_l1(found, wanted) * goal.owned[..., None]).sum() / cells)
                losses = {name: total + part / 2 for (name, total), part in zip(losses.items(), parts)}
        losses["guiding_loss"] = losses["guiding_loss"] * GUIDING_WEIGHT
        return losses

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """Pairs of corners on the last map, thinned by soft-NMS within their class, in the images' own pixels."""
        maps = [m[-1].float() for m in self(features)]
        size = (images.tensor.shape[2], images.tensor.shape[3])
        boxes, scores, labels = decode(maps[0], maps[1], maps[2], maps[3], maps[6], maps[7], size, images.origins)
        image = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(scores)
        paired = scores.flatten() > 0
        boxes, scores, labels, image = (x.flatten(0, 1)[paired] for x in (boxes, scores, labels, image))
        order, kept = box.soft_nms(boxes, scores, image * self.num_classes + labels, sigma=SIGMA)
        found = []
        for i in range(len(images)):
            mine = (image[order] == i).nonzero()[:DETECTIONS, 0]
            found.append(Detections(boxes[order[mine]], kept[mine], labels[order[mine]]))
        return found


@dataclass
class Goal:
    """What shall be predicted of one kind of corner, for a batch with at most G objects an image.

    Attributes:
        heat: [N, C, h, w] in 0..1, one at the corners.
        cell: [N, G] index of each corner's cell in its map.
        owned: [N, G] bool; false where a later object has the cell, and for padding.
        offset, guiding, centripetal: [N, G, 2] (x, y), as `CentripetalHead.corner` gives them.
    """

    heat: Tensor
    cell: Tensor
    owned: Tensor
    offset: Tensor
    guiding: Tensor
    centripetal: Tensor


@torch.no_grad()
def corner_targets(kind: str, truth: Tensor, labels: Tensor, valid: Tensor, size: tuple[int, int],
                   shape: torch.Size) -> Goal:
    """The goal of one kind of corner (equations 1, 3 and 5).

    Args:
        truth: [N, G, 4]; labels, valid: [N, G].
        size: (h, w) of the padded batch; shape: of the heat maps, [N, C, h, w].
    """
    _, classes, h, w = shape
    ratio = truth.new_tensor([w / size[1], h / size[0]])
    corner = (truth[..., :2] if kind == TOP_LEFT else truth[..., 2:]) * ratio
    centre = (truth[..., :2] + truth[..., 2:]) / 2 * ratio
    place = corner.minimum(ratio.new_tensor([w - 1, h - 1])).long()

    x, y = torch.arange(w, device=truth.device), torch.arange(h, device=truth.device)
    dx, dy = (x - place[..., :1])[:, :, None, :], (y - place[..., 1:])[:, :, :, None]
    reach = radius((truth[..., 2:] - truth[..., :2]) * ratio)[..., None, None]
    bell = torch.exp(-(dx**2 + dy**2) / (2 * ((2 * reach + 1) / 6) ** 2))
    bell = bell * ((dx.abs() <= reach) & (dy.abs() <= reach) & valid[..., None, None])
    heat = bell.new_zeros(len(truth), classes, h, w)
    heat = heat.scatter_reduce(1, labels[..., None, None].expand_as(bell), bell, "amax")

    cell = place[..., 1] * w + place[..., 0]
    order = torch.arange(1, cell.shape[1] + 1, device=cell.device) * valid
    last = order.new_zeros(len(cell), h * w).scatter_reduce(1, cell, order, "amax").gather(1, cell)
    way = SIGN[kind] * (centre - corner)
    return Goal(heat, cell, valid & (last == order), corner - place, SIGN[kind] * (centre - place),
                torch.where(valid[..., None], way, 1.0).clamp(min=1e-6).log())


def radius(sides: Tensor) -> Tensor:
    """[...] how far, in whole cells, both corners of a box may be off for it to overlap the object by `MIN_OVERLAP`.

    Three cases bound it: one corner in and one out, both in, both out (CornerNet, section 3.2).

    Args:
        sides: [..., 2] of the objects, in cells.
    """
    sides = sides.double().ceil()
    total, area, o = sides.sum(-1), sides.prod(-1), MIN_OVERLAP
    one_in = (total - (total**2 - 4 * area * (1 - o) / (1 + o)).sqrt()) / 2
    both_in = (2 * total - (4 * total**2 - 16 * (1 - o) * area).sqrt()) / 8
    both_out = (-2 * o * total + (4 * o**2 * total**2 + 16 * o * (1 - o) * area).sqrt()) / (8 * o)
    return torch.stack([one_in, both_in, both_out]).amin(0).clamp(min=0).floor().float()


def gaussian_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Elementwise focal loss whose negatives count less, the nearer they are to a corner (CornerNet, equation 1)."""
    p = logits.float().sigmoid()
    return torch.where(target == 1, -(p + EPS).log() * (1 - p) ** ALPHA,
                       -(1 - p + EPS).log() * p**ALPHA * (1 - target) ** GAMMA)


def decode(tl_heat: Tensor, br_heat: Tensor, tl_offset: Tensor, br_offset: Tensor, tl_shift: Tensor, br_shift: Tensor,
           size: tuple[int, int], origins: list[tuple[int, int]] | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of corners: boxes [N, P, 4], scores [N, P], -1 for what is no pair, and labels [N, P].

    Args:
        tl_heat, br_heat: [N, C, h, w] logits.
        tl_offset, br_offset, tl_shift, br_shift: [N, 2, h, w] offsets and (logarithmic) centripetal shifts.
        size: (h, w) of the padded batch.
        origins: (top, left) of each image in it.
    """
    h, w = tl_heat.shape[2:]
    ratio = tl_heat.new_tensor([size[1] / w, size[0] / h])
    start = tl_heat.new_tensor(origins or [(0, 0)] * len(tl_heat)).flip(1)[:, None]  # (x, y)
    corners, centres, scores, labels = [], [], [], []
    for heat, offset, shift, sign in ((tl_heat, tl_offset, tl_shift, 1), (br_heat, br_offset, br_shift, -1)):
        score, label, cell = peaks(heat)
        at = cell[:, None].expand(-1, 2, -1)
        place = torch.stack([cell % w, cell // w], 1) + offset.flatten(2).gather(2, at)
        centre = place + sign * shift.flatten(2).gather(2, at).exp()
        corners.append((place.transpose(1, 2) * ratio - start).clamp(min=0))
        centres.append((centre.transpose(1, 2) * ratio - start).clamp(min=0))
        scores.append(score)
        labels.append(label)

    boxes, middles = (torch.cat(torch.broadcast_tensors(tl[:, :, None], br[:, None]), -1)
                      for tl, br in (corners, centres))  # [N, k, k, 4]
    sides = boxes[..., 2:] - boxes[..., :2]
    share = torch.where(sides.prod(-1).abs() > LARGE, MIDDLE_LARGE, MIDDLE)[..., None]
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, share * sides / 2
    inside = ((middles.unflatten(-1, (2, 2)) - centre[..., None, :]).abs() < half[..., None, :]).all(-1).all(-1)
    apart = (middles[..., 2:] - middles[..., :2]).prod(-1).abs() / (2 * half).prod(-1).abs()
    pair = (labels[0][:, :, None] == labels[1][:, None]) & (sides > 0).all(-1) & (apart <= FARTHEST) & inside
    score = torch.where(pair, (scores[0][:, :, None] + scores[1][:, None]) / 2, -1.0).flatten(1)
    score, index = score.topk(min(PAIRS, score.shape[1]), 1)
    return (boxes.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4)), score,
            labels[0].gather(1, index // labels[1].shape[1]))


def peaks(heat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and cells [N, k] of the highest places of heat [N, C, h, w] (logits) among their neighbours."""
    heat = heat.sigmoid()
    heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    cells = heat.shape[2] * heat.shape[3]
    score, index = heat.flatten(1).topk(min(CORNERS, heat[0].numel()), 1)
    return score, index // cells, index % cells


class CentripetalNet(RetinaNet):
    """Hourglasses and corners; there is no pyramid."""

    def loss(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Training losses by name."""
        h, w = images.tensor.shape[2:]
        return self.bbox_head.loss(self.features(images.tensor), targets, (h, w))


def centripetalnet(backbone: Hourglass, num_classes: int = 80, *, pooling: int = 128) -> CentripetalNet:
    """CentripetalNet; `pooling` is corner pooling's (see `CentripetalHead`)."""
    channels, maps = backbone.channels[0], len(backbone.channels)
    return CentripetalNet(backbone, nn.Identity(), CentripetalHead(channels, num_classes, maps=maps, pooling=pooling))
