"""EfficientNet's and its RetinaNet's own pieces on inputs made by hand: what a numeric case does not show."""
from __future__ import annotations

import pytest
import torch
from torchvision.ops import StochasticDepth

import detcore
from detcore.backbones.efficientnet import (
    DROP,
    STAGES,
    EfficientNet,
    MBConv,
    MBConvStage,
    SameConv2d,
    Scaling,
    SqueezeExcitation,
)
from detcore.errors import WeightsError
from detcore.methods.efficientnet import LevelNormHead
from detcore.pocket.slim import SLIM_EFFICIENTNET
from detcore.weights import load_backbone

NAME = "retinanet_effb3_fpn_8xb4-crop896-1x_coco"


@pytest.mark.parametrize(("size", "kernel", "stride"),
                         ((8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 2), (1, 3, 2), (6, 5, 1)))
def test_same_convolution_rounds_up(size, kernel, stride):
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    assert conv(torch.zeros(1, 1, size, size)).shape[2:] == (-(-size // stride),) * 2


def test_same_convolution_pads_after_the_map_first():
    assert SameConv2d.pads(8, 3, 2) == (0, 1) and SameConv2d.pads(9, 3, 2) == (1, 1)
    assert SameConv2d.pads(8, 5, 2) == (1, 2) and SameConv2d.pads(8, 3, 1) == (1, 1)
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0, 0] = 1.0
        x = torch.arange(16.0).view(1, 1, 4, 4)
        assert conv(x).flatten().tolist() == [0, 2, 8, 10]  # the first cells of its windows: there is no pad before


def test_compound_scaling_gives_b3():
    b3 = Scaling(1.2, 1.4)
    assert [b3.channels(s.channels) for s in STAGES] == [24, 32, 48, 96, 136, 232, 384]
    assert [b3.blocks(s.blocks) for s in STAGES] == [2, 3, 3, 5, 5, 6, 2]
    assert Scaling(1.1, 1).channels(24) == 24  # not more than a tenth below 26.4
    assert Scaling(0.5, 1).channels(3) == 8


def test_stages_of_one_size_are_one_layer():
    with torch.device("meta"):
        network = EfficientNet().eval()
        maps = network(torch.zeros(1, 3, 100, 70))
    assert [len(layer) for layer in network.layers[1:]] == [2, 3, 3, 10, 8]
    assert network.channels == (48, 136, 384)
    assert [tuple(m.shape[1:]) for m in maps] == [(48, 13, 9), (136, 7, 5), (384, 4, 3)]


def test_deeper_blocks_are_left_out_more_often():
    with torch.device("meta"):
        drops = [m.p for m in EfficientNet().modules() if isinstance(m, StochasticDepth)]
    assert drops[0] == 0 and drops[-1] == pytest.approx(DROP) and len(drops) == 26
    assert torch.tensor(drops).diff().std() < 1e-6


def test_a_block_that_is_left_out_changes_nothing():
    block, x = MBConv(8, 8, 3, 1, 2, drop=1.0), torch.randn(2, 8, 5, 5)
    assert torch.equal(block.train()(x), x)
    assert not torch.allclose(block.eval()(x), x)


def test_squeeze_and_excitation_weighs_whole_channels():
    layer, x = SqueezeExcitation(4, 2), torch.rand(3, 4, 5, 6) + 0.5
    weight = layer(x) / x
    assert torch.allclose(weight, weight[:, :, :1, :1].expand_as(weight)) and 0 < weight.min() < weight.max() < 1


def test_levels_share_convolutions_not_norms():
    head = LevelNormHead(8, 3, depth=2)
    names = dict(head.named_parameters())
    for towers in (head.cls_convs, head.reg_convs):
        assert len({id(tower[1].conv) for tower in towers}) == 1 and len({id(tower[1].bn) for tower in towers}) == 5
    assert sum("conv.weight" in n for n in names) == 4 and sum("bn.weight" in n for n in names) == 20
    features = [torch.randn(2, 8, 4, 4) + level for level in range(5)]
    head.train()(features)
    means = torch.stack([tower[0].bn.running_mean for tower in head.cls_convs])
    assert all(not torch.allclose(a, b) for a, b in zip(means, means[1:]))


def test_a_level_does_not_feel_the_others():
    head = LevelNormHead(8, 3, depth=1).train()
    features = [torch.randn(2, 8, 4, 4) for _ in range(5)]
    before = head(features)[0][2]
    other = [x if i == 2 else x * 10 for i, x in enumerate(features)]
    assert torch.equal(head(other)[0][2], before)


def test_all_anchors_train():
    """None is between positive and background."""
    head = LevelNormHead(8, 3, depth=0)
    target = detcore.Target(torch.tensor([[8.0, 8.0, 50.0, 60.0]]), torch.tensor([0]))
    _, matched, _, _ = head.assign([torch.zeros(1, 27, s, s) for s in (8, 4, 2, 1, 1)], [target])
    assert set(matched.unique().tolist()) == {-1, 0}


def test_backbone_takes_a_classifiers_file(tmp_path):
    stages = (MBConvStage(1, 3, 16, 1, 1), *(MBConvStage(2, 3, 24, 1, 2) for _ in range(4)))
    model = torch.nn.Module()
    model.backbone = EfficientNet(stages=stages, stem=8)
    state = {f"backbone.{n}": torch.rand_like(v.float()).to(v.dtype) for n, v in model.backbone.state_dict().items()}
    rest = {"backbone.layers.6.conv.weight": torch.zeros(2), "head.fc.weight": torch.zeros(2)}
    torch.save({"state_dict": state | rest}, tmp_path / "x.pth")
    load_backbone(model, tmp_path / "x.pth")
    assert all(torch.equal(v, state[f"backbone.{n}"]) for n, v in model.backbone.state_dict().items())
    torch.save({"state_dict": state | {"backbone.layers.1.9.weight": torch.zeros(2)}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit the backbone"):
        load_backbone(model, tmp_path / "x.pth")


def test_the_committed_backbone_fits():
    assert SLIM_EFFICIENTNET.file.stat().st_size < 2e6
    model = detcore.create_model(NAME, profile="pocket")
    load_backbone(model, detcore.get_model_entry(NAME).backbone_weights("pocket"))
    assert not model.backbone.layers[0].bn.running_mean.eq(0).all()
