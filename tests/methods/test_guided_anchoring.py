"""Guided anchoring's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

import detcore
from detcore.errors import UsageError
from detcore.methods.guided_anchoring import (
    FeatureAdaption,
    GARetinaHead,
    GARPNHead,
    location_targets,
    region_cells,
    shape_anchors,
)
from detcore.ops import matching
from detcore.ops.deform import deform_conv
from detcore.ops.nms import ProposalSettings
from detcore.structures import Images

SIZES = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
STRIDES = (4, 8, 16, 32, 64)
IMAGES = Images(torch.zeros(1, 3, 128, 128), [(128, 128)])


def targets_of(*boxes: tuple[float, float, float, float]) -> tuple[list[Tensor], list[Tensor]]:
    """Location targets of one image with squares of 8 strides; a padded object besides."""
    gt_boxes = torch.tensor([[*boxes, (0.0, 0.0, 0.0, 0.0)]])
    valid = torch.tensor([[True] * len(boxes) + [False]])
    return location_targets(gt_boxes, valid, SIZES, STRIDES, 8)


def rpn_head() -> GARPNHead:
    return GARPNHead(16, ProposalSettings(2000, 300), ProposalSettings(1000, 300))


def features(channels: int = 16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, channels, *size) for size in SIZES]


def unsure(head: nn.Module) -> nn.Module:
    """The head with location logits far below the threshold."""
    nn.init.zeros_(head.conv_loc.weight)
    nn.init.constant_(head.conv_loc.bias, -10)
    return head


def test_the_middle_of_a_box_in_cells():
    boxes = torch.tensor([[[0.0, 0.0, 80.0, 160.0]]])
    cells = region_cells(boxes, 0.2, 8, (20, 30))[0, 0].nonzero()
    # Of 10 x 20 cells the middle 2 x 4, both ends included.
    assert cells.amin(0).tolist() == [8, 4] and cells.amax(0).tolist() == [12, 6] and len(cells) == 5 * 3


def test_an_object_trains_one_level_and_silences_its_neighbours():
    centres, weights = targets_of((32, 32, 96, 96))  # as large as a square of the second level
    assert [int(c.sum()) for c in centres] == [0, 9, 0, 0, 0]
    assert centres[1][0, 8, 8] and weights[1][0, 8, 8] == 1
    assert weights[1][0, 8, 6] == 0  # around the centre
    assert weights[1][0, 8, 4] == pytest.approx(0.1)  # inside the object, far from its centre
    assert weights[0][0, 16, 16] == weights[2][0, 4, 4] == 0
    assert [int((w == 0).sum()) for w in weights] == [81, 16, 9, 0, 0]
    assert weights[3].unique().tolist() == pytest.approx([0.1])


def test_where_objects_overlap_the_last_one_decides_whether_a_cell_trains():
    large, beside = (32, 32, 96, 96), (52, 32, 116, 96)  # the first one's centre lies around the second's
    centres, weights = targets_of(large, beside)
    assert centres[1][0, 8, 8] and weights[1][0, 8, 8] == 0
    centres, weights = targets_of(beside, large)
    assert centres[1][0, 8, 8] and weights[1][0, 8, 8] == 1


def test_objects_looked_at_in_parts_give_the_same(monkeypatch):
    torch.manual_seed(0)
    boxes = torch.cat([60 * torch.rand(2, 9, 2), 64 + 60 * torch.rand(2, 9, 2)], 2)
    valid = torch.arange(9) < torch.tensor([[9], [2]])
    head, maps = rpn_head(), [torch.zeros(2, 2, *size) for size in SIZES]
    head.shape_sampler.number = None

    def targets() -> list[Tensor]:
        centers, weights = location_targets(boxes, valid, SIZES, STRIDES, 4)
        return [*centers, *weights, *head.shape_targets(maps, boxes, valid)]

    whole = targets()
    monkeypatch.setattr(matching, "CPU_CHUNK", 3000)
    assert all(torch.equal(a, b) for a, b in zip(targets(), whole))


def test_without_objects_all_cells_are_negative():
    centres, weights = targets_of()
    assert not any(c.any() for c in centres) and all((w == weights[0].max()).all() for w in weights)


def test_a_shape_widens_a_square_about_its_centre():
    square = torch.tensor([10.0, 20.0, 42.0, 52.0])
    wide = shape_anchors(square, torch.tensor([math.log(2) / 0.14, -math.log(4) / 0.14]), 0.14)
    torch.testing.assert_close(wide, torch.tensor([-6.0, 32.0, 58.0, 40.0]))
    assert shape_anchors(square, torch.tensor([1e4, -1e4]), 1.0).isfinite().all()


def test_adaption_does_not_teach_the_shape():
    adaption, x = FeatureAdaption(8), torch.randn(2, 8, 5, 6)
    shape = torch.randn(2, 2, 5, 6, requires_grad=True)
    adaption(x, shape).sum().backward()
    assert shape.grad is None and adaption.conv_offset.weight.grad.abs().sum() > 0
    # Without a shape nothing moves.
    torch.testing.assert_close(adaption(x, torch.zeros(2, 2, 5, 6)), adaption.conv_adaption(x).relu())


def test_cells_take_the_shape_of_the_object_that_a_usual_anchor_fits():
    head = rpn_head()
    # A tall box about the corner of a cell of the first level: half as wide as high, the area of a square.
    half_width, half_height = 16 / math.sqrt(2), 16 * math.sqrt(2)
    gt_boxes = torch.tensor([[[64 - half_width, 64 - half_height, 64 + half_width, 64 + half_height]]])
    head.shape_sampler.number = None
    maps = [torch.zeros(1, 2, *size) for size in SIZES]
    positive, negative, target = head.shape_targets(maps, gt_boxes, torch.tensor([[True]]))
    assert positive[0, 16 * 32 + 16] and 0 < positive.sum() < 20
    assert negative.sum() > 1000 and (target[positive] == gt_boxes[0, 0]).all()


def test_anchors_carry_no_gradient_and_the_shape_loss_does():
    head = rpn_head()
    shapes = [torch.zeros(1, 2, *size, requires_grad=True) for size in SIZES]
    assert not any(a.requires_grad for a in head.guided_anchors(shapes))
    gt_boxes = torch.tensor([[[40.0, 30.0, 90.0, 60.0]]])
    head.shape_loss(shapes, gt_boxes, torch.tensor([[True]])).backward()
    assert sum(s.grad.abs().sum() for s in shapes) > 0


def test_the_location_logit_falls_at_centres():
    """As published; see `location_loss`."""
    maps = [torch.zeros(1, 1, *size, requires_grad=True) for size in SIZES]
    gt_boxes = torch.tensor([[[32.0, 32.0, 96.0, 96.0]]])
    rpn_head().location_loss(maps, gt_boxes, torch.tensor([[True]])).backward()
    assert maps[1].grad[0, 0, 8, 8] > 0 > maps[1].grad[0, 0, 0, 0] and maps[1].grad[0, 0, 8, 6] == 0


def test_cells_below_the_threshold_drop_out_at_test_time_alone():
    head = unsure(rpn_head())
    assert not head.eval().proposals(features(), IMAGES).valid.any()
    head.train()
    assert head.select(head(features()), IMAGES, head.train_proposals).valid.any()
    assert len(unsure(GARetinaHead(16, 3)).eval().predict(features(), IMAGES)[0]) == 0


def test_a_two_stage_detector_names_the_losses_as_published():
    head, target = rpn_head(), detcore.Target(torch.tensor([[32.0, 32.0, 96.0, 96.0]]), torch.tensor([4]))
    names = {"loss_rpn_cls", "loss_rpn_bbox", "loss_anchor_shape", "loss_anchor_loc"}
    assert set(head.loss(features(), IMAGES, [target])) == names
    assert set(head.loss_and_proposals(features(), IMAGES, [target])[0]) == {
        n.replace("loss_anchor", "rpn_loss_anchor") for n in names}


def test_fast_rcnn_asks_for_proposals():
    model = detcore.create_model("ga-fast-rcnn_r50-caffe_fpn_1x_coco", profile="pocket").eval()
    with pytest.raises(UsageError, match="proposals"):
        model.predict(IMAGES)


@pytest.mark.parametrize("channels, out, offset_groups, groups, stride, padding, dilation, modulated", [
    (8, 12, 2, 1, 1, 1, 1, False), (8, 12, 4, 2, 2, 1, 1, True), (16, 16, 1, 4, 1, 2, 2, True)])
def test_deformable_convolution_on_the_cpu_is_torchvisions(channels, out, offset_groups, groups, stride, padding,
                                                           dilation, modulated):
    torch.manual_seed(0)
    h, w = ((side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in (9, 7))
    x, weight = torch.randn(2, channels, 9, 7), torch.randn(out, channels // groups, 3, 3)
    offsets = 3 * torch.randn(2, offset_groups * 18, h, w)  # many taps lie outside
    inputs = [x, offsets, weight] + ([torch.rand(2, offset_groups * 9, h, w)] if modulated else [])
    for value in inputs:
        value.requires_grad_()
    mask = inputs[3] if modulated else None
    wanted = deform_conv2d(x, offsets, weight, None, stride, padding, dilation, mask)
    found = deform_conv(x, offsets, weight, mask, stride=stride, padding=padding, dilation=dilation)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    seed = torch.randn_like(wanted)
    for a, b in zip(torch.autograd.grad(found, inputs, seed), torch.autograd.grad(wanted, inputs, seed)):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)
