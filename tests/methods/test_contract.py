"""What every detector must do: the contract of `detcore.detectors`, at the pocket profile's size.

One model of every family and of every method variant.
"""
from __future__ import annotations

import copy
import inspect
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import detcore
from detcore.detectors import Detector
from detcore.methods import deformable_detr, maskformer
from detcore.methods.centripetalnet import CentripetalHead
from detcore.ops import boxes as box
from detcore.ops import nms, set_matching
from detcore.pocket.pocket_zoo import STUFF
from detcore.structures import Detections, Images, Target
from detcore.zoo.index import all_entries, families
from tests import parity
from tests.pocket import METHODS

CASE = parity.load_case(parity.REFERENCE / "cases" / "retinanet_r18_fpn_1x_coco.json.gz") | {
    "num_classes": 5, "stuff": 5 + len(STUFF)}


def one_of_each() -> list[str]:
    """A model for every method of `tests.pocket`, and one for each family that is not among them."""
    names = {m.model for m in METHODS}
    entries = all_entries()
    seen = {entries[name].family for name in names}
    rest = {family: next(n for n, e in entries.items() if e.family == family) for family in families()
            if family not in seen}
    return sorted(names | set(rest.values()))


MODELS = one_of_each()
every_model = pytest.mark.parametrize("name", MODELS)


def pocket_model(name: str) -> Detector:
    """A pocket-size model whose weights are large enough that it finds things."""
    torch.manual_seed(0)
    model = detcore.create_model(name, profile="pocket", num_classes=CASE["num_classes"])
    parity.fill(model, CASE)
    for head in model.modules():
        if isinstance(head, CentripetalHead):
            # Corners with such weights never point to one place: let all point some cells inward.
            for corner in (head.tl_centripetal_shift, head.br_centripetal_shift):
                nn.init.normal_(corner[-1][1].conv.weight, 0, 0.01)
                nn.init.constant_(corner[-1][1].conv.bias, math.log(8))
    return model


def batch(model: Detector) -> tuple[Images, list[Target], list[Tensor] | None]:
    """The numeric cases' images and objects, with proposals for the models that need them."""
    return parity.inputs(CASE | {"precomputed_proposals": model.needs_proposals})


def agreement(a: list[Detections], b: list[Detections]) -> float:
    """The share of a's detections that b has, in the limits of the parity harness; at least ten are there."""
    found = [((x.labels[:, None] == y.labels[None]) & ((x.scores[:, None] - y.scores[None]).abs() <= 1e-3)
              & ((x.boxes[:, None] - y.boxes[None]).abs().amax(-1) <= 0.5)).any(1) for x, y in zip(a, b)]
    assert sum(len(f) for f in found) > 10
    return torch.cat(found).float().mean().item()


def test_every_family_has_a_model() -> None:
    entries = all_entries()
    assert {entries[name].family for name in MODELS} == set(families())


@every_model
def test_contract(name: str) -> None:
    """One signature for all; the losses alone are in the dictionary; hooks fire; `model(x)` is `predict` or `loss`."""
    model = pocket_model(name)
    assert isinstance(model, Detector)
    for verb in ("forward", "loss", "predict"):
        of_base, own = (list(inspect.signature(getattr(c, verb)).parameters) for c in (Detector, type(model)))
        assert of_base == own, verb
    images, targets, proposals = batch(model)
    calls: list[str] = []
    model.register_forward_hook(lambda *_: calls.append("model"))
    model.backbone.register_forward_hook(lambda *_: calls.append("backbone"))

    model.train()
    torch.manual_seed(1)
    losses = model(images, targets)
    torch.manual_seed(1)
    again = model.loss(images, targets)
    assert losses.keys() == again.keys() and losses
    for key, value in losses.items():
        assert "loss" in key and value.shape == () and value.dtype == torch.float32 and value.requires_grad, key
    assert all(v.shape == () and not v.requires_grad for v in model.diagnostics.values())
    assert not losses.keys() & model.diagnostics.keys()

    model.eval()
    detections = model(images, proposals=proposals)
    direct = model.predict(images, proposals=proposals)
    assert agreement(detections, direct) == 1
    assert all(not d.boxes.requires_grad for d in detections)
    assert calls.count("model") == 2 and calls.count("backbone") >= 4

    sizes = [(2 * h, 3 * w) for h, w in images.sizes]
    larger = model.predict(images, proposals=proposals, output_sizes=sizes)
    for one, other, (h, w) in zip(direct, larger, sizes):
        if one.masks is None:
            assert torch.allclose(other.boxes, one.boxes * torch.tensor([3.0, 2, 3, 2]), atol=1e-3)
        else:
            assert other.masks.shape[1:] == (h, w)


