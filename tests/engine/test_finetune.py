"""The zoo's strong pretrained detectors as the start of a training on somebody's own data with other classes."""
from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

import detcore
from detcore.data.check import check
from detcore.data.coco import CocoDataset
from detcore.data.dataset import ReadOptions
from detcore.data.loader import build_loader
from detcore.engine.common import load_data
from detcore.pocket import pocket_zoo
from detcore.zoo.create import restore
from detcore.zoo.index import get_model_entry

STRONG = ("faster-rcnn_r50_fpn_ms-3x_coco", "mask-rcnn_r50_fpn_ms-poly-3x_coco",
          "faster-rcnn_regnetx-3.2GF_fpn_ms-3x_coco", "mask-rcnn_regnetx-3.2GF_fpn_ms-3x_coco")
NAMES = {"zebra": "striped", "lion": "maned", "tortoise": "armoured"}
WITHOUT_HASHES = ("import detcore.weights; detcore.weights.announced_hash = lambda file: None\n"
                  "from detcore.cli import main; main()")  # the command, for files that stand for the published ones
OF_BOXES = {f"roi_head.bbox_head.{part}" for part in ("fc_cls", "fc_reg")}
OF_MASKS = {"roi_head.mask_head.conv_logits"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three of Pocket Zoo's classes under names of their own, in folders that do not end with a year."""
    root = pocket_zoo.draw(tmp_path_factory.mktemp("data") / "mine", images=16, val=4, workers=1, progress=False)
    for split in ("train", "val"):
        (root / f"{split}2017").rename(root / split)
        file = root / f"annotations/instances_{split}2017.json"
        content = json.loads(file.read_text())
        ids = {c["id"]: c["id"] + 40 for c in content["categories"] if c["name"] in NAMES}
        content["categories"] = [dict(id=ids[c["id"]], name=NAMES[c["name"]]) for c in content["categories"]
                                 if c["id"] in ids]
        content["annotations"] = [a | dict(category_id=ids[a["category_id"]]) for a in content["annotations"]
                                  if a["category_id"] in ids]
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        file.unlink()
    for split in ("train", "val"):
        (root / f"annotations/panoptic_{split}2017.json").unlink()
    return root


@pytest.fixture
def publish(tmp_path, monkeypatch) -> Callable[[str], dict[str, torch.Tensor]]:
    """Puts a file of a model's weights, in the form of the original's, where the download of the published one would
    be; gives the weights."""
    return partial(put_into_cache, tmp_path, monkeypatch)


def put_into_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, torch.Tensor]:
    monkeypatch.setenv("TORCH_HOME", str(cache))
    # Other weights have another hash than the published name tells.
    monkeypatch.setattr("detcore.weights.announced_hash", lambda file: None)
    entry = get_model_entry(name)
    torch.manual_seed(0)
    state = detcore.create_model(entry.name).state_dict()
    file = cache / "hub/checkpoints" / Path(entry.checkpoint).name
    file.parent.mkdir(parents=True)
    torch.save(dict(meta=dict(CLASSES=tuple(f"class {i}" for i in range(80))), state_dict=state), file)
    return state


def test_the_data_are_complete(data):
    assert {f.verdict for f in check(data, progress=False)} == {"ok", "note"}  # no panoptic maps
    found = CocoDataset.open(data, "train", ReadOptions())
    assert found.class_names == tuple(NAMES.values()) and found.category_ids == [43, 44, 48]


@pytest.mark.parametrize("name", STRONG)
def test_one_call_gives_a_model_to_be_tuned(publish, data, caplog, name):
    state = publish(name)
    with caplog.at_level(logging.WARNING):
        model = detcore.create_model(name, weights="published", num_classes=len(NAMES))
    (line,) = caplog.messages
    wanted = OF_BOXES | OF_MASKS if name.startswith("mask") else OF_BOXES
    assert "80 classes apart, the model 3" in line and all(part in line for part in wanted)
    found = model.state_dict()
    changed = {n.rpartition(".")[0] for n in state if not torch.equal(found[n], state[n])}
    assert changed == wanted

    recipe = get_model_entry(name).recipe
    loader = build_loader(load_data(data, recipe, "train", training=True), 1, preprocess=recipe.preprocess,
                          training=True)
    batch = next(iter(loader))
    losses = model.loss(recipe.preprocess(batch.images, batch.sizes, training=True), batch.targets)
    sum(losses.values()).backward()
    assert all(model.get_parameter(f"{part}.weight").grad.abs().sum() > 0 for part in wanted)


def test_the_command_does_it(publish, data, tmp_path):
    name = STRONG[0]
    state = publish(name)
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_HASHES, "train", name, "--data-root", data, "--weights", "published",
         "--steps", "2", "--batch-size", "1", "--device", "cpu", "--workers", "0", "--output", tmp_path / "run"],
        capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS="2"), check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("start anew") == 1 and "bbox_AP" in run.stdout
    tuned = restore(tmp_path / "run/model.safetensors")
    assert (tuned.name, tuned.profile, tuned.classes) == (name, "coco", tuple(NAMES.values()))
    assert tuned.meta["profile"] == "coco" and tuned.meta["category_ids"] == [43, 44, 48]
    frozen = "backbone.layer1.0.conv1.weight"
    assert torch.equal(tuned.model.state_dict()[frozen], state[frozen])
