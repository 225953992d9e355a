"""SSD's own pieces on hand-made inputs: default boxes, matching, hard negatives, the L2 norm, its backbones."""
from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import detcore
from detcore.backbones.mobilenet import MobileNetV2
from detcore.backbones.vgg import SSDVGG
from detcore.errors import UsageError, WeightsError
from detcore.methods.ssd import (
    FOUR,
    SSD300,
    SSD300_VOC,
    SSD512,
    SSD512_VOC,
    Extra,
    L2Norm,
    SSDHead,
    SSDLayout,
    equal_steps,
    hardest,
    ssd,
)
from detcore.ops import boxes as box
from detcore.pocket.slim import SLIM_MOBILENET, SLIM_VGG
from detcore.recipe import Schedule
from detcore.structures import Images, Target
from detcore.weights import load_backbone

IMAGES = Images(torch.zeros(2, 3, 64, 64), [(64, 64), (30, 64)])
ONE_MAP = SSDLayout((), (16, 32), (20, 40, 80), (FOUR, FOUR))


def test_sizes_are_the_published_ones():
    assert SSD300.sizes == (21, 45, 99, 153, 207, 261, 315)
    assert SSD300_VOC.sizes == (30, 60, 111, 162, 213, 264, 315)
    assert SSD512.sizes == (20, 51, 133, 215, 296, 378, 460, 542)
    assert SSD512_VOC.sizes == (35, 76, 153, 230, 307, 384, 460, 537)
    assert equal_steps(1000, 10, 30, 4) == (100, 300, 600, 900, 1200)


def test_default_boxes_of_a_cell():
    fine, coarse = ONE_MAP.anchors()([torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 1)])
    assert len(fine) == 8 and len(coarse) == 4
    centre, size = box.centers(fine), box.sizes(fine)
    assert centre[:4].tolist() == [[8, 8]] * 4 and centre[4:].tolist() == [[24, 8]] * 4
    root = math.sqrt(2)
    shapes = [[20, 20], [math.sqrt(20 * 40)] * 2, [20 * root, 20 / root], [20 / root, 20 * root]]
    torch.testing.assert_close(size[:4], torch.tensor(shapes))
    assert (coarse[0].tolist(), coarse[1, 2].item() - 16) == ([-4, -4, 36, 36], pytest.approx(math.sqrt(40 * 80) / 2))


def test_number_of_default_boxes():
    """8732 and 24564 at the published sizes (table 2 of the paper; 8732 in its section 3.1)."""
    for layout, maps, number in ((SSD300, (38, 19, 10, 5, 3, 1), 8732), (SSD512, (64, 32, 16, 8, 4, 2, 1), 24564)):
        assert sum(len(level) for level in layout.anchors()([torch.zeros(1, 1, m, m) for m in maps])) == number


def test_three_hardest_negatives_for_each_positive():
    class_loss = torch.tensor([[0.5, 9.0, 0.1, 0.4, 0.3, 0.2], [6.0, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6]])
    positive = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    assert hardest(class_loss, positive).int().tolist() == [[1, 0, 0, 1, 1, 0], [0] * 6, [0, 0, 0, 1, 1, 1]]


def head() -> tuple[SSDHead, list[torch.Tensor]]:
    """A head on two maps, whose logits and offsets are all zero."""
    made = SSDHead((4, 4), 3, ONE_MAP)
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made, [torch.zeros(2, 4, 4, 4), torch.zeros(2, 4, 2, 2)]


def test_loss_of_known_matches():
    """An object that one default box overlaps enough, and one so small that it takes the first of its four best."""
    made, features = head()
    targets = [Target(torch.tensor([[4.0, 17, 44, 31]]), torch.tensor([1])),
               Target(torch.tensor([[31.0, 31, 33, 33]]), torch.tensor([2]))]
    gt_boxes, gt_valid = torch.stack([t.boxes for t in targets]), torch.ones(2, 1, dtype=torch.bool)
    matched = made.matcher(torch.cat(made.anchors(features)), gt_boxes, gt_valid)
    assert [(m >= 0).nonzero()[:, 0].tolist() for m in matched] == [[22], [20]]
    losses = made.loss(features, IMAGES, targets)
    # Each image: one positive and three negatives, all of four equal scores.
    assert losses["loss_cls"].item() == pytest.approx(4 * math.log(4))
    wide, high = 20 * math.sqrt(2), 20 / math.sqrt(2)
    first = [math.log(40 / wide) / 0.2, math.log(14 / high) / 0.2]
    second = [8 / 20 / 0.1] * 2 + [math.log(2 / 20) / 0.2] * 2
    smooth = [abs(x) - 0.5 if abs(x) > 1 else x * x / 2 for x in first + second]
    assert losses["loss_bbox"].item() == pytest.approx(sum(smooth) / 2, rel=1e-5)


