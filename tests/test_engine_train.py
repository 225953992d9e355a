"""Training: what it learns, leaves behind, and takes up again; what stops it."""
from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice

import pytest
import torch

from detcore.pocket import pocket_zoo
from detcore.data.loader import build_loader
from detcore.engine.benchmark import benchmark_inference, benchmark_training, flops, fuse_conv_bn
from detcore.runs import Checkpoints
from detcore.engine.common import TRAIN, load_data
from detcore.engine.evaluate import evaluate, make_proposals
from detcore.engine.launch import launch
from detcore.engine.train import build_optimizer, make_accelerator, pick_precision, starting_model, train
from detcore.errors import DataError, DetcoreError, UsageError, WeightsError
from detcore.records import read_record
from detcore.zoo.create import create_model, restore
from detcore.zoo.index import get_model_entry
from detcore.recipe import SGD, Recipe

RETINANET, MASK_RCNN = "retinanet_r50_fpn_1x_coco", "mask-rcnn_r50_fpn_1x_coco"
RPN, FAST_RCNN = "rpn_r50_fpn_1x_coco", "fast-rcnn_r50_fpn_1x_coco"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A small Pocket Zoo: 40 images to train on, 8 to evaluate on."""
    return pocket_zoo.draw(tmp_path_factory.mktemp("data") / "zoo", images=40, val=8, workers=1, progress=False)


def losses(folder) -> list[dict]:
    """The log without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k and not k.endswith("_gb")} for line in lines]


def quick(model, zoo, output, **options):
    """A training of four steps, of few images."""
    return train(model, zoo, output=output, device="cpu",
                 **dict(dict(steps=4, batch_size=4, workers=0, progress=False, log_interval=1), **options))


