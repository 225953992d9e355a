"""MaskFormer's and Mask2Former's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

import detcore
from detcore.errors import UsageError
from detcore.layers.position import not_padding
from detcore.methods import maskformer as method
from detcore.methods.mask2former import Mask2FormerHead, RandomPoints, at_points, attention_mask
from detcore.methods.maskformer import (
    NO_OBJECT_WEIGHT,
    MaskPredictions,
    Segments,
    boxes_around,
    gt_segments,
    panoptic,
)
from detcore.ops.losses import dice, focal
from detcore.ops.set_matching import dice_cost, focal_cost, hungarian, pairwise_mean
from detcore.structures import IGNORED, INSTANCE, Detections, Images, Target

BIG = 20.0  # a logit that is sure


def images(height: int = 32, width: int = 64) -> Images:
    return Images(torch.zeros(2, 3, height, width), [(height, 40), (20, width)])


def square(size: tuple[int, int], top: int, left: int, side: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.uint8)
    mask[top:top + side, left:left + side] = 1
    return mask


def target(*masks: Tensor, semantic: Tensor | None = None) -> Target:
    stacked = torch.stack(masks) if masks else torch.zeros(0, 32, 64, dtype=torch.uint8)
    return Target(torch.zeros(len(masks), 4), torch.arange(len(masks)), stacked, semantic=semantic)


def test_stuff_becomes_segments():
    semantic = torch.full((32, 64), IGNORED)
    semantic[:8], semantic[8:16], semantic[16] = 5, 3, 1  # two kinds of stuff; a thing is told by its mask
    semantic = semantic.long()
    gt = gt_segments([target(square((32, 64), 0, 0, 4), semantic=semantic),
                      target(semantic=torch.full((32, 64), IGNORED))], images(), things=3, stuff=4)
    assert gt.counts == [1 + 4, 4] and gt.labels.tolist() == [0, 3, 4, 5, 6, 3, 4, 5, 6]
    assert gt.valid.tolist() == [True, True, False, True, False] + [False] * 4
    assert torch.equal(gt.masks[1].bool(), semantic == 3) and torch.equal(gt.masks[3].bool(), semantic == 5)
    assert gt.masks.shape == (9, 32, 64) and gt.masks[0].sum() == 16
    # Without stuff the class maps don't matter.
    assert gt_segments([target(semantic=semantic)], images(), 3, 0).counts == [0]


def test_missing_targets_are_one_sentence():
    with pytest.raises(UsageError, match="no class map"):
        gt_segments([target()], images(), 3, 4)
    with pytest.raises(UsageError, match="have none"):
        gt_segments([Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))], images(), 3, 0)


def test_padding():
    valid = not_padding((4, 8), images())
    assert valid[0].all(0).tolist() == [True] * 5 + [False] * 3 and valid[1].all(1).tolist() == [True] * 3 + [False]


def test_costs_are_the_losses_of_every_pair():
    torch.manual_seed(0)
    logits, gt_masks = torch.randn(2, 4, 50), (torch.rand(2, 3, 50) > 0.5).float()
    pairs = logits[:, :, None].expand(-1, -1, 3, -1), gt_masks[:, None].expand(-1, 4, -1, -1)
    torch.testing.assert_close(dice_cost(logits, gt_masks), dice(*pairs))
    torch.testing.assert_close(pairwise_mean(*focal_cost(logits), gt_masks), focal(*pairs).mean(-1))
    assert all(cost.isfinite().all() for cost in focal_cost(torch.tensor([-200.0, 200.0])))


def test_points():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [1 / 4, 0.5 / 3]]])
    assert at_points(maps, points)[0, 0].tolist() == pytest.approx([0, 11, 0.5], abs=1e-5)
    torch.manual_seed(0)
    slope = torch.linspace(-5, 5, 64).expand(1, 64, 64)  # uncertain in the middle alone
    points = RandomPoints(400).uncertain(slope)
    assert points.shape == (1, 400, 2) and points.min() >= 0 and points.max() <= 1
    middle = (points[..., 0] - 0.5).abs() < 0.15
    assert 0.75 <= middle.float().mean() < 0.9  # the chosen ones, and a few of the rest
    assert RandomPoints(7).uncertain(slope[:0]).shape == (0, 7, 2)


def test_a_query_looks_where_its_mask_is():
    masks = torch.full((1, 2, 8, 8), -BIG)
    masks[0, 0, :4, :4] = BIG
    mask = attention_mask(masks, (4, 4))
    assert mask.shape == (1, 1, 2, 16)
    assert mask[0, 0, 0].view(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert mask[0, 0, 1].all()  # nothing seen yet


def test_boxes_around_masks():
    masks = torch.stack([square((10, 12), 2, 3, 4), square((10, 12), 0, 0, 0)]).bool()
    assert boxes_around(masks).tolist() == [[3, 2, 7, 6], [0, 0, 0, 0]]
    assert boxes_around(masks[:0]).shape == (0, 4)


def queries(*predicted: tuple[int, float, Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Class probabilities [Q, C + 1] and mask logits [Q, h, w] of queries given by label, probability and mask."""
    probability = torch.zeros(len(predicted), classes + 1)
    for row, (label, score, _) in zip(probability, predicted):
        row[-1] = 1 - score
        row[label] = score
    return probability, torch.stack([(m.float() * 2 - 1) * BIG for _, _, m in predicted])


