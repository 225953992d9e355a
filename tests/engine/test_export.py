"""Export: what a file gives on its own is what the model gives."""
from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detcore
from detcore.engine import export as exporting
from detcore.engine.export import differ, export, picture
from detcore.errors import DetcoreError, UsageError
from detcore.structures import Images
from detcore.weights import save_weights
from detcore.zoo.index import get_model_entry

NAMES = ("retinanet_r50_fpn_1x_coco", "gfl_r50_fpn_1x_coco", "faster-rcnn_r50_fpn_1x_coco",
         "mask-rcnn_r50_fpn_1x_coco", "deformable-detr_r50_16xb2-50e_coco")
CLASSES = tuple(f"animal {i}" for i in range(8))
SIZE = (96, 128)


def trained(name: str, path: Path) -> Path:
    """A file of the pocket model whose random weights are spread until it finds many things."""
    torch.manual_seed(0)
    model = detcore.create_model(name, profile="pocket")
    with torch.no_grad():
        for n, module in model.named_modules():
            last = n.split(".")[-1]
            if isinstance(module, (nn.Conv2d, nn.Linear)) and ("cls" in last or "reg" in last or "logits" in last):
                module.weight.mul_(10 if module.weight.std() < 0.02 else 1)
                if module.bias is not None and "cls" in last:
                    module.bias.add_(2)
    save_weights(path, model, dict(model=name, profile="pocket", classes=CLASSES))
    return path


def by_hand(file: Path, image: torch.Tensor) -> list[np.ndarray]:
    """What the library finds in a picture [1, 3, h, w], RGB."""
    entry = get_model_entry(json.loads((file.parent / "told.json").read_text()))
    model, recipe = detcore.create_model(entry.name, weights=file, profile="pocket").eval(), entry.recipe_for("pocket")
    height, width = image.shape[2:]
    batch, sizes = recipe.preprocess.collate([np.ascontiguousarray(image[0].permute(1, 2, 0).numpy()[..., ::-1])])
    with torch.no_grad():
        found, = model.predict(recipe.preprocess(batch, sizes))
    assert sizes == [(height, width)] and isinstance(recipe.preprocess(batch, sizes), Images)
    return [t.numpy() for t in (found.boxes, found.scores, found.labels, found.masks) if t is not None]


@pytest.mark.parametrize("name", NAMES)
def test_an_onnx_graph_finds_what_the_model_finds(name, tmp_path):
    import onnx
    import onnxruntime

    file = trained(name, tmp_path / "model.safetensors")
    (tmp_path / "told.json").write_text(json.dumps(name))
    path = export(file, tmp_path / "graph.onnx", size=SIZE)
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["detcore"])
    assert told == dict(model=name, profile="pocket", size=list(SIZE), classes=list(CLASSES))
    names = [o.name for o in session.get_outputs()]
    assert names == ["boxes", "scores", "labels", "masks"][:4 if name.startswith("mask") else 3]
    for seed in (7, 8):  # not the pictures that the export looks at
        image = picture(SIZE, seed)
        wanted, found = by_hand(file, image), session.run(None, {"image": image.numpy()})
        assert len(wanted[0]) > 20 and differ(found, wanted) is None
    assert differ(found, by_hand(file, picture(SIZE, 9))) is not None  # they would not agree by chance
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ("mask-rcnn_r50_fpn_1x_coco", "deformable-detr_r50_16xb2-50e_coco"))
def test_a_program_of_torch_finds_what_the_model_finds(name, tmp_path):
    """In a process that knows nothing but the one operator of ours."""
    file = trained(name, tmp_path / "model.safetensors")
    (tmp_path / "told.json").write_text(json.dumps(name))
    path = export(file, tmp_path / "program.pt2", format="torch", size=SIZE)
    image = picture(SIZE, 7)
    np.save(tmp_path / "image.npy", image.numpy())
    code = ("import sys, numpy, torch, detcore.ops.nms\nextra = {'detcore': ''}\n"
            "program = torch.export.load(sys.argv[1], extra_files=extra).module()\n"
            "found = program(torch.from_numpy(numpy.load(sys.argv[2])))\n"
            "numpy.savez(sys.argv[3], *[t.detach().numpy() for t in found])\nprint(extra['detcore'])")
    told = subprocess.run([sys.executable, "-c", code, path, tmp_path / "image.npy", tmp_path / "found.npz"],
                          capture_output=True, text=True, check=True).stdout
    assert json.loads(told)["model"] == name
    with np.load(tmp_path / "found.npz") as found:
        assert differ([found[key] for key in found.files], by_hand(file, image)) is None


@pytest.mark.parametrize("name, reason", [
    ("fast-rcnn_r50_fpn_1x_coco", "takes proposals"), ("ga-fast-rcnn_r50-caffe_fpn_1x_coco", "takes proposals"),
    ("panoptic-fpn_r50_fpn_1x_coco", "segment by segment"), ("grid-rcnn_r50_fpn_gn-head_1x_coco", "second round"),
    ("libra-retinanet_r50_fpn_1x_coco", "attention"), ("ms-rcnn_r50_fpn_1x_coco", "second round"),
    ("centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco", "corners"),
])
def test_what_cannot_be_exported_says_why(name, reason, tmp_path):
    with pytest.raises(UsageError, match=f"{name} cannot be exported: .*{reason}.* RetinaNet, GFL"):
        export(name, tmp_path / "x.onnx", profile="pocket")


def test_a_graph_that_gives_something_else_is_not_kept(tmp_path, monkeypatch):
    file = trained(NAMES[0], tmp_path / "model.safetensors")
    write = exporting.write_torch

    def wrong(graph, *args):
        graph.preprocess = replace(graph.preprocess, mean=(150.0, 150.0, 150.0))
        write(graph, *args)

    monkeypatch.setattr(exporting, "write_torch", wrong)
    with pytest.raises(DetcoreError, match="does not give what the model gives: .* detections are the same"):
        export(file, tmp_path / "x.pt2", format="torch", size=SIZE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]
    with pytest.raises(UsageError, match="no format 'abacus': it is one of onnx, torch"):
        export(file, tmp_path / "x", format="abacus")


def test_a_check_that_compared_nothing_says_so(tmp_path):
    with pytest.warns(UserWarning, match="retinanet_r50_fpn_1x_coco finds nothing in the two pictures"):
        assert export(NAMES[0], tmp_path / "x.pt2", format="torch", profile="pocket", size=SIZE).exists()


def test_the_command(tmp_path):
    file = trained(NAMES[0], tmp_path / "model.safetensors")
    run = subprocess.run([sys.executable, "-m", "detcore", "export", file, "--format", "torch", "--size", "64", "64",
                          "--output", tmp_path / "out/x.pt2"], capture_output=True, text=True)
    assert run.returncode == 0 and "exported and checked" in run.stdout, run.stderr
    assert (tmp_path / "out/x.pt2").exists()
    run = subprocess.run([sys.executable, "-m", "detcore", "export", "grid-rcnn_r50_fpn_gn-head_1x_coco"],
                         capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.count("\n") == 1 and "cannot be exported" in run.stderr