def command(*args, **options):
    """`detcore train` with what a test wants, as a process of its own."""
    env = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen([sys.executable, "-m", "detcore", "train", *map(str, args), "--device", "cpu"],
                            env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_what_a_run_leaves_behind(zoo, tmp_path):
    result = quick(MASK_RCNN, zoo, tmp_path / "run", steps=6, checkpoint_interval=2, mixed_precision="bf16",
                   clip_norm=5)
    assert [line["step"] for line in result.log] == [1, 2, 3, 4, 5, 6, 6]
    assert result.log[0]["loss"] > result.log[5]["loss"] > 0 and result.log[0]["grad_norm"] > 0
    assert result.log[-1].keys() >= {"bbox_AP", "segm_AP"} and result.record.metrics["bbox_AP"] is not None
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["step_00000004.pt", "step_00000006.pt"]
    assert any((tmp_path / "run/tensorboard").iterdir())
    assert result.record == read_record(tmp_path / "run/record.json")
    assert result.record.parameters["learning_rate"] == pytest.approx(
        get_model_entry(MASK_RCNN).recipe_for("pocket").optimizer.lr * 4 / 16)
    assert result.record.speed["training_images_per_s"] == pytest.approx(4 / result.record.speed["training_step_s"])
    for file in (result.checkpoint, result.best, tmp_path / "run/checkpoints/step_00000006.pt"):
        restored = restore(file)
        assert restored.entry.name == MASK_RCNN and restored.classes == pocket_zoo.CLASSES


def test_the_schedule_fits_any_number_of_steps(zoo, tmp_path):
    rates = [line["lr"] for line in quick(RETINANET, zoo, tmp_path / "run", steps=10, validate=False).log]
    assert rates[0] < rates[1] <= max(rates)
    assert rates[-1] == pytest.approx(max(rates) / 100)


def test_killed_and_resumed_is_as_never_killed(zoo, tmp_path):
    args = (RETINANET, "--data-root", zoo, "--steps", 9, "--batch-size", 4, "--log-interval", 2, "--no-validate",
            "--checkpoint-interval", 1)
    whole = command(*args, "--output", tmp_path / "whole")
    killed = command(*args, "--output", tmp_path / "killed", "--workers", 1)
    log = tmp_path / "killed/log.jsonl"
    deadline = time.monotonic() + 120
    while killed.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert whole.wait(120) == 0, whole.stderr.read()
    assert not (tmp_path / "killed/record.json").exists()
    resumed = command(*args, "--output", tmp_path / "killed", "--resume")
    assert resumed.wait(120) == 0, resumed.stderr.read()
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    one, other = (torch.load(tmp_path / n / "checkpoints/step_00000009.pt") for n in ("whole", "killed"))
    assert all(torch.equal(one["state_dict"][k], v) for k, v in other["state_dict"].items())


def test_interrupted_saves_and_goes_on(zoo, tmp_path):
    args = (RETINANET, "--data-root", zoo, "--batch-size", 4, "--log-interval", 1, "--no-validate", "--output",
            tmp_path / "run", "--checkpoint-interval", 1000)
    process = command(*args, "--steps", 500, "--workers", 1, start_new_session=True)
    log, deadline = tmp_path / "run/log.jsonl", time.monotonic() + 120
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does: to the workers too
    assert process.wait(60) == 130
    told = process.stderr.read()
    assert "--resume goes on" in told and "Traceback" not in told
    [saved] = (tmp_path / "run/checkpoints").glob("*.pt")
    done = int(saved.stem.removeprefix("step_"))
    assert done == losses(tmp_path / "run")[-1]["step"]
    with pytest.raises(UsageError, match="holds a run: go on with it"):
        quick(RETINANET, zoo, tmp_path / "run", overwrite=False)
    with pytest.raises(UsageError, match="another steps"):
        quick(RETINANET, zoo, tmp_path / "run", resume=True, overwrite=False)


def test_a_run_that_is_over_is_left_alone_unless_it_is_another(zoo, tmp_path, monkeypatch):
    first = quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=1)
    assert quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=1, resume=True).record == first.record
    other = quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=1, seed=1, resume=True)
    assert other.record.seed == 1 and other.log[0]["loss"] != first.log[0]["loss"]
    monkeypatch.setattr("detcore.engine.train.code_digest", lambda: "of another version")
    again = quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=1, seed=1, resume=True, overwrite=False)
    assert again.record == other.record
    anew = quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=1, seed=1, resume=True)
    assert anew.record.duration_s != other.record.duration_s
    assert anew.log[0]["loss"] == other.log[0]["loss"]


def test_time_runs_out(zoo, tmp_path):
    result = quick(RETINANET, zoo, tmp_path / "run", steps=1000, seconds=0.5, validate=False)
    assert 0 < result.record.parameters["steps_done"] < 1000
    assert result.record.duration_s >= 0.5


def test_a_loss_that_is_not_finite_stops(zoo, tmp_path):
    with torch.no_grad():
        model = create_model(RETINANET, profile="pocket", num_classes=len(pocket_zoo.CLASSES))
        model.bbox_head.retina_reg.bias.fill_(float("nan"))
    torch.save(model.state_dict(), tmp_path / "bad.pth")
    with pytest.raises(DetcoreError, match=r"iteration 1: loss_bbox is not finite, on the images with the ids \d+,"):
        quick(RETINANET, zoo, tmp_path / "run", weights=tmp_path / "bad.pth")
    assert not list((tmp_path / "run").glob("**/*.pt")) + list((tmp_path / "run").glob("*.safetensors"))


def test_a_full_disk_leaves_the_checkpoint_before(zoo, tmp_path):
    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=4, checkpoint_interval=2, keep=9)
    before = {p: p.read_bytes() for p in (tmp_path / "run/checkpoints").iterdir()}
    (tmp_path / "run/checkpoints/step_00000004.pt").unlink()
    process = command(RETINANET, "--data-root", zoo, "--steps", 4, "--batch-size", 4, "--no-validate", "--resume",
                      "--output", tmp_path / "run", preexec_fn=small_files)
    assert process.wait(120) == 1
    error = process.stderr.read().splitlines()[-1]
    assert error.startswith("Error: The checkpoint ") and "cannot be written: File too large" in error
    assert "step_00000002.pt is whole" in error
    [left] = (tmp_path / "run/checkpoints").iterdir()
    assert left.read_bytes() == before[left]


