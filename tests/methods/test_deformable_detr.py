"""Deformable DETR's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import detcore
from detcore.errors import UsageError
from detcore.layers.deformable_attention import MSDeformAttention, MSDeformEncoder, cell_centres, sample_levels
from detcore.layers.position import sine_positions
from detcore.methods.deformable_detr import (
    BoxPredictions,
    DeformableDETR,
    deformable_detr,
    logit,
    match_costs,
    set_losses,
)
from detcore.ops.set_matching import Matches, by_layer, hungarian
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


def pairs(matched: Matches, layer: int, image: int) -> dict[int, int]:
    """The query of each matched object of an image, objects counted over the batch."""
    own = matched.image[layer] == image
    return dict(zip(matched.index[layer][own].tolist(), matched.query[layer][own].tolist()))


def test_hungarian():
    first = torch.tensor([[1.0, 2], [0, 3], [5, 5]])
    second = torch.tensor([[4.0, 4, 4], [1, 2, 3], [9, 9, torch.nan]])
    costs = [torch.stack([first, -first]), torch.stack([second, -second])]
    wide = [torch.arange(10.0).view(1, 5, 2), torch.arange(15.0).view(1, 5, 3)]
    valid = [torch.ones(2, dtype=torch.bool), torch.ones(3, dtype=torch.bool)]
    matched, other = hungarian([costs, wide], valid)
    assert matched.counts == other.counts == [2, 3]
    assert matched.image.shape == (2, 5) and other.image.shape == (1, 5)
    assert pairs(matched, 0, 0) == {0: 1, 1: 0}  # 0 + 2
    assert pairs(matched, 0, 1) == {2: 1, 3: 2, 4: 0}  # 1 + 9 + 4: nan is out of reach
    assert pairs(matched, 1, 0).keys() == {0, 1} and pairs(other, 0, 1).keys() == {2, 3, 4}
    labels = matched.labels(torch.tensor([7, 8, 4, 5, 6]), 3, no_object=99)
    assert labels[0].tolist() == [[8, 7, 99], [6, 4, 5]]
    # What is not real takes no query; with more objects than queries some objects stay alone.
    masked, = hungarian([costs], [torch.tensor([False, True]), torch.zeros(3, dtype=torch.bool)])
    assert masked.counts == [1, 0] and pairs(masked, 0, 0) == {1: 0}
    crowd, = hungarian([[torch.rand(2, 3, 50)]], [torch.ones(50, dtype=torch.bool)])
    assert crowd.counts == [3] and all(sorted(row) == [0, 1, 2] for row in crowd.query.tolist())


def test_losses_are_named_by_layer():
    losses = by_layer({"loss_cls": torch.tensor([1.0, 2, 3]), "loss_iou": torch.tensor([4.0, 5, 6])}, "enc_")
    assert {k: v.item() for k, v in losses.items()} == {
        "d0.loss_cls": 1, "d0.loss_iou": 4, "d1.loss_cls": 2, "d1.loss_iou": 5, "enc_loss_cls": 3, "enc_loss_iou": 6}


def model() -> DeformableDETR:
    torch.manual_seed(0)
    return detcore.create_model(NAME, profile="pocket", num_classes=3).eval()


def test_right_predictions_cost_nothing():
    targets = [Target(torch.tensor([[10.0, 20, 50, 60], [30, 10, 90, 30]]), torch.tensor([2, 0]))]
    scale = torch.tensor([[100.0, 80, 100, 80]])
    right = torch.tensor([[0.3, 0.5, 0.4, 0.5], [0.6, 0.25, 0.6, 0.25]])
    boxes = torch.stack([torch.tensor([0.9, 0.9, 0.1, 0.1]), right[1], right[0]])[None, None]
    logits = torch.full((1, 1, 3, 3), -20.0)
    logits[0, 0, 1, 0] = logits[0, 0, 2, 2] = 20.0
    costs = match_costs(BoxPredictions(logits, boxes), targets, scale)
    matched, = hungarian([costs], [torch.ones(2, dtype=torch.bool)])
    assert pairs(matched, 0, 0) == {0: 2, 1: 1}
    losses = set_losses(BoxPredictions(logits, boxes), matched, targets, scale)
    assert all(v.item() == pytest.approx(0, abs=1e-4) for v in losses.values())
    off = set_losses(BoxPredictions(logits, boxes + torch.tensor([0.01, 0, 0, 0])), matched, targets, scale)
    assert off["loss_bbox"].item() == pytest.approx(5 * 0.01, rel=1e-4)  # for each of two objects, over two


def test_a_crowd_is_matched_in_bounded_parts(monkeypatch):
    """What is computed some queries at a time is what it is at once."""
    torch.manual_seed(0)
    predictions = BoxPredictions(torch.randn(2, 1, 50, 3), torch.rand(2, 1, 50, 4) * 0.3 + 0.2)
    corner = torch.rand(20, 2) * 50
    targets = [Target(torch.cat([corner, corner + torch.rand(20, 2) * 30 + 1], 1), torch.randint(3, (20,)))]
    scale = torch.tensor([[100.0, 80, 100, 80]])
    whole, = match_costs(predictions, targets, scale)
    monkeypatch.setattr("detcore.methods.deformable_detr.CHUNK", 300)
    parts, = match_costs(predictions, targets, scale)
    assert whole.shape == (2, 50, 20) and torch.allclose(whole, parts)


def test_first_boxes_grow_with_the_level():
    detector = model()
    images = Images(torch.randn(2, 3, 64, 96), [(64, 96), (48, 64)])
    memory = detector.encode(detector.features(images.tensor), images)
    boxes = detector.propose(memory).boxes
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
    layers, proposed = detector.outputs(detector.features(images.tensor), images)
    first = layers[0].boxes
    near = (first[:, :, None] - proposed.boxes[:, None]).abs().sum(3).amin(2)
    assert near.max() < 1e-4  # before training a layer leaves them where they are
    assert torch.allclose(layers[-1].boxes, first, atol=1e-4)
    share = torch.tensor([0.0, 0.25, 1.0])
    assert torch.allclose(logit(share).sigmoid(), share, atol=2e-5)


def test_images_without_objects_and_small_ones():
    detector = model().train()
    images = Images(torch.randn(2, 3, 32, 32), [(32, 32), (20, 32)])  # 22 cells are fewer than the queries
    losses = detector.loss(images, [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)) for _ in range(2)])
    assert all(v.isfinite() for v in losses.values()) and losses["loss_bbox"] == 0
    assert {n.split(".")[-1] for n in losses} == {"loss_cls", "loss_bbox", "loss_iou", "enc_loss_cls", "enc_loss_bbox",
                                                  "enc_loss_iou"}
    detections = detector.eval().predict(images)
    assert all(len(d) == 22 * 3 for d in detections)
    assert (detections[1].boxes[:, 3] <= 20).all()


def test_thresholds():
    torch.manual_seed(0)
    images = Images(torch.randn(1, 3, 64, 64), [(64, 64)])
    everything, = model().predict(images)
    middle = everything.scores.median().item()
    for options in dict(score_threshold=middle), dict(max_detections=7):
        torch.manual_seed(0)
        detector = detcore.create_model(NAME, profile="pocket", num_classes=3, **options).eval()
        some, = detector.predict(images)
        expected = (everything.scores > middle).sum().item() if "score_threshold" in options else 7
        assert 0 < len(some) == expected < len(everything)
        assert torch.equal(some.boxes, everything.boxes[:expected])
    with pytest.raises(UsageError, match="score_threshold is a number from 0 to 1, not 2"):
        deformable_detr(detector.backbone, score_threshold=2)
    with pytest.raises(UsageError, match="max_detections is a whole number of at least 1, not 0"):
        deformable_detr(detector.backbone, max_detections=0)


def kept_bytes(attention: MSDeformAttention, *arguments) -> int:
    """Bytes of what a layer keeps for its backward pass, each storage once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        attention(*arguments)
    return sum(storage.nbytes() for storage in storages.values())


