"""CentripetalNet: Dong et al., "CentripetalNet: Pursuing high-quality keypoint pairs for object detection", 2020.

CornerNet finds the top-left and the bottom-right corners of objects as peaks of heat maps, and must then say which two
belong together. It compared learned embeddings, which confuses objects that look alike. Here every corner points to
the centre of its object (its centripetal shift), and two corners are a pair if they point to the same place. Where to
look to know that is learned too: a guiding shift, trained to point to the centre, gives the offsets of a deformable
convolution whose taps reach across the object (cross-star deformable convolution).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.backbones.hourglass import Hourglass
from detcore.detectors import OneStageDetector
from detcore.errors import UsageError
from detcore.layers.conv import ConvBlock
from detcore.layers.corner_pool import CornerPool
from detcore.layers.heads import flatten
from detcore.layers.init import init_weights, kaiming_normal, normal, prior_bias
from detcore.ops import boxes as box
from detcore.ops.deform import deform_conv
from detcore.ops.losses import SmoothL1, reduce_mean
from detcore.ops.matching import object_chunks, pad_targets
from detcore.ops.nms import PostProcess, soft_nms
from detcore.structures import Detections, Images, Target

# The kinds of corners, as the sign of the way from the corner to the centre.
TOP_LEFT, BOTTOM_RIGHT = 1, -1
# Heat maps (CornerNet, sections 3.2 and 3.4).
ALPHA, GAMMA = 2.0, 4.0
MIN_OVERLAP = 0.3  # of an object's box with the one whose corners are off by the radius
PRIOR = 0.1
GUIDING_WEIGHT = 0.05
# Pairs (section 3.1): both corners point into the middle region of their box, and to about the same place.
CORNERS, PAIRS = 100, 1000
FARTHEST = 0.5  # area between the two centres, as a share of the middle region's
MIDDLE, MIDDLE_LARGE, LARGE = 1 / 2.4, 1 / 2.1, 3500  # the region's sides in those of the box; area of a large box
SIGMA, MIN_SCORE = 0.5, 1e-3  # of soft-NMS
EPS = 1e-12


# The network (figure 2)

class Corners(NamedTuple):
    """What is predicted of one kind of corner, for each map.

    Attributes:
        heat: class logits [N, C, h, w].
        offset: [N, 2, h, w] (x, y) in cells, the corner's place in its cell.
        guiding_shift: [N, 2, h, w], the way from the cell to the centre, with both signs turned to positive.
        centripetal_shift: [N, 2, h, w], the logarithm of the way from the corner to the centre.
    """

    heat: Sequence[Tensor]
    offset: Sequence[Tensor]
    guiding_shift: Sequence[Tensor]
    centripetal_shift: Sequence[Tensor]


def branch(channels: int, outputs: int) -> nn.Sequential:
    """Two convolutions that predict `outputs` channels."""
    return nn.Sequential(ConvBlock(channels, channels, 3), ConvBlock(channels, outputs, 1, act=None))


class CentripetalHead(nn.Module):
    """Predicts both kinds of corners, by layers `tl_...` and `br_...`, on the map of every hourglass.

    Args:
        channels: of the maps; maps: their number; pooling: channels of corner pooling's two ways.
        postprocess: which detections are kept at test time; `pre_nms_top_n` is of pairs.
        soft_nms_sigma: soft-NMS multiplies scores by exp(-IoU^2 / sigma).
        top_k_corners: best corners of each kind that are paired.

    Raises:
        UsageError: `soft_nms_sigma` is not positive, or `top_k_corners` is below 1.
    """

    not_exportable = "how many corners it pairs depends on the picture"

    def __init__(self, channels: int, num_classes: int, *, maps: int = 2, pooling: int = 128,
                 postprocess: PostProcess | None = None, soft_nms_sigma: float = SIGMA, top_k_corners: int = CORNERS):
        super().__init__()
        if soft_nms_sigma <= 0 or top_k_corners < 1:
            raise UsageError(f"CentripetalNet needs a positive soft_nms_sigma and at least one of top_k_corners, not "
                             f"{soft_nms_sigma} and {top_k_corners}.")
        self.num_classes = num_classes
        self.postprocess = postprocess or PostProcess(score_threshold=0.0, pre_nms_top_n=PAIRS, soft_nms=True)
        self.soft_nms_sigma, self.top_k_corners = soft_nms_sigma, top_k_corners
        layers: dict[str, Callable[[Sequence[str]], nn.Module]] = {
            "pool": lambda ways: CornerPool(channels, ways, pooling),
            "heat": lambda _: branch(channels, num_classes),
            "off": lambda _: branch(channels, 2),
            "feat_adaption": lambda _: nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            "dcn_offset": lambda _: ConvBlock(2, 2 * 9, 1, bias=False, act=None),
            "guiding_shift": lambda _: branch(channels, 2),
            "centripetal_shift": lambda _: branch(channels, 2)}
        self.layers = tuple(layers)
        for name, make in layers.items():  # in the order of the published state dict: tl_pool, br_pool, tl_heat, ...
            for kind, ways in (("tl", ("top", "left")), ("br", ("bottom", "right"))):
                self.add_module(f"{kind}_{name}", nn.ModuleList([make(ways) for _ in range(maps)]))
        for i in range(maps):
            for kind in ("tl", "br"):
                init_weights(self.get_submodule(f"{kind}_pool.{i}"), kaiming_normal)
                init_weights(self.get_submodule(f"{kind}_feat_adaption.{i}"), normal)
                nn.init.normal_(self.get_parameter(f"{kind}_dcn_offset.{i}.conv.weight"), 0, 0.1)
                nn.init.constant_(self.get_parameter(f"{kind}_heat.{i}.1.conv.bias"), prior_bias(PRIOR))

    def forward(self, features: Sequence[Tensor]) -> tuple[Corners, Corners]:
        """The top-left and the bottom-right corners."""
        return self.corners("tl", features), self.corners("br", features)

    def corners(self, kind: str, features: Sequence[Tensor]) -> Corners:
        """One kind of corners, "tl" or "br", on each of the maps [N, c, h, w]."""
        of_maps: list[Any] = [self.get_submodule(f"{kind}_{name}") for name in self.layers]
        found = []
        for x, pool, heat, off, feat_adaption, dcn_offset, guiding_shift, centripetal_shift in zip(features, *of_maps):
            pooled = pool(x)
            guiding = guiding_shift(pooled)
            # Cross-star deformable convolution (section 3.2): the guiding shift says where to look.
            star = deform_conv(pooled, dcn_offset(guiding.detach()), feat_adaption.weight)
            found.append((heat(pooled), off(pooled), guiding, centripetal_shift(star)))
        return Corners(*zip(*found))

    def loss(self, features: Sequence[Tensor], images: Images, targets: list[Target]) -> dict[str, Tensor]:
        """Losses of heat maps, offsets, guiding and centripetal shifts: mean of both kinds of corners, sum of all maps
        (section 3.4)."""
        output = self(features)
        size, padded = (images.tensor.shape[2], images.tensor.shape[3]), pad_targets(targets)
        top_left, bottom_right = (corner_losses(corners, corner_targets(kind, *padded, size, corners.heat[0].shape))
                                  for corners, kind in zip(output, (TOP_LEFT, BOTTOM_RIGHT)))
        return {name: (top_left[name] + bottom_right[name]) / 2 for name in top_left}

    def predict(self, features: Sequence[Tensor], images: Images) -> list[Detections]:
        """Pairs of corners on the last map, thinned by soft-NMS within their class, in the images' own pixels."""
        top_left, bottom_right = (Corners(*[[maps[-1]] for maps in kind]) for kind in self(features))
        settings, size = self.postprocess, (images.tensor.shape[2], images.tensor.shape[3])
        boxes, scores, labels = decode(top_left, bottom_right, size, images.origins, top_k_corners=self.top_k_corners,
                                       top_k_pairs=settings.pre_nms_top_n)
        image = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(scores)
        candidate = scores.flatten() > settings.score_threshold
        boxes, scores, labels, image = (x.flatten(0, 1)[candidate] for x in (boxes, scores, labels, image))
        order, kept = soft_nms(boxes, scores, image * self.num_classes + labels, sigma=self.soft_nms_sigma,
                               min_score=max(MIN_SCORE, settings.score_threshold))
        detections = []
        for i in range(len(images)):
            mine = (image[order] == i).nonzero()[:settings.max_detections, 0]
            detections.append(Detections(boxes[order[mine]], kept[mine], labels[order[mine]]))
        return detections


