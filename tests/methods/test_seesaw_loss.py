"""Seesaw loss on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import detcore
from detcore.errors import UsageError
from detcore.methods.seesaw_loss import (
    COMPENSATION,
    LEAST_SCORE,
    MITIGATION,
    TEMPERATURE,
    NormedConv2d,
    NormedLinear,
    SeesawHead,
    SeesawLoss,
)
from detcore.ops.regions import Regions
from tests import parity

MASK_RCNN = "mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1"
CASCADE = "cascade-mask-rcnn_r101_fpn_seesaw-loss-normed-mask_random-ms-2x_lvis-v1"
CASE = parity.load_case(parity.REFERENCE / "cases" / "retinanet_r18_fpn_1x_coco.json.gz") | {"num_classes": 5}


def counted(*counts: float) -> SeesawLoss:
    """A loss that has seen so many samples of each class, and some background."""
    loss = SeesawLoss(len(counts))
    loss.cum_samples.copy_(torch.tensor([*counts, 1e4]))
    return loss


def regions_of(labels: list[int], valid: list[bool], num_classes: int) -> Regions:
    """One image's regions with these labels."""
    boxes = torch.tensor([[10.0, 10.0, 30.0, 40.0]]).repeat(len(labels), 1)
    label, there, zeros = torch.tensor(labels), torch.tensor(valid), torch.zeros(len(labels), dtype=torch.long)
    return Regions(index=torch.arange(len(labels)), image=zeros, boxes=boxes, matched=zeros, gt_boxes=boxes,
                   labels=label, valid=there, positive=there & (label < num_classes))


def test_the_loss_by_its_definition():
    """A softmax in which each other class is weighed by both factors."""
    counts, logits = [900.0, 40.0, 0.0, 40.0], torch.randn(6, 4, generator=torch.manual_seed(0)) * 3
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    targets = []
    for z, i in zip(logits.tolist(), labels.tolist()):
        score = torch.tensor(z).softmax(0).tolist()
        share = 0.0
        for j in range(4):
            mitigation = min(max(counts[j], 1) / max(counts[i], 1), 1) ** MITIGATION
            compensation = max(score[j] / max(score[i], LEAST_SCORE), 1) ** COMPENSATION
            share += (1 if j == i else mitigation * compensation) * math.exp(z[j])
        targets.append(math.log(share) - z[i])
    torch.testing.assert_close(counted(*counts)(logits, labels), torch.tensor(targets))


def test_a_frequent_class_pushes_a_rarer_one_less():
    logits = torch.zeros(1, 3, requires_grad=True)  # no mistake to compensate
    counted(1000, 1000, 10)(logits, torch.tensor([0])).sum().backward()
    assert logits.grad is not None
    push = logits.grad[0, 1:]
    assert push[1] / push[0] == pytest.approx((10 / 1000) ** MITIGATION, rel=1e-4)


def test_a_mistake_is_pushed_more():
    """However rare the class: here it scores e^2 times as high as the true one."""
    logits = torch.tensor([[0.0, -99.0, 2.0]], requires_grad=True)
    counted(1000, 1000, 10)(logits, torch.tensor([0])).sum().backward()
    share = (10 / 1000) ** MITIGATION * math.exp(2 * COMPENSATION) * math.exp(2)
    assert logits.grad is not None
    assert logits.grad[0, 2] == pytest.approx(share / (1 + share), rel=1e-4)


def test_classes_never_seen_give_finite_losses():
    logits = (1e3 * torch.randn(8, 5)).requires_grad_()
    for counts in ((0, 0, 0, 0, 0), (1e8, 0, 0, 0, 3)):
        error = counted(*counts)(logits, torch.arange(8) % 5)
        error.sum().backward()
        assert error.isfinite().all() and logits.grad.isfinite().all()


def test_a_head_counts_what_is_valid():
    torch.manual_seed(0)
    head = SeesawHead(4, 3, hidden=8)
    regions = regions_of([1, 1, 2, 3, 3, 0], [True, True, True, True, True, False], 3)
    logits, deltas = head(torch.randn(6, 4, 7, 7))
    assert logits.shape == (6, 3 + 2)
    for _ in range(2):
        losses = head.loss(logits, deltas, regions)
    assert head.loss_cls.cum_samples.tolist() == [0, 4, 2, 4]
    assert list(losses) == ["loss_cls_objectness", "loss_cls_classes", "loss_bbox"]
    assert list(head.accuracy(logits, regions)) == ["acc_objectness", "acc_classes"]


