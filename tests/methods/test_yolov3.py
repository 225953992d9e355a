"""YOLOv3's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import math

import pytest
import torch

import detcore
from detcore.backbones.darknet import Darknet
from detcore.errors import UsageError
from detcore.methods.yolov3 import COCO_ANCHORS, OBJECTNESS, STRIDES, GridMatcher, YOLOHead, decode, encode, yolov3
from detcore.ops import matching
from detcore.ops.anchors import level_values
from detcore.ops.matching import BACKGROUND, IGNORE
from detcore.pocket.slim import SLIM_DARKNET
from detcore.structures import Images
from detcore.weights import load_backbone

SIZES = [(4, 4), (8, 8), (16, 16)]
IMAGES = Images(torch.zeros(1, 3, 128, 128), [(128, 128)])


def head(num_classes: int = 3) -> YOLOHead:
    return YOLOHead((8, 8, 8), (8, 8, 8), COCO_ANCHORS, num_classes)


def anchors() -> tuple[torch.Tensor, torch.Tensor]:
    """All anchors of an image of 128 x 128, and the sides of their cells."""
    levels = head().anchors([torch.zeros(1, 1, *size) for size in SIZES])
    return torch.cat(levels), level_values(levels, STRIDES)


def match(*objects: list[float]) -> torch.Tensor:
    gt_boxes = torch.tensor([[*objects, [0.0] * 4]])  # with one more entry, that is padding
    valid = torch.arange(len(objects) + 1)[None] < len(objects)
    return GridMatcher()(*anchors(), gt_boxes, valid)[0]


def test_anchors_are_centred_in_their_cells():
    found, _ = anchors()
    assert len(found) == 3 * (16 + 64 + 256)
    assert found[1].tolist() == [16 - 78, 16 - 99, 16 + 78, 16 + 99]  # the second shape in the first cell of 32


def test_encoding_and_decoding_are_inverse():
    priors, boxes = torch.tensor([[0.0, 0.0, 32.0, 32.0]]), torch.tensor([[2.0, 5.0, 40.0, 20.0]])
    target = encode(priors, boxes, torch.tensor([[32.0]]))
    assert target[0].tolist() == pytest.approx([21 / 32, 12.5 / 32, math.log(38 / 32), math.log(15 / 32)])
    output = torch.cat([target[:, :2].logit(), target[:, 2:]], 1)
    torch.testing.assert_close(decode(priors, output, torch.tensor([[32.0]])), boxes)


def test_encoding_stays_finite():
    priors, nothing = torch.tensor([[0.0, 0.0, 32.0, 32.0]]), torch.zeros(1, 4)
    assert encode(priors, nothing, torch.tensor([[32.0]])).isfinite().all()
    far = decode(priors, torch.full((1, 4), 1e4), torch.tensor([[32.0]]))
    assert far.isfinite().all(), "exp() of a size that is far off"


def test_an_object_belongs_to_the_best_anchor_of_its_centres_cell():
    found, cells = anchors()
    index = match([28.0, 36.0, 60.0, 66.0])  # 32 x 30, centred at (44, 51)
    (taken,) = (index >= 0).nonzero()[:, 0].tolist()
    assert cells[taken] == 8
    assert (found[taken, 2:] - found[taken, :2]).tolist() == [33, 23]
    assert ((found[taken, :2] + found[taken, 2:]) / 2).tolist() == [44, 52]


def test_what_overlaps_much_elsewhere_is_left_alone():
    found, _ = anchors()
    index = match([28.0, 40.0, 60.0, 64.0])
    (taken,) = (index >= 0).nonzero()[:, 0].tolist()
    left_alone = found[index == IGNORE]
    assert len(left_alone) and ((left_alone - found[taken]).abs().amax(1) <= 16).all()
    assert set(index.tolist()) == {0, IGNORE, BACKGROUND}


def test_a_tiny_object_has_an_anchor_too():
    index = match([20.0, 20.0, 21.0, 21.0])
    assert (index >= 0).sum() == 1 and not (index == IGNORE).any()


def test_several_anchors_of_a_cell_may_take_a_large_object():
    index = match([0.0, 0.0, 128.0, 128.0], [3.0, 3.0, 13.0, 16.0])
    assert (index == 0).sum() >= 1 and (index == 1).sum() == 1


def test_objects_looked_at_in_parts_give_the_same(monkeypatch):
    objects = [[28.0, 36.0, 60.0, 66.0], [0.0, 0.0, 128.0, 128.0], [3.0, 3.0, 13.0, 16.0], [30.0, 36.0, 60.0, 66.0]]
    whole = match(*objects)
    monkeypatch.setattr(matching, "CPU_CHUNK", 2500)  # two objects at a time
    assert torch.equal(match(*objects), whole)


def test_without_objects_all_is_background():
    gt_boxes, valid = torch.zeros(2, 1, 4), torch.zeros(2, 1, dtype=torch.bool)
    assert (GridMatcher()(*anchors(), gt_boxes, valid) == BACKGROUND).all()


def perfect(box: list[float], label: int, objectness: float = 20.0) -> YOLOHead:
    """A head whose output is right about one object."""
    model, (priors, cells) = head(), anchors()
    values = torch.full((len(priors), 8), -20.0)
    taken = match(box) == 0
    target = encode(priors[taken], torch.tensor([box]), cells[taken])
    values[taken] = torch.cat([target[:, :2].logit(), target[:, 2:], torch.tensor([[objectness, -20, -20, -20]])], 1)
    values[taken, 5 + label] = 20.0
    levels = values.split([3 * h * w for h, w in SIZES])
    model.forward = lambda features: ([v.reshape(1, h, w, -1).permute(0, 3, 1, 2) for v, (h, w) in zip(levels, SIZES)],)
    return model


def test_a_perfect_head_has_no_loss_but_the_centres_entropy():
    box = [28.0, 36.0, 60.0, 66.0]
    losses = perfect(box, 1).loss([], IMAGES, [detcore.Target(torch.tensor([box]), torch.tensor([1]))])
    place = torch.tensor([4 / 8, 3 / 8])  # of the centre (44, 51) in a cell of 8
    entropy = -(place * place.log() + (1 - place) * (1 - place).log()).sum()
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        dict(loss_cls=0, loss_conf=0, loss_xy=2 * entropy.item(), loss_wh=0), abs=1e-4)


def test_a_perfect_head_finds_its_object():
    box = [28.0, 36.0, 60.0, 66.0]
    (detections,) = perfect(box, 1, objectness=0.0).predict([], IMAGES)
    assert detections.labels.tolist() == [1] and detections.scores.tolist() == pytest.approx([0.5])
    torch.testing.assert_close(detections.boxes, torch.tensor([box]), atol=1e-3, rtol=0)
    (nothing,) = perfect(box, 1, objectness=math.log(OBJECTNESS) - 0.1).predict([], IMAGES)
    assert len(nothing) == 0


def test_losses_are_sums():
    """An image twice costs twice as much, and a crowd of empty ones nothing for boxes and classes."""
    model = head()
    one = [torch.randn(1, 8, h, w) for h, w in SIZES]
    target = detcore.Target(torch.tensor([[28.0, 36.0, 60.0, 66.0]]), torch.tensor([1]))
    model.eval()
    once = model.loss(one, IMAGES, [target])
    twice = model.loss([torch.cat([x, x]) for x in one], IMAGES, [target, target])
    for name, value in once.items():
        torch.testing.assert_close(twice[name], 2 * value)


def test_scores_at_the_start():
    model = head()
    with torch.no_grad():
        for conv, stride in zip(model.convs_pred, STRIDES):
            conv.weight.zero_()
            prior = conv(torch.zeros(1, 8, 1, 1)).view(3, 8).sigmoid()
            assert prior[:, 4].sum().item() * (608 / stride) ** 2 == pytest.approx(3 * 8, rel=1e-4)
            assert prior[:, 5:].flatten().tolist() == pytest.approx([0.01] * 9, rel=1e-4)


def test_maps_come_coarsest_first():
    with torch.device("meta"):
        model = detcore.create_model("yolov3_d53_8xb8-320-273e_coco").eval()
        maps = model.features(torch.zeros(1, 3, 320, 320))
    assert [tuple(m.shape[1:]) for m in maps] == [(512, 10, 10), (256, 20, 20), (128, 40, 40)]
    assert sum(len(list(getattr(model.backbone, name).children())) for name in model.backbone.stages) == 23 + 5


def test_darknet_keeps_its_statistics():
    for same in (True, False):
        network = Darknet((1, 1), stem=4, out_stages=(1,), norm_eval=same)
        before = network.conv1.bn.running_mean.clone()
        network.train()(torch.randn(2, 3, 16, 16))
        assert torch.equal(before, network.conv1.bn.running_mean) == same


@pytest.mark.parametrize("name", ("yolov3_d53_8xb8-320-273e_coco", "yolov3_mobilenetv2_8xb24-320-300e_coco"))
def test_the_committed_backbone_fits(name):
    assert SLIM_DARKNET.file.stat().st_size < 2.2e6
    model = detcore.create_model(name, profile="pocket")
    load_backbone(model, detcore.get_model_entry(name).backbone_weights("pocket"))
    assert not model.backbone.conv1.bn.running_mean.eq(0).all()
    assert [m.shape[2] for m in model.eval().features(torch.zeros(1, 3, 128, 128))] == [4, 8, 16]


def test_bad_input_is_one_sentence():
    with pytest.raises(UsageError, match="as many maps, widths, bridges and lists of anchors, not 2, 3, 3 and 3"):
        yolov3(Darknet((1, 1), stem=4, out_stages=(0, 1)))
