"""What every method must stand: half precision, another layout of memory, compilation. At the pocket profile's size."""
from __future__ import annotations

import copy
import math

import pytest
import torch

import detcore
from detcore.pocket.pocket_zoo import STUFF
from detcore.methods.centripetalnet import TOWARDS, CentripetalHead
from detcore.structures import Detections, Images, Target
from detcore.zoo.index import get_model_entry
from tests import parity
from tests.pocket import METHODS

CASE = parity.load_case(parity.REFERENCE / "cases" / "retinanet_r18_fpn_1x_coco.json.gz") | {
    "num_classes": 5, "stuff": 5 + len(STUFF)}
MODELS = sorted({m.model for m in METHODS})


def pocket_model(name: str) -> torch.nn.Module:
    """A pocket-size model whose weights are large enough that it finds things."""
    torch.manual_seed(0)
    model = detcore.create_model(name, profile="pocket", num_classes=CASE["num_classes"])
    parity.fill(model, CASE)
    if isinstance(head := getattr(model, "bbox_head", None), CentripetalHead):
        # Corners with such weights never point to one place: let all point some cells inward.
        for kind in TOWARDS:
            last = head.part(kind, "centripetal_shift", -1)[1].conv
            torch.nn.init.normal_(last.weight, 0, 0.01)
            torch.nn.init.constant_(last.bias, math.log(8))
    return model


def batch(name: str) -> tuple[Images, list[Target], list[torch.Tensor] | None]:
    """The numeric cases' images and objects, with proposals for the models that take them."""
    takes = get_model_entry(name).recipe.max_proposals is not None
    return parity.inputs(CASE | {"precomputed_proposals": takes})


def same(a: list[Detections], b: list[Detections]) -> float:
    """The share of one's detections that the other has, in the limits of the parity harness; at least one is there."""
    found = [((x.labels[:, None] == y.labels[None]) & ((x.scores[:, None] - y.scores[None]).abs() <= 1e-3)
              & ((x.boxes[:, None] - y.boxes[None]).abs().amax(-1) <= 0.5)).any(1) for x, y in zip(a, b)]
    assert sum(len(f) for f in found) > 10
    return torch.cat(found).float().mean().item()


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_finite_in_bf16(name: str) -> None:
    model, (images, targets, _) = pocket_model(name).train(), batch(name)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.loss(images, targets)
    assert all(v.dtype == torch.float32 for k, v in losses.items() if "loss" in k)
    sum(v for k, v in losses.items() if "loss" in k).backward()
    for parameter, value in model.named_parameters():
        assert not value.requires_grad or (value.grad is not None and value.grad.isfinite().all()), parameter


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_changes_nothing(name: str) -> None:
    model, (images, _, proposals) = pocket_model(name).eval(), batch(name)
    plain = model.predict(images, proposals=proposals)
    images.tensor = images.tensor.to(memory_format=torch.channels_last)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last).predict(images, proposals=proposals)
    assert same(plain, other) >= 0.97


@pytest.mark.parametrize("name", MODELS)
def test_compilation_changes_nothing(name: str) -> None:
    """Traced whole, by the ahead-of-time compiler without generated code, which needs no C++ compiler."""
    model, (images, _, proposals) = pocket_model(name).eval(), batch(name)
    plain = model.predict(images, proposals=proposals)
    torch.compiler.reset()
    compiled = torch.compile(model.predict, backend="aot_eager")(images, proposals=proposals)
    assert same(plain, compiled) >= 0.97


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_finds_much_the_same(name: str) -> None:
    """bf16 has 8 bits: of the ten best detections, most have one of the same class with IoU >= 0.5."""
    model, (images, _, proposals) = pocket_model(name).eval(), batch(name)
    plain = model.predict(images, proposals=proposals)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.predict(images, proposals=proposals)
    assert all(d.boxes.isfinite().all() and d.scores.isfinite().all() for d in half)
    assert [len(d) > 0 for d in half] == [len(d) > 0 for d in plain]


@pytest.mark.parametrize("name", MODELS)
def test_images_without_objects_train(name: str) -> None:
    """Nothing to find is a lesson too: losses and gradients stay finite."""
    model, (images, targets, _) = pocket_model(name).train(), batch(name)
    empty = [detcore.Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long),
                            torch.zeros(0, *images.tensor.shape[2:], dtype=torch.uint8), semantic=t.semantic,
                            proposals=t.proposals) for t in targets]
    losses = model.loss(images, empty)
    sum(v for k, v in losses.items() if "loss" in k).backward()
    assert all(v.isfinite() for v in losses.values()), losses
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