def test_a_batch_of_background_teaches_objectness_alone():
    head, regions = SeesawHead(4, 3, hidden=8), regions_of([3, 3], [True, True], 3)
    logits, deltas = head(torch.randn(2, 4, 7, 7))
    losses = head.loss(logits, deltas, regions)
    assert losses["loss_cls_classes"] == 0 and losses["loss_cls_objectness"] > 0
    assert head.accuracy(logits, regions)["acc_classes"] == 0
    (losses["loss_cls_classes"] + losses["loss_cls_objectness"]).backward()
    grad = head.fc_cls.bias.grad
    assert (grad[:3] == 0).all() and (grad[3:] != 0).all()


def test_scores_are_the_class_among_objects_times_objectness():
    head = SeesawHead(4, 2, hidden=8)
    scores = head.scores(torch.tensor([[0.0, 0.0, 9.0, 9.0], [5.0, -40.0, 50.0, 0.0], [5.0, -40.0, 0.0, 50.0]]))
    torch.testing.assert_close(scores, torch.tensor([[0.25, 0.25], [1.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("layer, shape", [(NormedLinear(6, 3), (5, 6)), (NormedConv2d(6, 3, 1), (5, 6, 4, 4))])
def test_normalised_predictors_see_directions(layer, shape):
    x = torch.randn(*shape)
    out = layer(x)
    with torch.no_grad():
        layer.weight[1] *= 7
    torch.testing.assert_close(layer(x * 30), out, atol=1e-4, rtol=1e-4)
    bias = layer.bias.view(-1, *[1] * (len(shape) - 2))
    assert ((out - bias).abs() <= TEMPERATURE * 1.0001).all()
    along = layer.weight[2:].detach().flatten(1).view(1, 6, *[1] * (len(shape) - 2))
    torch.testing.assert_close((layer(along) - bias)[0, 2].flatten(), torch.tensor([TEMPERATURE]), atol=1e-3, rtol=1e-3)


def test_normalised_predictors_stand_zeros():
    layer, x = NormedLinear(6, 3), torch.zeros(2, 6, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(layer(x), layer.bias.expand(2, 3))
    assert x.grad is not None and x.grad.isfinite().all()


def test_counts_are_part_of_the_state():
    model = detcore.create_model(MASK_RCNN, profile="pocket", num_classes=5)
    name = "roi_head.bbox_head.loss_cls.cum_samples"
    assert model.state_dict()[name].tolist() == [0] * 6
    model.roi_head.bbox_head.loss_cls.count(torch.tensor([0, 5, 5]), torch.tensor([True, True, True]))
    other = detcore.create_model(MASK_RCNN, profile="pocket", num_classes=5)
    other.load_state_dict(model.state_dict())
    assert other.state_dict()[name].tolist() == [1, 0, 0, 0, 0, 2]


def test_each_stage_of_a_cascade_counts_for_itself():
    torch.manual_seed(0)
    model = detcore.create_model(CASCADE, profile="pocket", num_classes=5).train()
    images, targets, _ = parity.inputs(CASE)
    targets = [replace(t, labels=torch.full_like(t.labels, 2)) for t in targets]  # four classes without a sample
    losses = model.loss(images, targets)
    sum(losses.values()).backward()
    assert {f"s{i}.loss_cls_{part}" for i in range(3) for part in ("objectness", "classes")} <= losses.keys()
    assert all(v.isfinite() for v in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    counts = [head.loss_cls.cum_samples for head in model.roi_head.bbox_head]
    assert all(c[2] > 0 and c[[0, 1, 3, 4]].sum() == 0 for c in counts)
    assert len({c.data_ptr() for c in counts}) == 3


def test_published_models_keep_more_detections():
    with torch.device("meta"):
        models = [detcore.create_model(name) for name in (MASK_RCNN, CASCADE)]
    kept = [m.roi_head.postprocess for m in models]
    assert [(k.score_threshold, k.max_detections) for k in kept] == [(1e-4, 300)] * 2
    kinds = [type(h.conv_logits) for h in (models[0].roi_head.mask_head, *models[1].roi_head.mask_head)]
    assert kinds == [nn.Conv2d] + [NormedConv2d] * 3


def test_targets_without_masks_are_told():
    model = detcore.create_model(MASK_RCNN, profile="pocket", num_classes=5).train()
    images, targets, _ = parity.inputs(CASE)
    with pytest.raises(UsageError, match="load the data with masks"):
        model.loss(images, [replace(t, masks=None) for t in targets])
