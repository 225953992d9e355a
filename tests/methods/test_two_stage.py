"""The two-stage methods' own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import roi_align

from detcore.backbones.regnet import DESIGNS, RegNet, stages
from detcore.data.instaboost import InstaBoost, draw_shift, fill_holes, likeness
from detcore.data.transforms import Sample
from detcore.engine.train import train
from detcore.errors import UsageError, WeightsError
from detcore.methods import dynamic_rcnn, grid_rcnn, ms_rcnn
from detcore.methods.dcn import GAMMA, DeformConv2d, DeformRoIAlign, DeformRoIPool, deform_roi_pool, samples_bound
from detcore.methods.libra_rcnn import ALPHA, BalancedL1, BalancedPyramid, balanced_priority
from detcore.methods.weight_standardization import WSConv2d
from detcore.ops import boxes as box
from detcore.ops.deform import deform_conv
from detcore.ops.matching import BACKGROUND, IoUMatcher, Sampler
from detcore.ops.regions import Samples, assign_regions, sample_regions
from detcore.pocket import pocket_zoo
from detcore.structures import Polygons, Proposals, Target
from detcore.weights import load_backbone, save_weights
from detcore.zoo.create import create_model
from tests import parity

CASE = parity.load_case(parity.REFERENCE / "cases" / "retinanet_r18_fpn_1x_coco.json.gz") | {"num_classes": 5}
ROIS = torch.tensor([[0, 3.0, 5.0, 40.0, 61.0], [1, 0.0, 0.0, 90.0, 30.0], [1, 50.0, 20.0, 51.0, 22.0]])


# What all have in common

@pytest.mark.parametrize(("name", "told"), [
    ("faster-rcnn_r50_fpn_1x_coco", ["acc"]),
    ("grid-rcnn_r50_fpn_gn-head_2x_coco", ["acc"]),
    ("cascade-mask-rcnn_r50_fpn_1x_coco", ["s0.acc", "s1.acc", "s2.acc"]),
    ("mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1", ["acc_objectness", "acc_classes"])])
def test_accuracies_are_told_beside_the_losses(name, told):
    torch.manual_seed(0)
    model = create_model(name, profile="pocket", num_classes=5).train()
    images, targets, _ = parity.inputs(CASE)
    losses = model(images, targets)
    assert all(loss.requires_grad and "loss" in key for key, loss in losses.items())
    assert list(model.diagnostics) == told
    assert all(0 <= v <= 100 and not v.requires_grad for v in model.diagnostics.values())


@pytest.mark.parametrize("name", ["cascade-rcnn_r50_fpn_1x_coco", "cascade-mask-rcnn_r50_fpn_1x_coco",
                                  "dynamic-rcnn_r50_fpn_1x_coco", "grid-rcnn_r50_fpn_gn-head_2x_coco",
                                  "libra-faster-rcnn_r50_fpn_1x_coco", "ms-rcnn_r50_fpn_1x_coco",
                                  "faster-rcnn_r50_fpn_dpool_1x_coco", "mask-rcnn_r50_fpn_gn-all_2x_coco"])
def test_builders_take_the_options_of_a_detector(name):
    model = create_model(name, profile="pocket", score_threshold=0.4, nms_threshold=0.6, max_detections=7,
                         rpn_pre_nms_top_n_train=50, rpn_post_nms_top_n_test=20, rpn_nms_threshold=0.9)
    kept, train_proposals, test_proposals = (
        model.roi_head.postprocess, model.rpn_head.train_proposals, model.rpn_head.test_proposals)
    assert (kept.score_threshold, kept.nms_threshold, kept.max_detections) == (0.4, 0.6, 7)
    assert (train_proposals.pre_nms_top_n, test_proposals.post_nms_top_n) == (50, 20)
    assert train_proposals.nms_threshold == test_proposals.nms_threshold == 0.9
    with pytest.raises(UsageError, match="Did you mean score_threshold"):
        create_model(name, profile="pocket", score_treshold=0.4)


def test_samples_in_a_row():
    """Two images, of which the second has two proposals only: what each region belongs to."""
    gt_boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    targets = [Target(gt_boxes, torch.tensor([3, 1])), Target(gt_boxes[1:], torch.tensor([2]))]
    boxes = torch.tensor([[0.0, 0, 10, 9], [20, 21, 40, 40], [60, 60, 70, 70]]).expand(2, 3, 4)
    valid = torch.tensor([[True, True, True], [False, True, True]])
    assigned = assign_regions(Proposals(boxes, torch.ones(2, 3), valid), targets, IoUMatcher(0.5, 0.5), 5)
    samples = sample_regions(assigned, Sampler(None))
    regions, positives = samples.regions(), samples.positives(None)
    assert regions.image.tolist() == [0] * 5 + [1] * 3 and regions.valid.all()
    assert regions.labels.tolist() == [3, 1, 3, 1, 5, 2, 2, 5]  # the objects' own boxes are regions too
    assert positives.image.tolist() == [0] * 4 + [1] * 2 and positives.positive.all()
    assert positives.matched.tolist() == [0, 1, 0, 1, 0, 0]
    assert torch.equal(positives.gt_boxes[-1], gt_boxes[1])
    assert samples.positives(3).index.tolist() == [0, 1, 2, 5, 6]
    assert torch.equal(positives.at(torch.tensor([5, 0])).boxes, positives.boxes[[5, 0]])


# Deformable convolution and pooling

def test_without_offsets_a_deformable_convolution_is_a_convolution():
    x, conv = torch.randn(2, 8, 9, 11), DeformConv2d(8, 4, 3, 2, 1)
    torch.testing.assert_close(conv(x), nn.functional.conv2d(x, conv.weight, None, 2, 1), atol=1e-5, rtol=1e-5)
    halved = DeformConv2d(8, 4, 3, 2, 1, modulated=True, offset_groups=2)  # the weights start at sigmoid(0)
    torch.testing.assert_close(halved(x), nn.functional.conv2d(x, halved.weight / 2, None, 2, 1), atol=1e-5, rtol=1e-5)


def test_offsets_move_the_taps():
    x, weight = torch.randn(1, 1, 8, 8), torch.ones(1, 1, 1, 1)
    shift = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 8, 8)
    moved = deform_conv(x, shift, weight, padding=0)
    torch.testing.assert_close(moved[..., :7, :6], x[..., 1:, 2:])


@pytest.mark.parametrize("offsets, mask, message", [(17, None, "18 offset channels"), (0, None, "18 offset channels"),
                                                    (36, 9, "18 mask channels")])
def test_a_wrong_number_of_offset_channels_is_told(offsets, mask, message):
    with pytest.raises(UsageError, match=message):
        deform_conv(torch.zeros(1, 4, 8, 8), torch.zeros(1, offsets, 8, 8), torch.zeros(4, 4, 3, 3),
                    None if mask is None else torch.zeros(1, mask, 8, 8))


def test_without_offsets_deformable_pooling_is_roi_align():
    feature = torch.randn(2, 3, 20, 30)
    wanted = roi_align(feature, ROIS, (7, 7), 0.25, aligned=True)
    torch.testing.assert_close(deform_roi_pool(feature, ROIS, 7, 0.25), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(DeformRoIPool(3, 7, 4, modulated=True, hidden=8)(feature, ROIS), wanted / 2, atol=1e-5,
                               rtol=1e-5)


def test_an_offset_moves_a_bin_by_a_share_of_the_region():
    feature = torch.randn(1, 2, 40, 40)
    roi, offsets = torch.tensor([[0, 8.0, 8.0, 24.0, 28.0]]), torch.zeros(1, 2, 4, 4)
    offsets[:, 0], offsets[:, 1] = 0.25 / GAMMA, -0.1 / GAMMA  # a quarter of the width to the right, a tenth up
    moved = roi + torch.tensor([0, 4.0, -2.0, 4.0, -2.0])
    torch.testing.assert_close(deform_roi_pool(feature, roi, 4, 1.0, offsets), deform_roi_pool(feature, moved, 4, 1.0),
                               atol=1e-5, rtol=1e-5)


def test_deformable_pooling_has_the_gradient_of_its_offsets():
    """Against finite differences, where no sample is near the border of a cell."""
    feature = torch.randn(1, 2, 12, 12, requires_grad=True)
    roi, offsets = torch.tensor([[0, 2.3, 2.1, 8.2, 9.7]]), torch.full((1, 2, 2, 2), 0.13, requires_grad=True)
    deform_roi_pool(feature, roi, 2, 1.0, offsets).square().sum().backward()
    for place in np.ndindex(*offsets.shape):
        step = torch.zeros_like(offsets)
        step[place] = 1e-2
        up, down = (deform_roi_pool(feature, roi, 2, 1.0, offsets + s).square().sum() for s in (step, -step))
        assert offsets.grad[place].item() == pytest.approx(((up - down) / 2e-2).item(), rel=2e-2, abs=1e-2)
    assert feature.grad.abs().sum() > 0


def random_rois(height: float, width: float, max_area: float, seed: int) -> torch.Tensor:
    """[200, 5] regions of any form within an image, of at most so many pixels."""
    torch.manual_seed(seed)
    limit = torch.tensor([width, height])
    side = limit * torch.rand(200, 2) ** 2
    side[:3] = torch.tensor([[width, height], [width, 1e-3], [1e-3, height]])
    side[3:6] = torch.tensor([[width, max_area / width], [max_area / height, height], [0, 0]])
    side = torch.minimum(side * (max_area / side.prod(1).clamp(min=1e-6)).sqrt().clamp(max=1)[:, None], limit)
    corner = torch.rand(200, 2) * (limit - side)
    return torch.cat([torch.zeros(200, 1), corner, corner + side], 1)


@pytest.mark.parametrize("size", [2, 7])
@pytest.mark.parametrize(("height", "width", "max_area"), [(25, 38, 784), (25, 38, 1e9), (200, 304, 784), (3, 90, 50)])
def test_no_bin_has_more_samples_than_the_bound(height, width, max_area, size):
    bound = samples_bound(height, width, size, max_area)
    for seed in range(20):
        rois = random_rois(height, width, max_area, seed)
        assert (box.sizes(rois[:, 1:]) / size).ceil().prod(1).max() <= bound
    assert bound <= (-(-height // size) + 1) * (-(-width // size) + 1)


def test_a_bound_on_the_samples_changes_nothing():
    """As on a GPU, where they are not counted."""
    pool, rois = DeformRoIAlign(2, (4, 8), 3, hidden=4), random_rois(80, 120, 9600, 0)
    for layer in pool.roi_layers:
        torch.nn.init.normal_(layer.offset_fc[-1].weight)
    features, level = [torch.randn(1, 2, 20, 30), torch.randn(1, 2, 10, 15)], pool.level(rois[:, 1:])
    for i, area in ((0, (2 * 56 / 4) ** 2), (1, 1e9)):
        bound = samples_bound(*features[i].shape[2:], 3, area)
        counted, bounded = (pool.roi_layers[i](features[i], rois[level == i], most) for most in (None, bound))
        torch.testing.assert_close(counted, bounded, atol=1e-5, rtol=1e-5)


def test_no_regions_pool_to_nothing_and_still_have_a_gradient():
    pool = DeformRoIPool(3, 7, 4, hidden=8)
    pool(torch.randn(1, 3, 8, 8), torch.zeros(0, 5)).sum().backward()
    assert all(p.grad is not None for p in pool.parameters())  # processes wait for every parameter's


# Weight standardisation, RegNet

def test_standardised_filters():
    conv, seen = WSConv2d(6, 4, 3), []
    conv.weight.data.mul_(50).add_(3)
    x = torch.zeros(1, 6, 3, 3)
    for i in range(54):  # the answer to each unit image is one weight
        x.zero_().view(-1)[i] = 1
        seen.append((conv(x) - conv.bias[:, None, None])[0, :, 0, 0])
    used = torch.stack(seen, 1)
    torch.testing.assert_close(used.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(used.std(1), torch.ones(4), atol=1e-4, rtol=0)


def test_regnets_follow_from_their_numbers():
    assert stages(DESIGNS["3.2GF"]) == [(96, 2, 48), (192, 6, 48), (432, 15, 48), (1008, 2, 48)]  # table 2 of the paper
    for design in DESIGNS.values():
        made = stages(design)
        assert len(made) == 4 and sum(blocks for _, blocks, _ in made) == design.blocks
        assert all(width % group == 0 for width, _, group in made)
    maps = RegNet("400MF").eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]


def test_a_backbone_with_group_norm_takes_batch_norm_weights(tmp_path):
    source = create_model("faster-rcnn_r50_fpn_1x_coco", profile="pocket")
    save_weights(tmp_path / "bn.safetensors", source.backbone, {})
    model = create_model("mask-rcnn_r50_fpn_gn-all_2x_coco", profile="pocket")
    load_backbone(model, str(tmp_path / "bn.safetensors"))
    assert torch.equal(model.backbone.layer3[0].conv2.weight, source.backbone.layer3[0].conv2.weight)
    deformed = create_model("faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco", profile="pocket")
    load_backbone(deformed, str(tmp_path / "bn.safetensors"))  # offsets stay as they were
    assert not deformed.backbone.layer3[0].conv2.conv_offset.weight.any()
    regnet = create_model("faster-rcnn_regnetx-3.2GF_fpn_1x_coco", profile="pocket")
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        load_backbone(regnet, str(tmp_path / "bn.safetensors"))


# Libra R-CNN

def test_negatives_come_evenly_from_bins_of_overlap():
    torch.manual_seed(0)
    overlap = torch.cat([torch.full((900,), 0.05), torch.full((60,), 0.2), torch.full((60,), 0.4)])[None, :, None]
    match = torch.full((1, 1020), BACKGROUND)
    sampler = Sampler(90, 0.25)
    _, negative = sampler(match, balanced_priority(match, overlap, sampler))
    assert [negative[0, part].sum().item() for part in (slice(0, 900), slice(900, 960), slice(960, 1020))] == [30] * 3


def test_positives_come_evenly_from_the_objects():
    torch.manual_seed(0)
    match = torch.tensor([[0] * 100 + [1] * 20 + [2] * 20])
    sampler = Sampler(96, 0.25)
    positive, _ = sampler(match, balanced_priority(match, torch.full((1, 140, 3), 0.6), sampler))
    counts = torch.bincount(match[positive], minlength=3)
    assert counts.sum() == 24 and counts.max() <= 9


def test_balanced_l1_bends_smoothly():
    loss = BalancedL1()
    error = torch.linspace(-3, 3, 601, dtype=torch.float64, requires_grad=True)
    value = loss(error, torch.zeros_like(error))
    gradient, = torch.autograd.grad(value.sum(), error)
    assert value[300].abs() < 1e-12 and (value.diff().abs() < 0.02).all() and (gradient.diff().abs() < 0.1).all()
    inlier = error.abs() < 1
    wanted = error.sign() * ALPHA * torch.log(loss.b * error.abs() + 1)  # equation 7
    torch.testing.assert_close(gradient[inlier], wanted[inlier].detach())


def test_the_balanced_pyramid_starts_by_adding_the_mean():
    maps = [torch.full((1, 4, 16 >> i, 16 >> i), float(i)) for i in range(3)]
    out = BalancedPyramid(4, level=1)(maps)
    assert [o[0, 0, 0, 0].item() for o in out] == pytest.approx([1.0, 2.0, 3.0])


# Grid R-CNN

def test_grid_targets_lead_back_to_the_boxes():
    """A head that draws its targets finds the objects, up to the size of a cell."""
    gt_boxes = torch.tensor([[20.0, 30.0, 84.0, 90.0], [5.0, 5.0, 45.0, 25.0]])
    regions = gt_boxes + torch.tensor([[4.0, -6.0, -5.0, 8.0], [-2.0, 1.0, 3.0, 2.0]])
    target = grid_rcnn.grid_targets(regions, gt_boxes)
    assert target.shape == (2, 9, 28, 28) and ((target.sum((2, 3)) <= 5) & (target.sum((2, 3)) >= 3)).all()
    # The middle of each cross, as a head would see it.
    middle = nn.functional.conv2d(target.flatten(0, 1)[:, None], torch.ones(1, 1, 3, 3), padding=1).view_as(target)
    drawn = grid_rcnn.grid_boxes(middle * 4 - 10, regions)
    assert ((drawn - gt_boxes).abs() <= box.sizes(regions).repeat(1, 2) / 28).all()


def test_a_region_of_no_size_has_no_points():
    tiny = torch.tensor([[10.0, 10.0, 11.0, 11.0]])
    assert not grid_rcnn.grid_targets(tiny, torch.tensor([[5.0, 5.0, 20.0, 20.0]])).any()


def test_jitter_stays_inside():
    torch.manual_seed(0)
    boxes = torch.tensor([[0.0, 0.0, 50.0, 40.0]]).expand(200, 4)
    moved = grid_rcnn.jitter(boxes, 0.15, torch.tensor([[41.0, 51.0]]).expand(200, 2))
    assert (moved >= 0).all() and (moved <= torch.tensor([50.0, 40.0, 50.0, 40.0])).all()
    assert box.iou(moved, boxes).min() > 0.4 and moved.std(0).min() > 1


# Mask scoring

def test_the_share_of_an_object_inside_a_region():
    masks = torch.zeros(2, 40, 60, dtype=torch.uint8)
    masks[0, 10:30, 10:50], masks[1, 0:4, 0:4] = 1, 1
    boxes = torch.tensor([[[10.0, 10.0, 30.0, 30.0], [0.0, 0.0, 60.0, 40.0], [2.9, 0.0, 9.0, 9.0]]])
    regions = Samples(boxes, torch.tensor([[0, 0, 1]]), boxes, torch.zeros(1, 3, dtype=torch.long),
                      *(torch.ones(1, 3, dtype=torch.bool),) * 3).regions()
    shares = ms_rcnn.share_inside([Target(boxes[0], torch.zeros(3), masks)], regions)
    assert shares.tolist() == pytest.approx([0.5, 1.0, 0.5])
    outlines = Polygons([[np.array([[10, 10], [50, 10], [50, 30], [10, 30]], float)], [np.zeros((0, 2))]], (40, 60))
    shares = ms_rcnn.share_inside([Target(boxes[0], torch.zeros(3), outlines)], regions.at(torch.arange(2)))
    assert shares.tolist() == pytest.approx([0.5, 1.0], abs=0.03)


def test_the_iou_of_a_mask_with_an_object_that_is_half_outside():
    wanted = torch.ones(1, 28, 28)
    assert ms_rcnn.iou_targets(torch.full((1, 28, 28), 5.0), wanted, torch.tensor([0.5])).item() == pytest.approx(0.5)
    assert ms_rcnn.iou_targets(torch.full((1, 28, 28), -5.0), wanted, torch.tensor([1.0])).item() == 0


# Dynamic R-CNN

def test_settings_follow_what_is_seen(monkeypatch):
    monkeypatch.setattr(dynamic_rcnn, "INTERVAL", 4)
    head = create_model("dynamic-rcnn_r50_fpn_1x_coco", profile="pocket").roi_head
    for overlap, error in ((0.6, 0.3), (0.7, torch.nan), (0.8, 0.1), (0.7, 0.2)):
        assert (head.threshold.item(), head.bbox_head.box_loss.beta.item()) == (0.5, 1.0)
        head.observe(torch.tensor(overlap), torch.tensor(error))
    assert head.threshold.item() == pytest.approx(0.7) and head.bbox_head.box_loss.beta.item() == pytest.approx(0.2)


def test_what_was_seen_is_in_the_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(dynamic_rcnn, "INTERVAL", 2)
    root = pocket_zoo.draw(tmp_path / "zoo", images=12, val=4, workers=1, progress=False)

    def run(**more):
        train("dynamic-rcnn_r50_fpn_1x_coco", root, output=tmp_path / "run", device="cpu", steps=6, batch_size=4,
              workers=0, progress=False, log_interval=1, checkpoint_interval=1, keep=9, validate=False, **more)
        lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if "loss" in k} for line in lines]

    whole = run()
    for step in (4, 5, 6):
        (tmp_path / f"run/checkpoints/step_{step:08d}.pt").unlink()
    (tmp_path / "run/record.json").unlink()
    assert run(resume=True) == whole
    saved = torch.load(tmp_path / "run/checkpoints/step_00000006.pt", weights_only=True)
    assert saved["aside"]["roi_head.seen"] == 6
    assert saved["aside"]["roi_head.threshold"] != 0.5 and not any("threshold" in n for n in saved["state_dict"])


# InstaBoost

def sample_of(polygons: bool) -> Sample:
    """A light disc on a dark ground that grows brighter to the right."""
    h, w = 96, 128
    y, x = np.mgrid[:h, :w]
    image = np.repeat((40 + x / 4)[..., None], 3, 2).astype(np.uint8)
    disc = ((x - 50) ** 2 + (y - 40) ** 2 < 15**2).astype(np.uint8)
    image[disc > 0] = 230
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    ring = np.stack([50 + 15 * np.cos(angle), 40 + 15 * np.sin(angle)], 1)
    masks = Polygons([[ring]], (h, w)) if polygons else disc[None]
    return Sample(image, np.array([[35, 25, 65, 55]], np.float32), np.array([3]), masks)


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_an_object_moves_and_its_mask_moves_with_it(polygons, guided):
    sample, boost, shifts = sample_of(polygons), InstaBoost(1.0, color=0.0, guided=guided), []
    before = sample.image.copy()
    for seed in range(6):
        moved = boost(sample, np.random.default_rng(seed))
        mask = (moved.masks.to_bitmap() if polygons else moved.masks)[0]
        assert moved.labels.tolist() == [3] and moved.image.dtype == np.uint8
        x1, y1, x2, y2 = moved.boxes[0]
        assert abs(x2 - x1 - np.ptp(mask.nonzero()[1]) - 1) <= 2 and abs(y2 - y1 - np.ptp(mask.nonzero()[0]) - 1) <= 2
        inner = mask.astype(bool) & (np.roll(mask, 3, 0) & np.roll(mask, -3, 0) & np.roll(mask, 3, 1)
                                     & np.roll(mask, -3, 1)).astype(bool)
        assert moved.image[inner].min() > 200  # the disc is under its mask
        left = (sample_of(False).masks[0] > 0) & ~np.any([np.roll(mask, s, a) for s in range(-4, 5) for a in (0, 1)], 0)
        assert not left.any() or moved.image[left].mean() < 120  # the ground has closed behind it
        shifts.append((x1 + x2) / 2 - 50)
    assert np.array_equal(sample.image, before) and np.std(shifts) > 1


def test_seeds_decide_and_samples_without_masks_pass():
    sample, boost = sample_of(False), InstaBoost()
    first, again = (boost(sample, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.image, again.image) and np.array_equal(first.boxes, again.boxes)
    plain = Sample(sample.image, sample.boxes, sample.labels)
    assert boost(plain, np.random.default_rng(0)) is plain


def test_holes_take_the_colour_around_them():
    sample = sample_of(False)
    filled = fill_holes(sample.image, sample.masks[0])
    assert abs(filled[40, 50].astype(int) - 52).max() <= 12
    far = np.s_[70:, :]
    assert np.array_equal(filled[far], sample.image[far])


def test_like_surroundings_are_likely():
    """The ground's brightness varies from left to right alone: an object moves up and down rather than sideways."""
    sample, rng = sample_of(False), np.random.default_rng(0)
    ground = np.broadcast_to(sample.image[:1], sample.image.shape)
    heat = likeness(np.ascontiguousarray(ground), sample.masks[0])
    assert heat.min() >= 0 and heat.max() == 1
    here = heat.mean(0).argmax()
    assert heat[:, here].min() > 0.99 and heat[:, -1].max() < 0.2
    shifts = np.array([draw_shift(heat, sample.masks[0], rng) for _ in range(200)])
    assert abs(shifts[:, 0].mean()) < 5 and np.ptp(shifts[:, 1]) == heat.shape[0] - 1