# Training (section 3.4)

@dataclass
class CornerTargets:
    """What shall be predicted of one kind of corner, for a batch with at most G objects an image.

    Attributes:
        heat: [N, C, h, w] in 0..1, one at the corners.
        cell: [N, G] index of each corner's cell in its map.
        trains: [N, G] bool; false where a later object has the same cell, and for padding.
        offset, guiding_shift, centripetal_shift: [N, G, 2], see `Corners`.
    """

    heat: Tensor
    cell: Tensor
    trains: Tensor
    offset: Tensor
    guiding_shift: Tensor
    centripetal_shift: Tensor


@torch.no_grad()
def corner_targets(kind: int, gt_boxes: Tensor, gt_labels: Tensor, gt_valid: Tensor, size: tuple[int, int],
                   shape: torch.Size) -> CornerTargets:
    """The targets of one kind of corner, TOP_LEFT or BOTTOM_RIGHT (equations 1, 3 and 5).

    Args:
        gt_boxes: [N, G, 4] in pixels of the padded batch, whose `size` is (h, w); gt_labels, gt_valid: [N, G].
        shape: of the heat maps, [N, C, h, w].
    """
    h, w = shape[2:]
    boxes = box.rescale(gt_boxes, size, (h, w))
    corner, center = boxes[..., :2] if kind == TOP_LEFT else boxes[..., 2:], box.centers(boxes)
    x, y = corner[..., 0].clamp(max=w - 1).long(), corner[..., 1].clamp(max=h - 1).long()
    cell, place = y * w + x, torch.stack([x, y], -1)
    order = torch.arange(1, cell.shape[1] + 1, device=cell.device) * gt_valid
    last = order.new_zeros(len(cell), h * w).scatter_reduce(1, cell, order, "amax").gather(1, cell)
    way = torch.where(gt_valid[..., None], kind * (center - corner), 1.0)
    return CornerTargets(gaussian_heat(place, radius(box.sizes(boxes)), gt_labels, gt_valid, shape), cell,
                         gt_valid & (last == order), corner - place, kind * (center - place), way.clamp(min=1e-6).log())


