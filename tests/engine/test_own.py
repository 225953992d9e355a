"""A model of one's own, as an entry and as a detector with a recipe, through everything that takes a name."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detcore.data.transforms import Flip, Resize
from detcore.detectors import Detector, OneStageDetector
from detcore.engine.benchmark import benchmark
from detcore.engine.evaluate import evaluate
from detcore.engine.export import export
from detcore.engine.predict import Predictor
from detcore.engine.train import train
from detcore.errors import UsageError
from detcore.ops import boxes as box
from detcore.ops.anchors import per_anchor, point_grid
from detcore.ops.nms import PostProcess, dense_detections, top_scores
from detcore.pocket import pocket_zoo
from detcore.recipe import AdamW, Recipe, Schedule
from detcore.structures import Detections, Images, Target
from detcore.zoo.create import create_model, restore
from detcore.zoo.entries import ModelEntry

STRIDE = 16
CLASSES = len(pocket_zoo.CLASSES)
RECIPE = Recipe(train_transforms=(Resize((128, 128)), Flip()), test_transforms=(Resize((128, 128)),), epochs=1,
                optimizer=AdamW(lr=5e-3), schedule=Schedule(warmup_iters=0), batch_size=4, batch_per_gpu=4)


class Blocks(nn.Sequential):
    """Four strided convolutions."""

    def __init__(self) -> None:
        widths = (3, 8, 16, 32, 32)
        super().__init__(*(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())
                           for a, b in zip(widths, widths[1:])))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (super().forward(x),)


class CenterHead(nn.Module):
    """Every cell names the class of the object over its centre, and the distances to that object's sides."""

    def __init__(self, num_classes: int, post: PostProcess):
        super().__init__()
        self.num_classes, self.post = num_classes, post
        self.out = nn.Conv2d(32, num_classes + 4, 1)
        self.out.bias.data[:num_classes] = -2.0
        self.diagnostics: dict[str, Tensor] = {}

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = per_anchor(self.out(x), self.num_classes + 4)
        return values[..., :-4], F.softplus(values[..., -4:]) * STRIDE, point_grid([x], [STRIDE])[0]

    def loss(self, features, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        logits, distances, points = self.outputs(features[0])
        cls, reg, cells = logits.sum() * 0, distances.sum() * 0, 0
        for scores, sides, target in zip(logits, distances, targets):
            expected = torch.zeros_like(scores)
            if len(target.boxes):
                deltas = box.to_distances(points[:, None], target.boxes[None])
                inside = deltas.min(-1).values > 0
                size = torch.where(inside, box.area(target.boxes)[None], torch.inf)
                owner, hit = size.argmin(1), inside.any(1)
                expected[hit, target.labels[owner[hit]]] = 1
                reg = reg + F.l1_loss(sides[hit], deltas[hit, owner[hit]], reduction="sum") / STRIDE
                cells += int(hit.sum())
            cls = cls + F.binary_cross_entropy_with_logits(scores, expected, reduction="sum")
        self.diagnostics = {"cells": torch.tensor(float(cells))}
        return {"classes": cls / max(cells, 1), "sides": reg / max(cells, 1)}

    def predict(self, features, images: Images) -> list[Detections]:
        logits, distances, points = self.outputs(features[0])
        scores, index, labels = top_scores(logits, self.post.score_threshold, self.post.pre_nms_top_n, logits=True)
        boxes = box.gather(box.from_distances(points, distances), index)
        return dense_detections(boxes, scores, labels, self.post)


def center_detector(num_classes: int, *, score_threshold: float = 0.01, nms_threshold: float = 0.5,
                    max_detections: int = 100) -> Detector:
    """The detector."""
    post = PostProcess(score_threshold, nms_threshold, max_detections)
    return OneStageDetector(Blocks(), None, CenterHead(num_classes, post))


ENTRY = ModelEntry("center", center_detector, RECIPE, num_classes=CLASSES)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return pocket_zoo.draw(tmp_path_factory.mktemp("data") / "zoo", images=20, val=4, workers=1, progress=False)


@pytest.mark.parametrize("how", ["entry", "detector"])
def test_from_training_to_a_file(zoo, tmp_path, how):
    """The same by an entry, which is built where it is needed, and by a detector, which is trained in place."""
    torch.manual_seed(0)
    model = ENTRY if how == "entry" else center_detector(CLASSES)
    name, recipe = ("center", None) if how == "entry" else ("OneStageDetector", RECIPE)
    options = dict(recipe=recipe, output=tmp_path / "run", steps=10, device="cpu", workers=0, progress=False,
                   log_interval=1, mixed_precision="no" if how == "entry" else "bf16")
    run = train(model, zoo, **options)
    assert run.record.model == name and run.record.curves.keys() == {"step", "lr", "classes", "sides", "loss"}
    first, *_, last, metrics = run.log
    assert first["loss"] == pytest.approx(first["classes"] + first["sides"]) and first["cells"] > 0
    assert last["loss"] < first["loss"] and "bbox_AP" in metrics
    with pytest.raises(UsageError, match="holds a run"):
        train(model, zoo, **options)
    assert train(model, zoo, **options | dict(resume=True)).record == run.record

    # A detector has its weights already; an entry is given them.
    weights = dict(weights=run.checkpoint) if how == "entry" else {}
    if how == "detector":
        state = restore(run.checkpoint, center_detector(CLASSES), recipe=RECIPE).model.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert "forward" not in vars(model)
    found = evaluate(model, zoo, recipe=recipe, progress=False, **weights)
    assert found.record.metrics == pytest.approx(run.record.metrics)
    speed = benchmark(model, zoo, recipe=recipe, images=2, warmup=0, say=None, fuse=True, **weights)
    assert speed.metrics["flops"] > 1e6
    predictor = Predictor(model, recipe=recipe, device="cpu", **weights)
    picture = next((zoo / "val2017").iterdir())
    assert predictor.model.num_classes == CLASSES
    assert predictor.class_names == (pocket_zoo.CLASSES if how == "entry" else None)
    assert (predictor(picture).scores >= 0.05).all()
    path = export(model, tmp_path / "graph.onnx", recipe=recipe, size=(128, 128), **weights)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["detcore"])
    assert told["model"] == name and told["profile"] == "coco"
    if how == "detector":
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()), "folding took a copy"


