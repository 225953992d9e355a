"""MaskFormer's and Mask2Former's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

import detcore
from detcore.errors import UsageError
from detcore.layers.position import not_padding
from detcore.methods.mask2former import Mask2FormerHead, RandomPoints, at_points, visible
from detcore.methods.maskformer import (
    NOTHING_WEIGHT,
    Segments,
    boxes_around,
    dice,
    dice_cost,
    focal_cost,
    instances,
    panoptic,
    segments,
)
from detcore.structures import IGNORED, INSTANCE, Images, Target

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
    truth = segments([target(square((32, 64), 0, 0, 4), semantic=semantic),
                      target(semantic=torch.full((32, 64), IGNORED))], images(), things=3, stuff=4)
    assert truth.valid.tolist() == [[True] * 3, [False] * 3]
    assert truth.labels[0].tolist() == [0, 3, 5]
    assert torch.equal(truth.masks[0, 1].bool(), semantic == 3) and torch.equal(truth.masks[0, 2].bool(), semantic == 5)
    # Without stuff the class maps don't matter; without anything one empty slot is left.
    assert segments([target(semantic=semantic)], images(), 3, 0).valid.tolist() == [[False]]


def test_missing_truth_is_one_sentence():
    with pytest.raises(UsageError, match="no class map"):
        segments([target()], images(), 3, 4)
    with pytest.raises(UsageError, match="have none"):
        segments([Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))], images(), 3, 0)


def test_padding():
    valid = not_padding((4, 8), images())
    assert valid[0].all(0).tolist() == [True] * 5 + [False] * 3 and valid[1].all(1).tolist() == [True] * 3 + [False]


def test_costs_are_the_losses_of_every_pair():
    torch.manual_seed(0)
    logits, truth = torch.randn(2, 4, 50), (torch.rand(2, 3, 50) > 0.5).float()
    pairs = dice(logits[:, :, None].expand(-1, -1, 3, -1), truth[:, None].expand(-1, 4, -1, -1))
    torch.testing.assert_close(dice_cost(logits, truth), pairs)
    from detcore.ops.losses import focal

    pairs = focal(logits[:, :, None].expand(-1, -1, 3, -1), truth[:, None].expand(-1, 4, -1, -1)).mean(-1)
    torch.testing.assert_close(focal_cost(logits, truth), pairs)
    assert focal_cost(torch.full((1, 5), -200.0), torch.ones(1, 5)).isfinite().all()


def test_points():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[0.5 / 4, 0.5 / 3], [3.5 / 4, 2.5 / 3], [1 / 4, 0.5 / 3]]])
    assert at_points(maps, points)[0, 0].tolist() == pytest.approx([0, 11, 0.5], abs=1e-5)
    torch.manual_seed(0)
    slope = torch.linspace(-5, 5, 64).expand(1, 64, 64)  # unsure in the middle alone
    found = RandomPoints(400).unsure(slope)
    assert found.shape == (1, 400, 2) and found.min() >= 0 and found.max() <= 1
    middle = (found[..., 0] - 0.5).abs() < 0.15
    assert 0.75 <= middle.float().mean() < 0.9  # the chosen ones, and a few of the rest
    assert RandomPoints(7).unsure(slope[:0]).shape == (0, 7, 2)


def test_a_query_looks_where_its_mask_is():
    masks = torch.full((1, 2, 8, 8), -BIG)
    masks[0, 0, :4, :4] = BIG
    mask = visible(masks, (4, 4))
    assert mask.shape == (1, 1, 2, 16)
    assert mask[0, 0, 0].view(4, 4).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert mask[0, 0, 1].all()  # nothing seen yet


def test_boxes_around_masks():
    masks = torch.stack([square((10, 12), 2, 3, 4), square((10, 12), 0, 0, 0)]).bool()
    assert boxes_around(masks).tolist() == [[3, 2, 7, 6], [0, 0, 0, 0]]
    assert boxes_around(masks[:0]).shape == (0, 4)


def queries(*answers: tuple[int, float, Tensor], classes: int) -> tuple[Tensor, Tensor]:
    """Class scores [Q, C + 1] and mask logits [Q, h, w] of queries given by label, score and mask."""
    scores = torch.zeros(len(answers), classes + 1)
    for row, (label, score, _) in zip(scores, answers):
        row[-1] = 1 - score
        row[label] = score
    return scores, torch.stack([(m.float() * 2 - 1) * BIG for _, _, m in answers])


def test_instances_are_things_alone():
    size = (10, 12)
    scores, masks = queries((0, 0.9, square(size, 0, 0, 4)), (3, 0.95, square(size, 0, 0, 10)), classes=4)
    found = instances(scores, masks, things=2)
    assert set(found.labels.tolist()) <= {0, 1}
    assert found.scores[0].item() == pytest.approx(0.9, abs=1e-4) and found.boxes[0].tolist() == [0, 0, 4, 4]
    assert (found.scores.diff() <= 0).all()


def test_panoptic_map():
    size = (20, 20)
    scores, masks = queries(
        (0, 0.9, square(size, 0, 0, 10)), (0, 0.85, square(size, 10, 10, 5)),  # two of a class
        (0, 0.81, square(size, 0, 0, 9)),  # hidden by the first
        (3, 0.9, square(size, 0, 12, 6)), (3, 0.9, square(size, 14, 0, 6)),  # stuff in two places
        (1, 0.5, square(size, 18, 18, 2)), classes=4)  # unsure
    found = panoptic(scores, masks, 2, 0.8, sharp=True)
    assert sorted(found.unique().tolist()) == [3, 4, INSTANCE, 2 * INSTANCE]
    assert found[0, 0] == INSTANCE and found[10, 10] == 2 * INSTANCE and found[0, 12] == found[14, 0] == 3
    assert found[19, 19] == 4  # void
    # Without `sharp`, pixels that nobody wants belong to the one who wants them least little.
    assert (panoptic(scores, masks, 2, 0.8, sharp=False) == 4).sum() < (found == 4).sum()
    assert (panoptic(scores, masks, 2, 0.99, sharp=True) == 4).all()


def small_head(stuff: int = 0) -> Mask2FormerHead:
    torch.manual_seed(0)
    model = detcore.create_model("mask2former_r50_8xb2-lsj-50e_coco", profile="pocket", num_classes=3)
    return model.panoptic_head


def test_a_perfect_answer_costs_nothing_and_is_found():
    head = small_head()
    mask = torch.stack([square((32, 64), 0, 0, 16), square((32, 64), 16, 32, 16)])
    truth = Segments(torch.tensor([[2, 1]]), mask[None], torch.ones(1, 2, dtype=torch.bool))
    logits = torch.full((2, 1, 4, 4), -BIG)  # two layers, four queries
    masks = torch.full((2, 1, 4, 8, 16), -BIG)
    right = (mask[:, ::4, ::4].float() * 2 - 1) * BIG
    for layer, (first, second) in enumerate([(3, 1), (0, 2)]):
        logits[layer, 0, :, 3] = BIG
        for place, label, m in (first, 2, right[0]), (second, 1, right[1]):
            logits[layer, 0, place] = -BIG
            logits[layer, 0, place, label] = BIG
            masks[layer, 0, place] = m
    match = head.match(logits, masks, truth)
    assert match.tolist() == [[[-1, 1, -1, 0]], [[0, -1, 1, -1]]]
    assert head.class_loss(logits, match, truth).tolist() == pytest.approx([0, 0], abs=1e-4)
    pixel, overlap = head.matched_mask_losses(masks, match, truth)
    assert pixel.shape == overlap.shape == (2,) and overlap.max() < 1  # but for the borders, between cells
    wrong, _ = head.matched_mask_losses(-masks, match, truth)
    assert (wrong > 10 * pixel).all()


def test_queries_for_nothing_count_less():
    head = small_head()
    truth = Segments(torch.tensor([[0]]), torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.tensor([[True]]))
    logits, match = torch.zeros(1, 1, 3, 4), torch.tensor([[[0, -1, -1]]])
    logits[..., 0] = BIG  # right once, wrong twice
    wanted = head.class_weight * BIG * 2 * NOTHING_WEIGHT / (1 + 2 * NOTHING_WEIGHT)
    assert head.class_loss(logits, match, truth).item() == pytest.approx(wanted, rel=1e-4)


def test_more_objects_than_queries():
    head = small_head()
    masks = torch.rand(1, 5, 32, 64) > 0.5
    truth = Segments(torch.tensor([[0, 1, 2, 0, 1]]), masks.to(torch.uint8), torch.ones(1, 5, dtype=torch.bool))
    logits, found = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 8, 16)
    match = head.match(logits, found, truth)
    assert ((match >= 0).sum(2) == 3).all()
    assert all(x.isfinite().all() for x in head.matched_mask_losses(found, match, truth))