def test_background_is_no_class():
    made, features = head()
    with torch.no_grad():
        made.cls_convs[0][0].bias.view(4, 4)[:, 3] = 9.0  # background on the fine map
        made.cls_convs[1][0].bias.view(4, 4)[:, 3] = 9.0
        made.cls_convs[1][0].bias.view(4, 4)[0, 1] = 12.0  # class 1 at the coarse map's first shape
    found = made.predict(features, IMAGES)
    score = math.exp(3) / (math.exp(3) + 1 + 2 * math.exp(-9))
    for detections in found:
        assert set(detections.labels.tolist()) == {1}
        assert detections.scores.tolist() == pytest.approx([score] * len(detections), abs=1e-4)
    assert sorted(found[0].boxes.tolist()) == [[0, 0, 36, 36], [0, 28, 36, 64], [28, 0, 64, 36], [28, 28, 64, 64]]
    assert found[1].boxes[:, 3].max() == 30


def test_l2_norm_scales_every_cell_to_twenty():
    norm = L2Norm(512)
    x = torch.randn(2, 512, 3, 3)
    x[0, :, 0, 0] = 0
    x.requires_grad_()
    length = norm(x).norm(dim=1)
    assert length[0, 0, 0] == 0 and torch.allclose(length.flatten()[1:], torch.tensor(20.0))
    assert L2Norm(128).weight.unique().item() == 10
    norm(x).square().sum().backward()
    assert x.grad.isfinite().all(), "a cell without features has a gradient too"


def test_maps_of_the_published_networks():
    with torch.device("meta"):
        for name, size, maps in (("ssd300_coco", 300, (38, 19, 10, 5, 3, 1)),
                                 ("ssd512_coco", 512, (64, 32, 16, 8, 4, 2, 1)),
                                 ("ssdlite_mobilenetv2-scratch_8xb24-600e_coco", 320, (20, 10, 5, 3, 2, 1))):
            found = detcore.create_model(name).eval().features(torch.zeros(1, 3, size, size))
            assert tuple(m.shape[2] for m in found) == maps


def test_too_small_an_image_and_an_odd_layout_are_told_in_a_sentence():
    model = ssd(SSDVGG(8), 3).eval()
    with pytest.raises(UsageError, match="too small for this SSD"):
        model.predict(Images(torch.zeros(1, 3, 100, 100), [(100, 100)]))
    with pytest.raises(UsageError, match="SSD of 3 maps .* one size more, not 2, 2 and 3"):
        SSDLayout((Extra(64),), (8, 16), (10, 20, 30), (FOUR, FOUR))


def test_vgg_takes_a_file_of_convolutions_and_keeps_its_own_layers(tmp_path):
    state = {n: v for n, v in SSDVGG().state_dict().items() if int(n.split(".")[1]) < 31}
    torch.save(state, tmp_path / "vgg.pth")
    model = detcore.create_model("ssd300_coco")
    own = model.backbone.features[33].weight.clone()
    load_backbone(model, tmp_path / "vgg.pth")
    assert torch.equal(model.backbone.features[28].weight, state["features.28.weight"])
    assert torch.equal(model.backbone.features[33].weight, own)
    torch.save({n: v for n, v in state.items() if "28" not in n}, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        load_backbone(model, tmp_path / "short.pth")


@pytest.mark.parametrize(("slim", "name"), ((SLIM_VGG, "ssd300_coco"),
                                            (SLIM_MOBILENET, "ssdlite_mobilenetv2-scratch_8xb24-600e_coco")))
def test_committed_backbones_are_small_and_fit(slim, name):
    assert slim.file.stat().st_size < 2e6
    entry, model = detcore.get_model_entry(name), detcore.create_model(name, profile="pocket")
    before = {n: v.clone() for n, v in model.backbone.state_dict().items()}
    load_backbone(model, entry.backbone_weights("pocket"))
    after = model.backbone.state_dict()
    assert all(not torch.equal(before[n], after[n]) for n in before if n.endswith("weight"))


def test_ssdlite_starts_from_nothing_but_in_the_pocket_profile():
    entry = detcore.get_model_entry("ssdlite_mobilenetv2-scratch_8xb24-600e_coco")
    assert entry.backbone_weights("coco") is None and entry.backbone_weights("pocket") == str(SLIM_MOBILENET.file)
    norms = [m for m in detcore.create_model(entry.name, profile="pocket").modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}


def test_mobilenet_computes_no_more_than_is_asked_for():
    network = MobileNetV2((1, 3))
    maps = network(torch.zeros(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 24, 16, 16), (1, 64, 4, 4)] and network.channels == (24, 64)
    fixed = {n.split(".")[0] for n, p in network.named_parameters() if not p.requires_grad}
    assert fixed == {"layer5", "layer6", "layer7", "conv2"}


def test_a_cosine_falls_from_epoch_to_epoch():
    schedule = Schedule((), 4, warmup_iters=0, cosine=True)
    found = [schedule.factor(step, 10) for step in (0, 9, 10, 20, 39, 40, 99)]
    assert found == pytest.approx([1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0, 0])