def test_options_of_an_entry(zoo, tmp_path):
    assert create_model(ENTRY, score_threshold=0.5, num_classes=3).bbox_head.post.score_threshold == 0.5
    few = Predictor(ENTRY, weights="random", score_threshold=0.0, max_detections=3, device="cpu")
    assert len(few(next((zoo / "val2017").iterdir()))) == 3
    with pytest.raises(UsageError, match="center has no option 'pre_nms'"):
        evaluate(ENTRY, zoo, weights="random", pre_nms=5)
    with pytest.raises(UsageError, match="No weights were published of center"):
        Predictor(ENTRY)
    with pytest.raises(UsageError, match="center has no pocket profile"):
        train(ENTRY, zoo, profile="pocket", output=tmp_path / "run")


def test_what_a_detector_needs(zoo, tmp_path):
    with pytest.raises(UsageError, match="OneStageDetector.* needs recipe="):
        train(center_detector(CLASSES), zoo, output=tmp_path / "run")
    with pytest.raises(UsageError, match=f"tells 3 classes apart, not {CLASSES}"):
        train(center_detector(3), zoo, recipe=RECIPE, output=tmp_path / "run")
    with pytest.raises(UsageError, match="A model is a name of the zoo, a ModelEntry or a Detector, not a Conv2d"):
        train(nn.Conv2d(3, 3, 1), zoo, output=tmp_path / "run")


def test_a_changed_model_is_not_taken_up(zoo, tmp_path):
    options = dict(output=tmp_path / "run", steps=1, device="cpu", workers=0, progress=False, validate=False)
    train(ENTRY, zoo, **options)
    with pytest.raises(UsageError, match="has changed: the model's options. Set it back"):
        train(replace(ENTRY, options=dict(score_threshold=0.2)), zoo, resume=True, **options)

    def wider(num_classes: int) -> Detector:
        model = center_detector(num_classes)
        model.extra = nn.Linear(2, 2)
        return model

    (tmp_path / "run/record.json").unlink()
    with pytest.raises(UsageError, match="because the model has changed"):
        train(replace(ENTRY, builder=wider), zoo, resume=True, **options)
    assert (tmp_path / "run/checkpoints/step_00000001.pt").exists()


def test_two_processes_train_a_detector_in_place(zoo, tmp_path):
    torch.manual_seed(0)
    model = center_detector(CLASSES)
    before = model.bbox_head.out.weight.clone()
    run = train(model, zoo, recipe=RECIPE, output=tmp_path / "run", steps=2, batch_size=2, gpus=2, device="cpu",
                workers=0, validate=False, progress=False)
    assert run.record.parameters["processes"] == 2 and not torch.equal(model.bbox_head.out.weight, before)
    with pytest.raises(UsageError, match="cannot be sent to other processes"):
        train(replace(ENTRY, builder=lambda n: center_detector(n)), zoo, output=tmp_path / "other", gpus=2,
              device="cpu")
