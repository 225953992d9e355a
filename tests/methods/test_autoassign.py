"""AutoAssign's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import math

import pytest
import torch

import detcore
from detcore.errors import UsageError
from detcore.methods.autoassign import AutoAssignHead, CenterPrior, negative_weights, positive_weights
from detcore.structures import Images

SIZES = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
IMAGES = Images(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)


def features(channels: int = 16) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, *size) for size in SIZES]


def objects(*boxes: tuple[float, float, float, float], label: int = 1) -> detcore.Target:
    return detcore.Target(torch.tensor(boxes).reshape(-1, 4), torch.full((len(boxes),), label))


def test_each_class_has_its_own_gaussian_in_strides():
    prior = CenterPrior(2)
    with torch.no_grad():
        prior.mean[1] = torch.tensor([0.0, 2.0])  # two strides below the centre
        prior.sigma[1] = torch.tensor([1.0, 0.5])
    points = torch.tensor([[40.0, 40.0], [48.0, 40.0], [40.0, 56.0], [40.0, 72.0]])
    strides = torch.tensor([[8.0], [8.0], [8.0], [16.0]])
    gt_boxes = torch.tensor([[[20.0, 10.0, 60.0, 70.0]] * 2])
    plain, own = prior(points, strides, gt_boxes, torch.tensor([[0, 1]]))[0].tolist()
    assert plain == pytest.approx([1, math.exp(-0.5), math.exp(-2), math.exp(-2)])
    assert own == pytest.approx([math.exp(-8), math.exp(-8.5), 1, 1])


def test_positive_weights_share_one_and_prefer_confident_cells():
    prior = torch.tensor([[[0.5, 0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    weights = positive_weights(torch.tensor([[[0.9, 0.1, 0.1, 0.9], [0.9, 0.9, 0.9, 0.9]]]), prior)[0]
    assert weights[0].sum().item() == pytest.approx(1) and weights[0, 3] == 0
    assert (weights[0, 0] / weights[0, 1]).item() == pytest.approx(math.exp(3 * 0.8))
    assert (weights[0, 2] / weights[0, 1]).item() == pytest.approx(2)
    assert not weights[1].any()  # an object that no cell lies in


def test_the_cell_with_the_best_box_is_no_negative_of_its_class():
    gt_boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    boxes = torch.tensor([[[0.0, 0.0, 10.0, height] for height in (9.0, 5.0, 8.0, 10.0)]])
    inside = torch.tensor([[[True, True, True, False]]])
    weights = negative_weights(boxes, gt_boxes, torch.tensor([[1]]), inside, 3)[0]
    # 1 / (1 - IoU) is 10, 2 and 5.
    assert weights[:, 1].tolist() == pytest.approx([0, 1, 1 - 3 / 8, 1], abs=1e-4)
    assert (weights[:, [0, 2]] == 1).all()


def test_where_objects_of_one_class_overlap_the_last_decides():
    gt_boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 6.0]]])
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 9.0], [0.0, 0.0, 10.0, 7.5], [0.0, 0.0, 10.0, 8.0]]])
    inside = torch.tensor([[[True, True, False], [False, True, True]]])
    same = negative_weights(boxes, gt_boxes, torch.tensor([[1, 1]]), inside, 2)[0]
    # IoU 0.9, 0.8, 0.8: for the first object the second cell is the worst, for the second both are equal.
    assert same[:, 1].tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    other = negative_weights(boxes, gt_boxes, torch.tensor([[1, 0]]), inside, 2)[0]
    assert other[:, 1].tolist() == pytest.approx([0, 1, 1], abs=1e-3)
    assert other[:, 0].tolist() == pytest.approx([1, 0, 0], abs=1e-3)


def test_the_prior_learns_from_objects_with_cells_alone():
    head = AutoAssignHead(16, 3, depth=1)
    between = objects((5.0, 5.0, 7.0, 7.0))  # no cell's centre lies in it
    losses = head.loss(features(), IMAGES, [between, between])
    assert set(losses) == {"loss_pos", "loss_neg", "loss_center"}
    assert losses["loss_center"] == 0 and losses["loss_pos"].item() == pytest.approx(25)
    sum(losses.values()).backward()
    assert not head.center_prior.mean.grad.any() and not head.center_prior.sigma.grad.any()
    head.zero_grad()
    sum(head.loss(features(), IMAGES, [objects((20.0, 20.0, 90.0, 70.0))] * 2).values()).backward()
    moved = head.center_prior.sigma.grad.abs().sum(1)
    assert moved[1] > 0 and moved[0] == moved[2] == 0
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_padding_of_objects_does_not_count():
    head = AutoAssignHead(16, 3, depth=1)
    one, two = objects((10.0, 10.0, 60.0, 50.0)), objects((10.0, 10.0, 60.0, 50.0), (30.0, 30.0, 100.0, 110.0))
    maps = features()
    together = head.loss(maps, IMAGES, [one, two])
    apart = [head.loss([m[i:i + 1] for m in maps], IMAGES, [t]) for i, t in enumerate((one, two))]
    mean = (apart[0]["loss_pos"] + 2 * apart[1]["loss_pos"]) / 3
    assert together["loss_pos"].item() == pytest.approx(mean.item(), rel=1e-5)
    centre = (apart[0]["loss_center"] + apart[1]["loss_center"]) / 2
    assert together["loss_center"].item() == pytest.approx(centre.item(), rel=1e-5)


def test_the_class_alone_decides_what_is_kept_and_the_objectness_its_rank():
    head = AutoAssignHead(16, 1, depth=0)
    classes = [torch.full((1, 1, *size), -9.0) for size in SIZES]
    distances = [torch.full((1, 4, *size), 4.0) for size in SIZES]
    objectness = [torch.zeros(1, 1, *size) for size in SIZES]
    classes[0][0, 0, 3, 3], objectness[0][0, 0, 3, 3] = 2.0, -4.0  # sure of the class, hardly an object
    classes[0][0, 0, 9, 9] = -1.0
    head.forward = lambda features: (classes, distances, objectness)
    (detections,) = head.predict([], Images(torch.zeros(1, 3, 128, 128), [(128, 128)]))
    sigmoid = torch.tensor([-1.0, 0.0, 2.0, -4.0]).sigmoid()
    assert detections.scores.tolist() == pytest.approx(
        [(sigmoid[0] * sigmoid[1]).item(), (sigmoid[2] * sigmoid[3]).item()])
    assert detections.boxes.tolist() == [[68, 68, 76, 76], [20, 20, 28, 28]]


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="num_classes is a whole number of at least 1, not 0"):
        detcore.create_model("autoassign_r50-caffe_fpn_1x_coco", num_classes=0)
