"""FreeAnchor's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import pytest
import torch

import detcore
from detcore.errors import UsageError
from detcore.methods.free_anchor import BAG, FreeAnchorHead, mean_max, on_an_object
from detcore.ops import matching
from detcore.ops.losses import log_loss
from detcore.structures import Images

SIZES = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
IMAGES = Images(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)


def features(channels: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size) for size in SIZES]


def test_mean_max_is_a_mean_of_bad_anchors_and_the_maximum_of_good_ones():
    bad = torch.tensor([0.01, 0.02, 0.03])
    assert mean_max(bad).item() == pytest.approx(0.02, rel=0.01)
    good = torch.tensor([[0.01, 0.02, 1 - 1e-6], [0.5, 0.5, 0.5]])
    assert mean_max(good).tolist() == pytest.approx([1.0, 0.5], abs=1e-4)
    assert mean_max(torch.ones(4)).item() == pytest.approx(1.0)


def test_the_best_box_of_an_object_is_surely_on_it():
    gt_boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [0.0, 0.0, 0.0, 0.0]]])
    labels, valid = torch.tensor([[2, 1, 0]]), torch.tensor([[True, True, False]])
    boxes = torch.tensor([[*[[0.0, 0.0, 10.0, height] for height in (9.0, 7.5, 5.0)], [80.0, 0.0, 90.0, 9.0]]])
    likely = on_an_object(boxes, gt_boxes, labels, valid, 3)
    assert likely.shape == (1, 4, 3)
    # IoU 0.9, 0.75, 0.5: between the threshold 0.6 and the best.
    assert likely[0, :, 2].tolist() == pytest.approx([1, 0.5, 0, 0], abs=1e-5)
    assert not likely[0, :, :2].any()  # nothing lies on the second object


def test_of_objects_of_one_class_the_nearer_one_counts():
    gt_boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 2.0, 10.0, 12.0]]])
    both = on_an_object(gt_boxes, gt_boxes, torch.tensor([[0, 0]]), torch.tensor([[True, True]]), 1)
    assert both.flatten().tolist() == [1, 1]


def test_an_anchor_that_finds_its_object_is_not_taught_to_be_background():
    torch.manual_seed(0)
    head = FreeAnchorHead(16, 3, depth=0, anchor_scale=2)
    anchors = torch.cat(head.anchors(features()))
    target = detcore.Target(anchors[1000:1001].clone(), torch.tensor([1]))
    scores, deltas = torch.full((1, len(anchors), 3), 0.5), torch.zeros(1, len(anchors), 4)
    gt_boxes, labels, valid = target.boxes[None], target.labels[None], torch.tensor([[True]])
    assert head.bags(scores, deltas, anchors, gt_boxes, labels, valid).shape == (1, 1, BAG)
    best = head.bags(scores, deltas, anchors, gt_boxes, labels, valid).max()
    assert best.item() == pytest.approx(0.5)  # classified half, located exactly
    sure = on_an_object(anchors[None], gt_boxes, labels, valid, 3)
    assert sure[0, 1000].tolist() == [0, 1, 0]


def test_images_without_objects_only_lower_scores():
    head = FreeAnchorHead(16, 3, depth=1)
    empty = detcore.Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    losses = head.loss(features(), IMAGES, [empty, empty])
    assert set(losses) == {"positive_bag_loss", "negative_bag_loss"}
    assert losses["positive_bag_loss"] == 0 and losses["negative_bag_loss"] > 0
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_padding_of_objects_does_not_count():
    head = FreeAnchorHead(16, 3, depth=1)
    one = detcore.Target(torch.tensor([[10.0, 10.0, 60.0, 50.0]]), torch.tensor([1]))
    three = detcore.Target(torch.tensor([[10.0, 10.0, 60.0, 50.0]] * 3), torch.tensor([0, 1, 2]))
    maps = features()
    together = head.loss(maps, IMAGES, [one, three])
    apart = [head.loss([m[i:i + 1] for m in maps], IMAGES, [t]) for i, t in enumerate((one, three))]
    for name, value in together.items():
        assert value.item() == pytest.approx((apart[0][name] + 3 * apart[1][name]).item() / 4, rel=1e-5)


def test_objects_looked_at_in_parts_give_the_same(monkeypatch):
    head = FreeAnchorHead(16, 3, depth=0)
    corners = 100 * torch.rand(7, 2)
    many = detcore.Target(torch.cat([corners, corners + 20 * torch.rand(7, 2) + 1], 1), torch.arange(7) % 3)
    one = detcore.Target(torch.tensor([[10.0, 10.0, 60.0, 50.0]]), torch.tensor([1]))
    whole = head.loss(features(), IMAGES, [one, many])
    monkeypatch.setattr(matching, "CPU_CHUNK", 5000)  # objects of two images, then of one, some at a time
    for name, value in head.loss(features(), IMAGES, [one, many]).items():
        torch.testing.assert_close(value, whole[name])


def test_certain_errors_cost_100_and_teach_nothing():
    p = torch.tensor([0.0, 1.0, 0.5], requires_grad=True)
    loss = log_loss(p)
    assert loss.tolist() == pytest.approx([100, 0, 0.6931472])
    loss.sum().backward()
    assert p.grad.tolist() == pytest.approx([0, -1, -2])


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="num_classes is a whole number of at least 1, not 0"):
        detcore.create_model("freeanchor_r50_fpn_1x_coco", num_classes=0)