def small_head(stuff: int = 0, **options) -> Mask2FormerHead:
    torch.manual_seed(0)
    name = "mask2former_r50_8xb2-lsj-50e_coco" + ("-panoptic" if stuff else "")
    model = detcore.create_model(name, profile="pocket", num_classes=2, **options)
    return model.panoptic_head


def detect(head: Mask2FormerHead, probability: Tensor, masks: Tensor) -> Detections:
    """What a head makes of one image's predictions, whose masks have the size of the image."""
    size = (masks.shape[1], masks.shape[2])
    logits = probability.clamp(min=1e-9).log()
    return head.detections(MaskPredictions(logits[None], masks[None]), Images(torch.zeros(1, 3, *size), [size]),
                           [size])[0]


def test_instances_are_things_alone():
    size, head = (10, 12), small_head()
    head.num_classes = 2
    detections = detect(head, *queries((0, 0.9, square(size, 0, 0, 4)), (3, 0.95, square(size, 0, 0, 10)), classes=4))
    assert set(detections.labels.tolist()) <= {0, 1}
    assert detections.scores[0].item() == pytest.approx(0.9, abs=1e-4)
    assert detections.boxes[0].tolist() == [0, 0, 4, 4]
    assert (detections.scores.diff() <= 0).all()


def test_only_needed_masks_are_enlarged(monkeypatch):
    """Masks of queries that no detection and no segment comes from are left as they are."""
    size = (12, 12)
    probability, masks = queries(
        (0, 0.9, square(size, 0, 0, 4)), (1, 0.5, square(size, 4, 4, 4)), (1, 0.02, square(size, 0, 4, 4)),
        (0, 0.3, square(size, 0, 0, 0)), classes=2)
    enlarged, resize = [], method.resize

    def counted(masks: Tensor, size: tuple[int, int]) -> Tensor:
        enlarged.append(len(masks))
        return resize(masks, size)

    monkeypatch.setattr(method, "resize", counted)
    everything = detect(small_head(), probability, masks)
    assert enlarged == [4, 4] and everything.scores.min() > 0  # an empty mask scores nothing
    enlarged.clear()
    some = detect(small_head(score_threshold=0.4), probability, masks)
    assert enlarged == [2, 2] and some.labels.tolist() == [0, 1]
    assert torch.equal(some.masks, everything.masks[:2]) and torch.equal(some.scores, everything.scores[:2])
    assert len(detect(small_head(max_detections=1), probability, masks)) == 1
    enlarged.clear()
    none = detect(small_head(score_threshold=0.95), probability, masks)
    assert enlarged == [0, 0] and len(none) == 0 and none.masks.shape == (0, 12, 12)
    for option, value in ("score_threshold", -0.1), ("max_detections", 0):
        with pytest.raises(UsageError, match=f"{option} is .*, not {value}"):
            small_head(**{option: value})


@pytest.mark.parametrize("stuff", (0, 2))
def test_a_few_masks_at_a_time_are_as_good_as_all(stuff, monkeypatch):
    """Large pictures have their masks enlarged in parts, each of a bounded number of pixels, whatever is kept."""
    torch.manual_seed(0)
    head, size = small_head(stuff), (24, 32)
    classes = head.cls_embed.out_features
    at = BIG * (2 * torch.eye(48)[:40].view(1, 40, 6, 8) - 1)  # each query has a cell of its own
    predictions = MaskPredictions(3 * torch.randn(1, 40, classes), at + torch.randn(1, 40, 6, 8))
    head.object_score = 0.3
    resize, pixels = method.resize, []

    def counted(masks: Tensor, size: tuple[int, int]) -> Tensor:
        pixels.append(len(masks) * size[0] * size[1])
        return resize(masks, size)

    monkeypatch.setattr(method, "resize", counted)
    found = []
    for limit in (2**25, 7 * 90 * 120, 1):
        monkeypatch.setattr(method, "AT_A_TIME", limit)
        pixels.clear()
        found += head.detections(predictions, Images(torch.zeros(1, 3, *size), [(24, 30)]), [(90, 120)])
        assert max(pixels) <= max(limit, 90 * 120)
    whole, *parts = found
    assert len(whole) > 15 and (whole.panoptic is not None) == bool(stuff)
    for one in parts:
        assert torch.equal(one.masks, whole.masks) and torch.equal(one.boxes, whole.boxes)
        torch.testing.assert_close(one.scores, whole.scores)
        assert torch.equal(one.labels, whole.labels)
        if stuff:
            assert torch.equal(one.panoptic, whole.panoptic) and len(whole.panoptic.unique()) > 3


