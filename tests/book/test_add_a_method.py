"""The page "Your own method": its example file and its Python code, run as they stand on a small Pocket Zoo."""
from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

import detcore
from detcore.pocket import pocket_zoo
from detcore.recipe import Schedule
from detcore.zoo.index import list_models

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples/center_points.py"
PAGE = (ROOT / "book/add_a_method.md").read_text("utf-8")
STEPS = 48


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example file as a module, with a shorter training."""
    spec = importlib.util.spec_from_file_location("center_points", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["center_points"] = module
    spec.loader.exec_module(module)
    schedule = Schedule((STEPS * 3 // 4,), STEPS, by_epoch=False, warmup_iters=5)
    module.MY_MODEL = replace(module.MY_MODEL, recipe=replace(
        module.RECIPE, iterations=STEPS, val_interval=STEPS, schedule=schedule))
    yield module
    del sys.modules["center_points"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data, where the page's code runs."""
    folder = tmp_path_factory.mktemp("own")
    pocket_zoo.draw(folder / "data/pocket", images=40, val=8, progress=False)
    return folder


@pytest.fixture(scope="module")
def ran(example: ModuleType, place: Path) -> dict:
    """The names that the page's Python code leaves, block after block."""
    detector = detcore.create_model(example.MY_MODEL, num_classes=8)
    images = detcore.Images.from_list([np.full((96, 128, 3), 90, np.uint8), np.full((128, 100, 3), 200, np.uint8)])
    targets = [detcore.Target(torch.tensor([[10.0, 20.0, 60.0, 80.0]]), torch.tensor([3])),
               detcore.Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))]
    names = dict(detector=detector, images=images, targets=targets)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for block in blocks:
            exec(block, names)
    return names


def test_every_included_part_is_in_the_file() -> None:
    source = EXAMPLE.read_text("utf-8")
    tree = ast.parse(source)
    objects = {node.name: node for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    objects |= {f"{c.name}.{f.name}": f for c in tree.body if isinstance(c, ast.ClassDef) for f in c.body
                if isinstance(f, ast.FunctionDef)}
    parts = re.findall(r"```\{literalinclude\} (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(parts) >= 7
    for file, options in parts:
        assert (ROOT / "book" / file).resolve() == EXAMPLE
        for name, value in re.findall(r":(\S+): (.+)", options):
            assert value in (objects if name == "pyobject" else source), f"{name} {value}"
    assert 100 <= len(source.splitlines()) <= 150


def test_the_loss_falls(ran: dict) -> None:
    curve = ran["run"].record.curves
    assert curve["loss"][-1] < 0.6 * curve["loss"][0]
    assert set(ran["losses"]) == {"loss_cls", "loss_bbox"}, "losses alone"
    gradients = [p.grad for p in ran["detector"].parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)


def test_it_is_evaluated_under_its_name_and_drawn(ran: dict, place: Path) -> None:
    assert ran["run"].record.model == ran["result"].record.model == "center-points"
    assert "center-points" not in list_models("*"), "nothing is registered"
    assert 0 < ran["result"]["bbox"].metrics["AP50"] <= 1
    assert (place / "runs/center_points/found.png").stat().st_size > 1000
    assert ran["speed"].speed["inference_mean_s"] > 0


def test_the_graph_finds_what_the_model_finds(ran: dict, place: Path) -> None:
    session = onnxruntime.InferenceSession((place / "runs/center_points/model.onnx").read_bytes())
    find = detcore.Predictor(ran["MY_MODEL"], weights=place / ran["run"].checkpoint)
    seen = 0
    for path in sorted((place / "data/pocket/val2017").glob("*.jpg")):
        picture = cv2.imread(str(path))[..., ::-1]
        detections = find(np.ascontiguousarray(picture))
        boxes, scores, labels = session.run(None, {"image": picture.transpose(2, 0, 1)[None].astype(np.float32)})
        assert np.allclose(boxes, detections.boxes.numpy(), atol=0.05)
        assert np.allclose(scores, detections.scores.numpy(), atol=1e-4)
        assert labels.tolist() == detections.labels.tolist()
        seen += len(boxes)
    assert seen > 0


def test_objects_near_each_other_and_small_ones_have_cells(example: ModuleType) -> None:
    """Of two objects with one centre the smaller has the cells there; a tiny object has at least one."""
    head = detcore.create_model(example.MY_MODEL, num_classes=8).bbox_head
    points, = example.point_grid([torch.zeros(1, 1, 16, 16)], [example.STRIDE])
    target = detcore.Target(torch.tensor([[8.0, 8.0, 56.0, 56.0], [24.0, 24.0, 40.0, 40.0], [3.2, 50.1, 4.4, 51.0]]),
                            torch.tensor([0, 1, 2]))
    positive, labels, boxes = head.assign(points, [target, detcore.Target(torch.zeros(0, 4), torch.zeros(0).long())])
    assert {0, 1, 2} == set(labels[0][positive[0]].tolist()) and not positive[1].any()
    middle = (points - 32).abs().amax(1) <= 4
    assert labels[0][middle].unique().tolist() == [1]
    assert torch.equal(boxes[0][positive[0]], target.boxes[labels[0][positive[0]]])