def test_a_broken_checkpoint_is_named(tmp_path):
    kept = Checkpoints(tmp_path, keep=2)
    for step in (1, 20, 3):
        kept.save(step, {"step": step})
    assert [p.name for p in kept.paths()] == ["step_00000003.pt", "step_00000020.pt"]
    assert kept.load() == {"step": 20}
    kept.paths()[-1].write_bytes(b"cut off")
    with pytest.raises(WeightsError, match="step_00000020.pt cannot be read"):
        kept.load()


def test_two_processes_train_as_one_with_the_whole_batch(zoo, tmp_path):
    one = quick(RETINANET, zoo, tmp_path / "one", batch_size=4, validate=False)
    two = quick(RETINANET, zoo, tmp_path / "two", batch_size=2, gpus=2)
    assert two.record.parameters["processes"] == 2
    assert one.record.parameters["learning_rate"] == two.record.parameters["learning_rate"]
    for a, b in zip(one.log, two.log):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    alone = evaluate(RETINANET, two.checkpoint, zoo, progress=False).record.metrics
    assert two.record.metrics == pytest.approx(alone, abs=1e-6)
    a, b = (restore(r.checkpoint).model.state_dict() for r in (one, two))
    # Adam's steps do not shrink with the gradient: rounding shows in a few weights, by less than a step.
    assert max((a[k].float() - b[k].float()).abs().mean() for k in a) < 1e-4


def share_of_losses(zoo, output) -> None:
    """The losses of two-stage models on this process's share of eight images, averaged over the processes."""
    accelerator = make_accelerator(torch.device("cpu"))
    rank, world = accelerator.process_index, accelerator.num_processes
    found = {}
    for name in (MASK_RCNN, "cascade-rcnn_r50_fpn_1x_coco"):
        recipe = get_model_entry(MASK_RCNN).recipe_for("pocket")
        model = starting_model(get_model_entry(name), "pocket", None, len(pocket_zoo.CLASSES)).train()
        for module in model.modules():
            if hasattr(module, "sampler"):
                module.sampler = replace(module.sampler, number=None)  # chance would draw other samples
        data = load_data(zoo, recipe, TRAIN, training=True)
        [*_, batch] = islice(build_loader(data, 8 // world, preprocess=recipe.preprocess, training=True, rank=rank,
                                          world_size=world), 2)
        for key, value in model.loss(recipe.preprocess(batch.images, batch.sizes), batch.targets).items():
            if "loss" in key:
                found[name, key] = float(accelerator.reduce(value.detach(), "mean"))
    if rank == 0:
        torch.save(found, output)


def test_losses_of_two_processes_average_to_those_of_the_whole_batch(zoo, tmp_path):
    share_of_losses(zoo, tmp_path / "one.pt")
    launch(share_of_losses, 2, torch.device("cpu"), zoo, tmp_path / "two.pt")
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert len(one) > 8
    for key, value in one.items():
        assert value == pytest.approx(two[key], rel=1e-4), key


def test_errors_of_processes_reach_the_caller(zoo, tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="other.pth does not fit"):
        quick(RETINANET, zoo, tmp_path / "run", weights=tmp_path / "other.pth", gpus=2)
    quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=1)
    with pytest.raises(DetcoreError, match="cannot go on: it has another steps and another processes"):
        quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=2, resume=True, overwrite=False, gpus=2)


