"""Deformable DETR's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import detcore
from detcore.layers.deformable_attention import MSDeformAttention, MSDeformEncoder, cell_centres, sample_levels
from detcore.layers.position import sine_positions
from detcore.ops.matching import hungarian
from detcore.methods.deformable_detr import Answers, DeformableDETR, Truth, logit, match_cost, set_losses
from detcore.structures import Images, Target

NAME = "deformable-detr-refine-twostage_r50_16xb2-50e_coco"


def by_hand(values: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention, point by point (equation 3)."""
    n, queries, heads, levels, points, _ = locations.shape
    out = torch.zeros(n, queries, heads, values.shape[3])
    starts = [sum(h * w for h, w in sizes[:i]) for i in range(levels)]
    for i, q, m, lvl, k in torch.cartesian_prod(*map(torch.arange, (n, queries, heads, levels, points))).tolist():
        h, w = sizes[lvl]
        x, y = (locations[i, q, m, lvl, k] * torch.tensor([w, h]) - 0.5).tolist()
        for at_y, at_x in ((math.floor(y) + a, math.floor(x) + b) for a in (0, 1) for b in (0, 1)):
            if 0 <= at_y < h and 0 <= at_x < w:
                near = (1 - abs(y - at_y)) * (1 - abs(x - at_x))
                out[i, q, m] += weights[i, q, m, lvl, k] * near * values[i, starts[lvl] + at_y * w + at_x, m]
    return out.flatten(2)


def test_attention_is_the_papers_sum():
    torch.manual_seed(0)
    sizes = [(4, 5), (2, 3)]
    values, locations = torch.randn(2, 26, 2, 3), torch.rand(2, 3, 2, 2, 2, 2) * 1.4 - 0.2  # some outside
    weights = torch.rand(2, 3, 2, 2, 2)
    assert torch.allclose(sample_levels(values, sizes, locations, weights), by_hand(values, sizes, locations, weights),
                          atol=1e-5)


def test_heads_begin_by_looking_in_all_directions():
    layer = MSDeformAttention(16, heads=4, levels=2, points=3)
    offsets = layer.sampling_offsets(torch.randn(1, 16)).view(4, 2, 3, 2)
    assert torch.allclose(offsets[:, 0], offsets[:, 1])
    assert torch.allclose(offsets[:, 0, 0], torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]]), atol=1e-6)
    assert torch.allclose(offsets[:, 0, 2], 3 * offsets[:, 0, 0])
    assert layer.attention_weights(torch.randn(1, 16)).abs().max() == 0


def test_padding_is_not_seen():
    """An image alone, and the same image padded beside a larger one, end in the same cells."""
    torch.manual_seed(0)
    encoder = MSDeformEncoder(2, 16, 32, heads=2, levels=2, points=2).eval()
    for layer in encoder.layers:
        torch.nn.init.normal_(layer.self_attn.sampling_offsets.weight, 0, 0.3)
    small, large = [(4, 6), (2, 3)], [(8, 8), (4, 4)]

    def run(maps: list[Tensor], valid: list[Tensor]) -> Tensor:
        position = torch.cat([sine_positions(v, 8, -0.5).flatten(1, 2) for v in valid], 1)
        shares = torch.stack([torch.stack([v[:, 0].float().mean(1), v[:, :, 0].float().mean(1)], 1) for v in valid], 1)
        return encoder(torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), position,
                       [(v.shape[1], v.shape[2]) for v in valid], torch.cat([v.flatten(1) for v in valid], 1), shares)

    maps = [torch.randn(1, 16, h, w) for h, w in small]
    alone = run(maps, [torch.ones(1, h, w, dtype=torch.bool) for h, w in small])
    pads = [(0, W - w, 0, H - h) for (h, w), (H, W) in zip(small, large)]
    valid = [F.pad(torch.ones(1, h, w), p).bool() for (h, w), p in zip(small, pads)]
    beside = run([F.pad(m, p, value=7.0) for m, p in zip(maps, pads)], valid)
    inside = torch.cat([v.flatten(1) for v in valid], 1)
    assert torch.allclose(beside[inside], alone[0], atol=1e-4)


