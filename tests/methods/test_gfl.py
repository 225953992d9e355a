"""GFL's own pieces and ATSS on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import detcore
from detcore.backbones.resnet import ResNet
from detcore.errors import UsageError
from detcore.methods.gfl import MAX_DISTANCE, GFLHead, Integral, distribution_focal, gfl, quality_focal
from detcore.ops import boxes as box
from detcore.ops.anchors import AnchorGenerator
from detcore.ops.matching import BACKGROUND, ATSSMatcher
from detcore.ops.nms import PostProcess
from detcore.structures import Images

SIZES = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
MAPS = [torch.zeros(1, 1, *size) for size in SIZES]
IMAGES = Images(torch.zeros(1, 3, 128, 128), [(128, 128)])


def grids() -> list[torch.Tensor]:
    return AnchorGenerator.from_scales((8, 16, 32, 64, 128), [8], [1.0])(MAPS)


def test_distances_and_boxes_are_inverse():
    points = torch.tensor([[5.0, 7.0], [30.0, 2.0]])
    boxes = torch.tensor([[0.0, 1.0, 10.0, 20.0], [8.0, 0.0, 20.0, 9.0]])
    distances = box.to_distances(points, boxes)
    assert distances.tolist() == [[5, 6, 5, 13], [22, 2, -10, 7]]  # the second point lies to the right of its box
    assert torch.equal(box.from_distances(points, distances), boxes)


def test_quality_focal_is_least_at_the_quality():
    logits = torch.linspace(-4, 4, 801)
    loss = quality_focal(logits, torch.full_like(logits, 0.7))
    assert logits[loss.argmin()].sigmoid().item() == pytest.approx(0.7, abs=0.01)
    assert quality_focal(torch.tensor([0.0]), torch.tensor([0.5])).item() == 0
    # Towards 0 it is the focal loss without its balance.
    p = logits.sigmoid()
    torch.testing.assert_close(quality_focal(logits, torch.zeros_like(logits)), p**2 * F.softplus(logits))


def test_distribution_focal_wants_the_two_numbers_about_the_target():
    target = torch.tensor([2.25])
    ideal = torch.tensor([[1e-9, 1e-9, 0.75, 0.25, 1e-9]]).log()
    assert Integral(4)(ideal).item() == pytest.approx(2.25, abs=1e-5)
    least = distribution_focal(ideal, target).item()
    assert least == pytest.approx(-(0.75 * torch.tensor(0.75).log() + 0.25 * torch.tensor(0.25).log()).item(), abs=1e-5)
    flat = torch.zeros(1, 5)
    assert Integral(4)(flat).item() == 2 and distribution_focal(flat, target).item() > least


def test_atss_takes_the_candidates_that_stand_out():
    gt_boxes = torch.tensor([[[33.0, 33.0, 95.0, 97.0], [0.0, 0.0, 0.0, 0.0]]])
    match = ATSSMatcher()(grids(), gt_boxes, torch.tensor([[True, False]]))[0]
    overlap = box.pairwise_iou(gt_boxes[0, :1], torch.cat(grids()))[0]
    positive = match >= 0
    assert match[overlap.argmax()] == 0 and set(match[positive].tolist()) == {0}
    assert 1 <= positive.sum() <= 45 and (match[~positive] == BACKGROUND).all()
    # The best level alone has anchors of the object's size.
    assert positive[:256].sum() == positive.sum()


def test_atss_wants_centres_inside_the_object():
    thin = torch.tensor([[[60.5, 10.0, 63.5, 110.0]]])  # between two columns of centres, 56 and 64
    match = ATSSMatcher()(grids(), thin, torch.tensor([[True]]))
    assert (match == BACKGROUND).all()
    assert (ATSSMatcher()(grids(), thin + torch.tensor([2.0, 0, 2.0, 0]), torch.tensor([[True]])) == 0).any()


def test_atss_gives_a_box_to_the_object_that_it_overlaps_most():
    first, second = [32.0, 32.0, 96.0, 96.0], [36.0, 36.0, 104.0, 104.0]
    match = ATSSMatcher()(grids(), torch.tensor([[first, second]]), torch.tensor([[True, True]]))[0]
    anchors = torch.cat(grids())
    exact = (anchors == torch.tensor(first)).all(1)
    assert match[exact].tolist() == [0] and set(match.tolist()) == {BACKGROUND, 0, 1}


def test_without_objects_all_is_background():
    match = ATSSMatcher()(grids(), torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool))
    assert match.shape == (2, 341) and (match == BACKGROUND).all()


def test_a_perfect_head_has_no_loss_but_the_spread_of_its_sides():
    """An object whose sides lie whole strides from an anchor's centre."""
    head = GFLHead(16, 3, depth=1)
    anchors, strides = torch.cat(grids()), (8, 16, 32, 64, 128)
    target = detcore.Target(torch.tensor([[32.0, 32.0, 96.0, 96.0]]), torch.tensor([1]))
    match = ATSSMatcher()(grids(), target.boxes[None], torch.tensor([[True]]))[0]
    per_cell = torch.cat([torch.full((h * w,), float(s)) for (h, w), s in zip(SIZES, strides)])
    distances = (box.to_distances(box.centers(anchors), target.boxes) / per_cell[:, None]).round().long()
    sides = (F.one_hot(distances.clamp(0, MAX_DISTANCE), MAX_DISTANCE + 1) * 60.0 - 30).flatten(1)
    classes = torch.where((match == 0)[:, None] & (torch.arange(3) == 1), 20.0, -20.0)

    def maps(values: torch.Tensor) -> list[torch.Tensor]:
        levels = values.split([h * w for h, w in SIZES])
        return [v.T.reshape(1, -1, h, w) for v, (h, w) in zip(levels, SIZES)]

    head.forward = lambda features: (maps(classes), maps(sides))
    losses = {k: v.item() for k, v in head.loss([], IMAGES, [target]).items()}
    assert losses == pytest.approx(dict(loss_cls=0, loss_bbox=0, loss_dfl=0), abs=1e-4)
    (detections,) = head.predict([], IMAGES)
    assert len(detections) == 1 and detections.labels.tolist() == [1]
    torch.testing.assert_close(detections.boxes, target.boxes, atol=1e-3, rtol=0)


def test_settings_of_the_builder_choose_what_is_kept():
    torch.manual_seed(0)
    backbone = ResNet(18, style="pytorch", base_channels=8, frozen_stages=-1)
    model = gfl(backbone, 3, width=16, depth=1, score_threshold=0.0, nms_threshold=1.0, max_detections=7).eval()
    assert len(model(IMAGES)[0]) == 7
    everything = model.bbox_head.postprocess = PostProcess(0.0, 1.0, 10000, 2)
    assert len(model(IMAGES)[0]) == 2 * 4 + 2  # two of each level, whose last has one cell of three classes
    best = model(IMAGES)[0].scores.max().item()
    model.bbox_head.postprocess = replace(everything, score_threshold=best)
    assert len(model(IMAGES)[0]) == 0


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="nms_threshold is a number from 0 to 1, not 60"):
        GFLHead(16, 3, postprocess=PostProcess(nms_threshold=60))
    with pytest.raises(UsageError, match="num_classes is a whole number of at least 1, not 0"):
        detcore.create_model("gfl_r50_fpn_1x_coco", num_classes=0)