def test_from_proposals_to_fast_rcnn(zoo, tmp_path):
    rpn = quick(RPN, zoo, tmp_path / "rpn", validate=False)
    with pytest.raises(UsageError, match="detcore proposals"):
        quick(FAST_RCNN, zoo, tmp_path / "fast")
    with pytest.raises(UsageError, match="family rpn"):
        make_proposals(RETINANET, rpn.checkpoint, zoo, tmp_path / "none.npz")
    file = make_proposals(RPN, rpn.checkpoint, zoo, tmp_path / "found/proposals.npz", progress=False)
    fast = quick(FAST_RCNN, zoo, tmp_path / "fast", proposals=file)
    assert fast.record.metrics["bbox_AP"] is not None
    recall = evaluate(RPN, rpn.checkpoint, zoo, progress=False).record.metrics
    assert 0 < recall["proposal_AR100"] <= recall["proposal_AR1000"]
    record = benchmark_inference(FAST_RCNN, zoo, checkpoint=fast.checkpoint, proposals=file, images=3, say=None)
    assert record.metrics["flops"] > 1e8


def test_evaluation_writes_what_it_found(zoo, tmp_path):
    run = quick(MASK_RCNN, zoo, tmp_path / "run", steps=2, validate=False)
    found = evaluate(MASK_RCNN, run.checkpoint, zoo, output=tmp_path / "out", progress=False)
    again = evaluate(MASK_RCNN, run.checkpoint, zoo, backend="pycocotools", batch_size=3, images=8, progress=False)
    assert json.loads((tmp_path / "out/detections.json").read_text()) == found.detections
    assert read_record(tmp_path / "out/record.json").metrics == found.record.metrics
    for name, value in found.record.metrics.items():
        assert value == pytest.approx(again.record.metrics[name], abs=1e-6), name
    assert found["segm"].per_class.keys() == set(pocket_zoo.CLASSES)
    with pytest.raises(UsageError, match="tells 80 classes apart"):
        evaluate(RETINANET, create_model(RETINANET), zoo, profile="coco")


def test_benchmarks(zoo, capsys):
    record = benchmark_inference(RETINANET, zoo, images=12, interval=4, warmup=2)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "image 4 of 12", "image 8 of 12", "image 12 of 12"]
    assert record.speed["inference_median_s"] <= record.speed["inference_p95_s"]
    model = create_model(RETINANET, profile="pocket", num_classes=len(pocket_zoo.CLASSES))
    assert record.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    # Four times the pixels, four times the work, in a network that is all convolution.
    assert flops(model, (256, 256)) == pytest.approx(4 * record.metrics["flops"], rel=0.01)
    training = benchmark_training(RETINANET, zoo, first=1, last=3, batch_size=2, device="cpu", progress=False)
    assert training.kind == "benchmark" and training.speed["training_step_s"] > 0
    assert training.memory["resident_gb"] > 0.1


@pytest.mark.parametrize("name", [MASK_RCNN, "faster-rcnn_r50-caffe_c4-1x_coco"])
def test_batch_norm_is_folded(name):
    model = create_model(name, profile="pocket").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.features(x)
        after = fuse_conv_bn(model).features(x)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    for a, b in zip(before, after):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_precision_and_optimizers():
    cpu = torch.device("cpu")
    assert pick_precision(None, Recipe(amp=True), cpu) == "no"
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        pick_precision("fp16", Recipe(), cpu)
    with pytest.raises(UsageError, match="one of no, bf16, fp16"):
        pick_precision("fp8", Recipe(), cpu)
    assert make_accelerator(cpu, "bf16").mixed_precision == "bf16"
    assert make_accelerator(cpu).mixed_precision == "no"
    optimizer = build_optimizer(create_model(RETINANET, profile="pocket"), SGD(momentum=0.8), 0.3)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["lr"], g["momentum"], g["weight_decay"]) for g in optimizer.param_groups} == {(0.3, 0.8, 1e-4)}


def test_what_is_missing_is_said_before_training(zoo, tmp_path):
    with pytest.raises(DataError, match="no data set at"):
        train(RETINANET, tmp_path / "nothing", output=tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(DetcoreError, match="cannot be written to: Not a directory"):
        train(RETINANET, zoo, output=tmp_path / "file/run")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="8 GPUs were asked for"):
            train(RETINANET, zoo, output=tmp_path / "run", gpus=8)
        with pytest.raises(UsageError, match="finds no GPU"):
            train(RETINANET, zoo, output=tmp_path / "run", device="cuda")