def test_hungarian():
    cost = torch.tensor([[[1.0, 2, 9], [0, 3, 9], [5, 5, 9]], [[4, 4, 4], [1, 2, 3], [9, 9, torch.nan]]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    layers = torch.stack([cost, -cost])
    wide = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
    first, second = hungarian([layers, wide], valid)
    assert first.shape == (2, 2, 3) and second.shape == (2, 5)
    assert first[0].tolist() == [[1, 0, -1], [2, 0, 1]]  # 2 + 0 for two objects; 4 + 1 + 9 for three
    assert ((first[1] >= 0).sum(1) == valid.sum(1)).all() and ((second >= 0).sum(1) == valid.sum(1)).all()
    assert hungarian([cost], torch.zeros(2, 3, dtype=torch.bool))[0].max() == -1


def model() -> DeformableDETR:
    torch.manual_seed(0)
    return detcore.create_model(NAME, profile="pocket", num_classes=3).eval()


def truth() -> Truth:
    boxes = torch.tensor([[[10.0, 20, 50, 60], [30, 10, 90, 30]]])
    return Truth(boxes, torch.tensor([[2, 0]]), torch.tensor([[True, True]]), torch.tensor([[[100.0, 80, 100, 80]]]))


def test_right_answers_cost_nothing():
    right = torch.tensor([[0.3, 0.5, 0.4, 0.5], [0.6, 0.25, 0.6, 0.25]])
    boxes = torch.stack([torch.tensor([0.9, 0.9, 0.1, 0.1]), right[1], right[0]])[None, None]
    logits = torch.full((1, 1, 3, 3), -20.0)
    logits[0, 0, 1, 0] = logits[0, 0, 2, 2] = 20.0
    match = hungarian([match_cost(Answers(logits, boxes), truth())], truth().valid)[0]
    assert match.tolist() == [[[-1, 1, 0]]]
    right = set_losses(Answers(logits, boxes), match, truth())
    assert all(v.item() == pytest.approx(0, abs=1e-4) for v in right.values())
    off = set_losses(Answers(logits, boxes + torch.tensor([0.01, 0, 0, 0])), match, truth())
    assert off["loss_bbox"].item() == pytest.approx(5 * 0.01, rel=1e-4)  # for each of two objects, over two


def test_first_boxes_grow_with_the_level():
    detector = model()
    images = Images(torch.randn(2, 3, 64, 96), [(64, 96), (48, 64)])
    memory = detector.encode(detector.features(images.tensor), images)
    _, (_, boxes) = detector(images)
    start, sides = 0, []
    for h, w in memory.sizes:
        inside = memory.valid[:, start:start + h * w] & (boxes[:, start:start + h * w] < 1).all(2)
        sides.append(boxes[:, start:start + h * w, 2:][inside])
        start += h * w
    for level, side in enumerate(sides):  # the branch's last layer begins at zero
        assert side.numel() == 0 or torch.allclose(side, torch.full_like(side, 0.05 * 2**level), atol=1e-4)
    assert sides[0].numel() > 0
    centres = cell_centres(memory.sizes, torch.device("cpu"))
    assert torch.allclose(boxes[0, :len(sides[0]) // 2, :2][0], centres[0], atol=1e-4) or (boxes[0, 0] == 1).all()


def test_layers_start_from_the_boxes_before():
    detector = model()
    images = Images(torch.randn(1, 3, 64, 64), [(64, 64)])
    found, (_, proposed) = detector(images)
    first = found[0][1]
    near = (first[:, :, None] - proposed[:, None]).abs().sum(3).amin(2)
    assert near.max() < 1e-4  # before training a layer leaves them where they are
    assert torch.allclose(found[-1][1], first, atol=1e-4)
    share = torch.tensor([0.0, 0.25, 1.0])
    assert torch.allclose(logit(share).sigmoid(), share, atol=2e-5)


def test_images_without_objects_and_small_ones():
    detector = model().train()
    images = Images(torch.randn(2, 3, 32, 32), [(32, 32), (20, 32)])  # 22 cells are fewer than the queries
    losses = detector.loss(images, [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) for _ in range(2)])
    assert all(v.isfinite() for v in losses.values()) and losses["loss_bbox"] == 0
    assert {n.split(".")[-1] for n in losses} == {"loss_cls", "loss_bbox", "loss_iou", "enc_loss_cls", "enc_loss_bbox",
                                                  "enc_loss_iou"}
    found = detector.eval().predict(images)
    assert all(len(f) == 22 * 3 for f in found)
    assert (found[1].boxes[:, 3] <= 20).all()
