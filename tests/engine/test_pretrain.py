"""Pretraining of the pocket backbone: it learns, it repeats, and what is committed fits the pocket models."""
from __future__ import annotations

import os
import signal

import pytest
import torch
from safetensors.torch import load_file

import detcore
from detcore.pocket import pocket_zoo
from detcore.pocket.pretrain import class_map, pretrain
from detcore.pocket.slim import SLIM
from detcore.structures import Target
from detcore.weights import load_backbone


def test_pretraining_learns_and_repeats(tmp_path) -> None:
    pocket_zoo.draw(tmp_path / "zoo", images=64, val=2, workers=1, progress=False)
    runs = [pretrain(tmp_path / "zoo", steps=8, output=tmp_path / f"{i}.safetensors") for i in range(2)]
    assert runs[0].losses == runs[1].losses
    assert runs[0].losses[-1] < runs[0].losses[0]
    first, second = (load_file(tmp_path / f"{i}.safetensors") for i in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first) and first.keys() == second.keys()


def test_an_interrupted_pretraining_goes_on(tmp_path, monkeypatch) -> None:
    pocket_zoo.draw(tmp_path / "zoo", images=64, val=2, workers=1, progress=False)
    whole = pretrain(tmp_path / "zoo", steps=6, output=None)
    step, count = torch.optim.AdamW.step, 0

    def interrupted(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "zoo", steps=6, output=tmp_path / "b.safetensors", folder=tmp_path / "run")
    assert not (tmp_path / "b.safetensors").exists()
    again = pretrain(tmp_path / "zoo", steps=6, output=tmp_path / "b.safetensors", folder=tmp_path / "run")
    assert again.losses == whole.losses and again.accuracy == whole.accuracy
    assert count == 6, "the steps before the interruption were not repeated"


def test_smaller_objects_lie_on_top() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[0, :2], masks[1] = 1, 1
    target = Target(torch.zeros(2, 4), torch.tensor([5, 2]), masks)
    assert class_map(target, (4, 4)).tolist() == [[6] * 4] * 2 + [[3] * 4] * 2


def test_committed_backbone_is_small_and_fits() -> None:
    assert SLIM.file.stat().st_size < 4e6
    entry = detcore.get_model_entry("faster-rcnn_r50_fpn_1x_coco")
    model = detcore.create_model(entry.name, profile="pocket")
    before = model.backbone.layer1[0].conv1.weight.clone()
    load_backbone(model, entry.backbone_weights("pocket"))
    assert not torch.equal(before, model.backbone.layer1[0].conv1.weight)