def gaussian_heat(place: Tensor, radius: Tensor, gt_labels: Tensor, gt_valid: Tensor, shape: torch.Size) -> Tensor:
    """Heat maps of `shape` [N, C, h, w]: a Gaussian about each corner, at cells `place` [N, G, 2] (x, y), cut off at
    its `radius` [N, G] in cells; where they overlap, the larger one."""
    h, w = shape[2:]
    heat = radius.new_zeros(shape)
    reach = radius[..., None]
    x = _gaussian(torch.arange(w, device=place.device) - place[..., :1], reach) * gt_valid[..., None]
    y = _gaussian(torch.arange(h, device=place.device) - place[..., 1:], reach)
    for images, objects in object_chunks(gt_valid, h * w):
        bells = y[images][:, objects, :, None] * x[images][:, objects, None, :]
        label = gt_labels[images][:, objects, None, None].expand_as(bells)
        heat[images] = heat[images].scatter_reduce(1, label, bells, "amax")
    return heat


def _gaussian(distance: Tensor, reach: Tensor) -> Tensor:
    sigma = (2 * reach + 1) / 6
    return torch.exp(-(distance**2) / (2 * sigma**2)) * (distance.abs() <= reach)


def radius(sides: Tensor) -> Tensor:
    """[...] how far, in whole cells, both corners of a box may be off for it to overlap an object of `sides` [..., 2],
    in cells, by `MIN_OVERLAP`; one corner in and one out, both in, both out bound it (CornerNet, section 3.2)."""
    sides = sides.double().ceil()
    total, area, o = sides.sum(-1), sides.prod(-1), MIN_OVERLAP
    one_in = (total - (total**2 - 4 * area * (1 - o) / (1 + o)).sqrt()) / 2
    both_in = (2 * total - (4 * total**2 - 16 * (1 - o) * area).sqrt()) / 8
    both_out = (-2 * o * total + (4 * o**2 * total**2 + 16 * o * (1 - o) * area).sqrt()) / (8 * o)
    return torch.stack([one_in, both_in, both_out]).amin(0).clamp(min=0).floor().float()


def corner_losses(corners: Corners, targets: CornerTargets) -> dict[str, Tensor]:
    """The losses of one kind of corner, summed over its maps: of the heat over the number of peaks, else over the
    number of corners."""
    peaks = reduce_mean((targets.heat == 1).sum().float()).clamp(min=1)
    count = reduce_mean(targets.trains.sum().float()).clamp(min=1)

    def shift_loss(maps: Sequence[Tensor], target: Tensor) -> Tensor:
        predicted = torch.stack([box.gather(flatten(m), targets.cell) for m in maps])
        return (SmoothL1()(predicted, target.expand_as(predicted)) * targets.trains[..., None]).sum() / count

    return {"det_loss": gaussian_focal(torch.stack(list(corners.heat)), targets.heat).sum() / peaks,
            "off_loss": shift_loss(corners.offset, targets.offset),
            "guiding_loss": GUIDING_WEIGHT * shift_loss(corners.guiding_shift, targets.guiding_shift),
            "centripetal_loss": shift_loss(corners.centripetal_shift, targets.centripetal_shift)}