@every_model
def test_copies_and_files(name: str, tmp_path: Path) -> None:
    """deepcopy, pickle and `torch.save(model)` give the same detector, also after it has been used."""
    model = pocket_model(name)
    images, targets, proposals = batch(model)
    model.train().loss(images, targets)
    model.eval()
    plain = model.predict(images, proposals=proposals)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)),
                  torch.load(tmp_path / "model.pt", weights_only=False)):
        assert agreement(plain, other.predict(images, proposals=proposals)) == 1
        assert [k for k, _ in other.named_parameters()] == [k for k, _ in model.named_parameters()]


@pytest.fixture(scope="module")
def process_group(tmp_path_factory) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1,
                                         init_method=f"file://{tmp_path_factory.mktemp('group')}/store")
    yield
    torch.distributed.destroy_process_group()


@every_model
def test_distributed_data_parallel(name: str, process_group: None) -> None:
    """PyTorch's own wrapper takes the detector as it is, and gives its gradients."""
    model = pocket_model(name).train()
    images, targets, _ = batch(model)
    torch.manual_seed(1)
    sum(model(images, targets).values()).backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    wrapped = nn.parallel.DistributedDataParallel(pocket_model(name).train(), find_unused_parameters=True)
    torch.manual_seed(1)
    sum(wrapped(images, targets).values()).backward()
    for key, p in wrapped.module.named_parameters():
        assert (p.grad is None) == (key not in plain) and (p.grad is None or torch.allclose(
            p.grad, plain[key], rtol=1e-3, atol=1e-4 * float(plain[key].abs().max()) + 1e-8)), key


@every_model
def test_compilation_changes_nothing(name: str) -> None:
    """`torch.compile(model)` by the ahead-of-time compiler without generated code, which needs no C++ compiler."""
    model = pocket_model(name).eval()
    images, _, proposals = batch(model)
    plain = model(images, proposals=proposals)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")(images, proposals=proposals)
    assert agreement(plain, compiled) >= 0.97


@every_model
def test_gradients_are_finite_in_bf16(name: str) -> None:
    model = pocket_model(name).train()
    images, targets, _ = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
    assert all(v.dtype == torch.float32 for v in losses.values())
    sum(losses.values()).backward()
    for parameter, value in model.named_parameters():
        assert not value.requires_grad or (value.grad is not None and value.grad.isfinite().all()), parameter


@every_model
def test_channels_last_changes_nothing(name: str) -> None:
    model = pocket_model(name).eval()
    images, _, proposals = batch(model)
    plain = model(images, proposals=proposals)
    images.tensor = images.tensor.to(memory_format=torch.channels_last)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)(images, proposals=proposals)
    assert agreement(plain, other) >= 0.97


@every_model
def test_half_precision_finds_much_the_same(name: str) -> None:
    """bf16 has 8 bits: of each image's ten best detections most have one nearby, whose box has IoU >= 0.5."""
    model = pocket_model(name).eval()
    images, _, proposals = batch(model)
    plain = model(images, proposals=proposals)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images, proposals=proposals)
    assert all(d.boxes.isfinite().all() and d.scores.isfinite().all() for d in half)
    near = [box.pairwise_iou(p.boxes[:10], h.boxes.float()).amax(1) if len(h) else torch.zeros(len(p.boxes[:10]))
            for p, h in zip(plain, half)]
    assert (torch.cat(near) >= 0.5).float().mean() >= 0.6