def test_samples_are_not_kept_for_the_backward_pass():
    torch.manual_seed(0)
    sizes = [(16, 20), (8, 10)]
    cells = sum(h * w for h, w in sizes)
    attention = MSDeformAttention(64, heads=4, levels=2, points=4)
    x, reference = torch.randn(1, cells, 64, requires_grad=True), torch.rand(1, cells, 2, 2)
    samples = 4 * x.numel() * 2 * 4
    assert kept_bytes(attention, x, reference, x, sizes) < samples
    # Their gradients are those of plain sampling.
    attention(x, reference, x, sizes).square().sum().backward()
    again = x.grad.clone()
    x.grad = None
    values = attention.value_proj(x).unflatten(2, (4, -1))
    offsets = attention.sampling_offsets(x).unflatten(2, (4, 2, 4, 2))
    weights = attention.attention_weights(x).unflatten(2, (4, -1)).softmax(3).unflatten(3, (2, 4))
    step = 1 / torch.tensor([[20.0, 16], [10, 8]])[:, None]
    plain = by_grid_sample(values, sizes, reference[:, :, None, :, None] + offsets * step, weights)
    attention.output_proj(plain).square().sum().backward()
    assert torch.allclose(again, x.grad, rtol=1e-4, atol=1e-4 * x.grad.abs().max().item())


def by_grid_sample(values: Tensor, sizes: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_levels` in one expression a level, which keeps all samples [N, heads, d, Q, points]."""
    out, start = 0.0, 0
    for i, (h, w) in enumerate(sizes):
        maps = values[:, start:start + h * w].permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, (h, w))
        grid = 2 * locations[:, :, :, i].transpose(1, 2).flatten(0, 1) - 1
        seen = F.grid_sample(maps, grid, align_corners=False).unflatten(0, (len(values), -1))
        out = out + (seen * weights[:, :, :, i].transpose(1, 2)[:, :, None]).sum(-1)
        start += h * w
    return out.permute(0, 3, 1, 2).flatten(2)