def gaussian_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Elementwise focal loss whose negatives count less, the nearer they are to a corner (CornerNet, equation 1)."""
    p = logits.float().sigmoid()
    return torch.where(target == 1, -(p + EPS).log() * (1 - p) ** ALPHA,
                       -(1 - p + EPS).log() * p**ALPHA * (1 - target) ** GAMMA)


# Inference (section 3.1)

def decode(top_left: Corners, bottom_right: Corners, size: tuple[int, int],
           origins: list[tuple[int, int]] | None = None, *, top_k_corners: int = CORNERS,
           top_k_pairs: int = PAIRS) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of corners: boxes [N, P, 4] in pixels, scores [N, P], -1 for what is no pair, and labels [N, P].

    Args:
        top_left, bottom_right: of one map.
        size: (h, w) of the padded batch; origins: (top, left) of each image in it.
        top_k_corners: best corners of each kind that are paired; top_k_pairs: best pairs that are given.
    """
    tl, tl_center, tl_score, tl_label = corner_points(TOP_LEFT, top_left, size, origins, top_k_corners)
    br, br_center, br_score, br_label = corner_points(BOTTOM_RIGHT, bottom_right, size, origins, top_k_corners)
    # Every top-left corner with every bottom-right one, [N, k, k, ...].
    boxes = torch.cat(torch.broadcast_tensors(tl[:, :, None], br[:, None]), -1)
    tl_center, br_center = tl_center[:, :, None], br_center[:, None]
    sides, center = box.sizes(boxes), box.centers(boxes)
    # The middle region: both corners point into it, and there to about the same place.
    half = torch.where(sides.prod(-1).abs() > LARGE, MIDDLE_LARGE, MIDDLE)[..., None] * sides / 2
    inside = ((tl_center - center).abs() < half).all(-1) & ((br_center - center).abs() < half).all(-1)
    apart = (br_center - tl_center).prod(-1).abs() / (2 * half).prod(-1).abs()
    pair = (tl_label[:, :, None] == br_label[:, None]) & (sides > 0).all(-1) & inside & (apart <= FARTHEST)
    score = torch.where(pair, (tl_score[:, :, None] + br_score[:, None]) / 2, -1.0).flatten(1)
    score, index = score.topk(min(top_k_pairs, score.shape[1]), 1)
    return box.gather(boxes.flatten(1, 2), index), score, tl_label.gather(1, index // br_label.shape[1])


def corner_points(kind: int, corners: Corners, size: tuple[int, int], origins: list[tuple[int, int]] | None,
                  top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best corners of one kind on one map: where they are and where they point to, [N, k, 2] (x, y) in pixels of
    the images; their scores and labels [N, k]."""
    heat, offset, _, shift = (maps[0].float() for maps in corners)
    h, w = heat.shape[2:]
    score, label, cell = peaks(heat, top_k)
    corner = torch.stack([cell % w, cell // w], -1) + box.gather(flatten(offset), cell)
    center = corner + kind * box.gather(flatten(shift), cell).exp()
    points = box.rescale(torch.cat([corner, center], -1), (h, w), size)
    if origins is not None:
        points = points - box.size_tensor(origins, points).flip(1).repeat(1, 2)[:, None]
    corner, center = points.clamp(min=0).split(2, -1)
    return corner, center, score, label


def peaks(heat: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and cells [N, k] of the highest places of heat [N, C, h, w] (logits) among their neighbours."""
    heat = heat.sigmoid()
    heat = heat * (F.max_pool2d(heat, 3, 1, 1) == heat)
    cells = heat.shape[2] * heat.shape[3]
    score, index = heat.flatten(1).topk(min(top_k, heat[0].numel()), 1)
    return score, index // cells, index % cells


def centripetalnet(backbone: Hourglass, num_classes: int = 80, *, pooling: int = 128, score_threshold: float = 0.0,
                   max_detections: int = 100, pre_nms_top_n: int = PAIRS, soft_nms_sigma: float = SIGMA,
                   top_k_corners: int = CORNERS) -> OneStageDetector:
    """CentripetalNet on the maps of its hourglasses; there is no neck.

    Args:
        pooling, soft_nms_sigma, top_k_corners: see `CentripetalHead`.
        score_threshold, max_detections: which detections are kept, after soft-NMS (see `PostProcess`).
        pre_nms_top_n: best pairs of corners that go on to soft-NMS.
    """
    settings = PostProcess(score_threshold, max_detections=max_detections, pre_nms_top_n=pre_nms_top_n, soft_nms=True)
    head = CentripetalHead(backbone.channels[0], num_classes, maps=len(backbone.channels), pooling=pooling,
                           postprocess=settings, soft_nms_sigma=soft_nms_sigma, top_k_corners=top_k_corners)
    return OneStageDetector(backbone, None, head)