def test_panoptic_map():
    size = (20, 20)
    probability, masks = queries(
        (0, 0.9, square(size, 0, 0, 10)), (0, 0.85, square(size, 10, 10, 5)),  # two of a class
        (0, 0.81, square(size, 0, 0, 9)),  # hidden by the first
        (3, 0.9, square(size, 0, 12, 6)), (3, 0.9, square(size, 14, 0, 6)),  # stuff in two places
        (1, 0.5, square(size, 18, 18, 2)), classes=4)  # improbable
    head = small_head(stuff=2)
    head.num_classes, head.stuff, head.object_score = 2, 2, 0.8
    result = detect(head, probability, masks).panoptic
    assert sorted(result.unique().tolist()) == [3, 4, INSTANCE, 2 * INSTANCE]
    assert result[0, 0] == INSTANCE and result[10, 10] == 2 * INSTANCE and result[0, 12] == result[14, 0] == 3
    assert result[19, 19] == 4  # void
    # Else pixels outside all masks belong to the segment that is least improbable there.
    head.void_outside_masks = False
    assert (detect(head, probability, masks).panoptic == 4).sum() < (result == 4).sum()
    head.object_score = 0.99
    assert (detect(head, probability, masks).panoptic == 4).all()
    assert (panoptic(probability[:0], masks[:0], 2, False) == 4).all()


def test_a_perfect_prediction_costs_nothing_and_is_matched():
    head = small_head()
    mask = torch.stack([square((32, 64), 0, 0, 16), square((32, 64), 16, 32, 16)])
    gt = Segments(torch.tensor([2, 1]), mask, torch.ones(2, dtype=torch.bool), [2])
    right = (mask[:, ::4, ::4].float() * 2 - 1) * BIG
    predictions = []
    for first, second in (3, 1), (0, 2):  # two layers, four queries
        logits, masks = torch.full((1, 4, 4), -BIG), torch.full((1, 4, 8, 16), -BIG)
        logits[0, :, 3] = BIG
        for query, label, m in (first, 2, right[0]), (second, 1, right[1]):
            logits[0, query] = -BIG
            logits[0, query, label] = BIG
            masks[0, query] = m
        predictions.append(MaskPredictions(logits, masks))
    matched = head.match(predictions, gt)
    assert matched.query.tolist() == [[3, 1], [0, 2]] and matched.index.tolist() == [[0, 1]] * 2
    losses = head.loss(predictions, gt)
    assert losses.keys() == {f"{prefix}loss_{name}" for prefix in ("", "d0.") for name in ("cls", "mask", "dice")}
    assert losses["loss_cls"].item() == pytest.approx(0, abs=1e-4)
    assert losses["loss_dice"] < head.dice_weight  # but for the borders, between cells
    wrong, _ = head.mask_losses([-p.masks for p in predictions], matched, gt.masks)
    pixel, _ = head.mask_losses([p.masks for p in predictions], matched, gt.masks)
    assert pixel.shape == (2, 2) and (wrong > 10 * pixel).all()


def test_queries_without_an_object_count_less():
    head = small_head()
    logits = torch.zeros(1, 1, 3, 4)
    logits[..., 0] = BIG  # right once, wrong twice
    matched, = hungarian([[torch.tensor([[[0.0], [1], [1]]])]], [torch.tensor([True])])
    expected = head.class_weight * BIG * 2 * NO_OBJECT_WEIGHT / (1 + 2 * NO_OBJECT_WEIGHT)
    assert head.class_loss(logits, matched, torch.tensor([0])).item() == pytest.approx(expected, rel=1e-4)


def test_more_objects_than_queries():
    head = small_head()
    gt = Segments(torch.tensor([0, 1, 2, 0, 1]), (torch.rand(5, 32, 64) > 0.5).to(torch.uint8),
                  torch.ones(5, dtype=torch.bool), [5])
    predictions = [MaskPredictions(torch.randn(1, 3, 4), torch.randn(1, 3, 8, 16)) for _ in range(2)]
    matched = head.match(predictions, gt)
    assert matched.counts == [3] and all(sorted(row) == [0, 1, 2] for row in matched.query.tolist())
    assert all(v.isfinite() for v in head.loss(predictions, gt).values())