@every_model
def test_images_without_objects_train(name: str) -> None:
    """Nothing to find trains too: losses and gradients stay finite."""
    model = pocket_model(name).train()
    images, targets, _ = batch(model)
    empty = [Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long),
                    torch.zeros(0, *images.tensor.shape[2:], dtype=torch.uint8), semantic=t.semantic,
                    proposals=t.proposals) for t in targets]
    losses = model(images, empty)
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values()), losses
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# No loss waits for the device

def first_boxes(boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, iou_threshold: float,
                max_kept: int) -> tuple[Tensor, Tensor]:
    """In place of NMS of the proposals, which gives as many boxes as it finds and so always waits."""
    index = scores.topk(min(max_kept, scores.shape[1]), 1).indices
    return index, valid.gather(1, index)


def first_queries(costs: list[list[Tensor]], gt_valid: list[Tensor]) -> list[set_matching.Matches]:
    """In place of the Hungarian matching, whose one transfer to the CPU is what SciPy takes."""
    starts = np.cumsum([0, *map(len, gt_valid)])
    matches = []
    for one_set in costs:
        counts = [min(c.shape[1:]) for c in one_set]
        pairs = torch.tensor([(i, q, starts[i] + q) for i, n in enumerate(counts) for q in range(n)]).view(-1, 3)
        pairs = pairs.T[:, None].expand(-1, len(one_set[0]), -1).to(one_set[0].device, non_blocking=True)
        matches.append(set_matching.Matches(*pairs.unbind(), counts))
    return matches


@contextmanager
def no_waiting_by_design(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nms, "nms_per_image", first_boxes)
    monkeypatch.setattr(nn.init, "trunc_normal_", nn.init.normal_)  # draws until all lie inside
    for module in (deformable_detr, maskformer):
        monkeypatch.setattr(module, "hungarian", first_queries)
    yield


class NoWaitingCopies(TorchDispatchMode):
    """Refuses copies from the CPU that wait, as those of `torch.tensor(..., device="cuda")` do."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu":
            assert "cuda" not in str(kwargs.get("device")) or kwargs.get("non_blocking"), "a copy that waits"
        return func(*args, **kwargs)


@every_model
def test_losses_ask_nothing_of_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors that only pretend to lie on a GPU, whatever needs their values (`item`, `nonzero`) raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    # A copied layer stays in the same pretence.
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    with FakeTensorMode(allow_non_fake_inputs=False), no_waiting_by_design(monkeypatch):
        with torch.device("cuda"):
            model = detcore.create_model(name, profile="pocket", num_classes=CASE["num_classes"]).train()
        images = Images(torch.zeros(2, 3, 128, 160, device="cuda"), [(128, 150), (120, 160)])
        targets = [Target(torch.zeros(n, 4, device="cuda"), torch.zeros(n, dtype=torch.long, device="cuda"),
                          torch.zeros(n, 128, 160, dtype=torch.uint8, device="cuda"),
                          semantic=torch.zeros(128, 160, dtype=torch.long, device="cuda"),
                          proposals=torch.zeros(40, 4, device="cuda") if model.needs_proposals else None)
                   for n in (3, 5)]
        with NoWaitingCopies():
            losses = model(images, targets)
        assert all(v.device.type == "cuda" for v in losses.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="asks a GPU")
@every_model
def test_losses_do_not_wait_for_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pocket_model(name).train().cuda()
    images, targets, _ = batch(model)
    images, targets = images.to("cuda"), [t.to("cuda") for t in targets]
    model(images, targets)  # the first call sets up libraries, which may wait
    with no_waiting_by_design(monkeypatch):
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(images, targets)
        finally:
            torch.cuda.set_sync_debug_mode("default")
