"""Training: what it learns, leaves behind, and takes up again; what stops it."""
from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from detcore.data.loader import build_loader
from detcore.engine.benchmark import benchmark, benchmark_inference, fuse_conv_bn
from detcore.engine.common import load_data
from detcore.engine.evaluate import evaluate, make_proposals
from detcore.engine.launch import launch
from detcore.engine.train import build_optimizer, make_accelerator, pick_precision, starting_model, train
from detcore.errors import DataError, DetcoreError, UsageError, WeightsError
from detcore.pocket import pocket_zoo
from detcore.recipe import SGD, Recipe
from detcore.records import read_record
from detcore.runs import Checkpoints, code_digest
from detcore.structures import Images
from detcore.weights import save_weights
from detcore.zoo.create import create_model, resolve, restore
from detcore.zoo.index import get_model_entry

RETINANET, MASK_RCNN = "retinanet_r50_fpn_1x_coco", "mask-rcnn_r50_fpn_1x_coco"
RPN, FAST_RCNN = "rpn_r50_fpn_1x_coco", "fast-rcnn_r50_fpn_1x_coco"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A small Pocket Zoo: 40 images to train on, 8 to evaluate on."""
    return pocket_zoo.draw(tmp_path_factory.mktemp("data") / "zoo", images=40, val=8, workers=1, progress=False)


def content(folder) -> dict:
    """Every file of a folder, by name, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    recipe = get_model_entry(MASK_RCNN).recipe_for("pocket")
    assert result.record.parameters["learning_rate"] == pytest.approx(
        recipe.optimizer.lr * 4 / recipe.batch_size)
    assert result.record.speed["training_images_per_s"] == pytest.approx(4 / result.record.speed["training_step_s"])
    for file in (result.checkpoint, result.best, tmp_path / "run/checkpoints/step_00000006.pt"):
        restored = restore(file)
        assert restored.name == MASK_RCNN and restored.classes == pocket_zoo.CLASSES
        assert restored.meta["category_ids"] == list(range(1, len(pocket_zoo.CLASSES) + 1))
    assert {"loss_cls", "loss_mask", "loss"} < result.record.curves.keys()
    assert "acc" in result.log[0] and "acc" not in result.record.curves
    assert result.log[0]["loss"] == pytest.approx(sum(v for n, v in result.log[0].items() if n.startswith("loss_")))


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
    before = content(tmp_path / "run")
    with pytest.raises(UsageError, match="holds a run: go on with it"):
        quick(RETINANET, zoo, tmp_path / "run")
    with pytest.raises(UsageError, match=r"cannot go on, because of what has changed: steps \(500, now 4\)\. Set it"):
        quick(RETINANET, zoo, tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == before


@pytest.fixture(scope="module")
def done(zoo, tmp_path_factory):
    """The folder of a run of one step that is over; nothing may change in it."""
    folder = tmp_path_factory.mktemp("done") / "run"
    quick(RETINANET, zoo, folder, steps=1)
    before = content(folder)
    assert {"model.safetensors", "best.safetensors", "record.json", "log.jsonl"} < before.keys()
    yield folder
    assert content(folder) == before


def test_a_run_that_is_over_is_left_alone(zoo, done):
    before = read_record(done / "record.json")
    assert quick(RETINANET, zoo, done, steps=1, resume=True).record == before
    with pytest.raises(UsageError, match="holds a run"):
        quick(RETINANET, zoo, done, steps=1)


@pytest.mark.parametrize("change, told", [
    (dict(seed=1), r"seed \(0, now 1\)"), (dict(batch_size=2, steps=2), r"steps \(1, now 2\), batch_size \(4, now 2\)"),
    (dict(weights="random"), r"weights \(None, now random\)"), (dict(clip_norm=9), r"clip_norm \(.*, now 9\)"),
    (dict(recipe=replace(get_model_entry(RETINANET).recipe_for("pocket"), optimizer=SGD())), "the recipe's optimizer"),
])
def test_other_settings_remove_nothing(zoo, done, change, told):
    before = content(done)
    with pytest.raises(UsageError, match=f"has changed: {told}. Set it back, name another folder .* start anew"):
        quick(RETINANET, zoo, done, **dict(dict(steps=1, resume=True), **change))
    assert content(done) == before


def test_other_data_remove_nothing(zoo, done, tmp_path):
    other = pocket_zoo.draw(tmp_path / "zoo", images=8, val=2, seed=5, workers=1, progress=False)
    before = content(done)
    with pytest.raises(UsageError, match="because of what has changed: the data. Set it back"):
        quick(RETINANET, other, done, steps=1, resume=True)
    assert content(done) == before


def test_another_model_removes_nothing(zoo, done):
    before = content(done)
    with pytest.raises(UsageError, match=f"has changed: model .{RETINANET}, now gfl_r50_fpn_1x_coco.. Set it back"):
        quick("gfl_r50_fpn_1x_coco", zoo, done, steps=1, resume=True, recipe=resolve(RETINANET).recipe)
    assert content(done) == before


def test_other_code_goes_on_with_a_warning(zoo, done, monkeypatch):
    monkeypatch.setattr("detcore.engine.train.code_digest", lambda: "of another version")
    before = content(done)
    with pytest.warns(UserWarning, match="The library's code has changed since the run in"):
        quick(RETINANET, zoo, done, steps=1, resume=True)
    assert content(done) == before


def test_results_without_a_checkpoint_are_not_written_over(zoo, done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    before = content(tmp_path / "run")
    with pytest.raises(UsageError, match="holds model.safetensors and .* but no checkpoint to go on from"):
        quick(RETINANET, zoo, tmp_path / "run", steps=1, resume=True)
    with pytest.raises(UsageError, match="holds a run"):
        quick(RETINANET, zoo, tmp_path / "run", steps=1)
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("resume", [False, True])
def test_overwrite_starts_anew(zoo, done, tmp_path, resume):
    shutil.copytree(done, tmp_path / "run")
    other = quick(RETINANET, zoo, tmp_path / "run", steps=2, seed=1, validate=False, overwrite=True, resume=resume)
    assert other.record.seed == 1 and [line["step"] for line in other.log] == [1, 2]
    assert other.best is None and not (tmp_path / "run/best.safetensors").exists()
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000001.pt", "step_00000002.pt"]


def test_comments_are_no_code(tmp_path):
    (tmp_path / "a.py").write_text('"""Says what."""\nx = 1  # one\n')
    first = code_digest(tmp_path)
    code_digest.cache_clear()
    (tmp_path / "a.py").write_text('"""Says it otherwise."""\n\n# first\nx   = 1\n')
    assert code_digest(tmp_path) == first
    code_digest.cache_clear()
    (tmp_path / "a.py").write_text('"""Says what."""\nx = 2\n')
    assert code_digest(tmp_path) != first


@pytest.mark.parametrize("options", [
    dict(steps=0), dict(batch_size=0), dict(gpus=0), dict(keep=0), dict(workers=-1), dict(log_interval=0),
    dict(checkpoint_interval=0), dict(seed=-1), dict(steps=2.5), dict(seconds=0), dict(clip_norm=-1)])
def test_numbers_are_checked_before_work_begins(options, tmp_path):
    [(name, value)] = options.items()
    with pytest.raises(UsageError, match=f"{name}.* {value}"):
        train(RETINANET, "nowhere", output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_time_runs_out(zoo, tmp_path):
    result = quick(RETINANET, zoo, tmp_path / "run", steps=1000, seconds=0.5, validate=False)
    assert 0 < result.record.parameters["steps_done"] < 1000
    assert result.record.duration_s >= 0.5


def test_a_loss_that_is_not_finite_stops(zoo, tmp_path):
    with torch.no_grad():
        model = create_model(RETINANET, profile="pocket", num_classes=len(pocket_zoo.CLASSES))
        model.bbox_head.retina_reg.bias.fill_(3e38)
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
    alone = evaluate(RETINANET, zoo, weights=two.checkpoint, progress=False).record.metrics
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
        model = starting_model(resolve(name), None, len(pocket_zoo.CLASSES)).train()
        for module in model.modules():
            if hasattr(module, "sampler"):
                module.sampler = replace(module.sampler, number=None)  # chance would draw other samples
        data = load_data(zoo, recipe, "train", training=True)
        [*_, batch] = islice(build_loader(data, 8 // world, preprocess=recipe.preprocess, training=True, rank=rank,
                                          world_size=world), 2)
        for key, value in model.loss(recipe.preprocess(batch.images, batch.sizes), batch.targets).items():
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
    with pytest.raises(DetcoreError, match="because of what has changed: steps .1, now 2., processes .1, now 2."):
        quick(RETINANET, zoo, tmp_path / "run", validate=False, steps=2, resume=True, gpus=2)


def test_from_proposals_to_fast_rcnn(zoo, tmp_path):
    rpn = quick(RPN, zoo, tmp_path / "rpn", validate=False)
    with pytest.raises(UsageError, match="detcore proposals"):
        quick(FAST_RCNN, zoo, tmp_path / "fast")
    with pytest.raises(UsageError, match="family rpn"):
        make_proposals(RETINANET, zoo, tmp_path / "none.npz", weights="random")
    file = make_proposals(RPN, zoo, tmp_path / "found/proposals.npz", weights=rpn.checkpoint, progress=False)
    fast = quick(FAST_RCNN, zoo, tmp_path / "fast", proposals=file)
    assert fast.record.metrics["bbox_AP"] is not None
    recall = evaluate(RPN, zoo, weights=rpn.checkpoint, progress=False).record.metrics
    assert 0 < recall["proposal_AR100"] <= recall["proposal_AR1000"]
    record = benchmark_inference(FAST_RCNN, zoo, weights=fast.checkpoint, proposals=file, images=3, say=None)
    assert record.metrics["flops"] > 1e8


def test_evaluation_writes_what_it_found(zoo, tmp_path):
    run = quick(MASK_RCNN, zoo, tmp_path / "run", steps=2, validate=False)
    found = evaluate(run.checkpoint, zoo, output=tmp_path / "out", progress=False)
    again = evaluate(MASK_RCNN, zoo, weights=run.checkpoint, backend="pycocotools", batch_size=3, images=8,
                     progress=False)
    assert json.loads((tmp_path / "out/detections.json").read_text()) == found.detections
    assert read_record(tmp_path / "out/record.json").metrics == found.record.metrics
    for name, value in found.record.metrics.items():
        assert value == pytest.approx(again.record.metrics[name], abs=1e-6), name
    assert found["segm"].per_class.keys() == set(pocket_zoo.CLASSES)
    with pytest.raises(UsageError, match="tells 80 classes apart"):
        evaluate(create_model(RETINANET), zoo, recipe=Recipe())
    with pytest.raises(UsageError, match=f"Which weights of {MASK_RCNN}"):
        evaluate(MASK_RCNN, zoo)
    with pytest.raises(UsageError, match="images is a whole number of at least 1, not 0"):
        evaluate(run.checkpoint, zoo, images=0)


def test_thresholds_reach_the_model(zoo, tmp_path):
    run = quick(MASK_RCNN, zoo, tmp_path / "run", steps=1, validate=False)
    found = evaluate(run.checkpoint, zoo, score_threshold=0.0, max_detections=3, progress=False)
    assert len(found.detections) == 3 * 8
    assert found.record.parameters["options"] == dict(score_threshold=0.0, max_detections=3)
    assert not evaluate(run.checkpoint, zoo, score_threshold=1.0, progress=False).detections
    with pytest.raises(UsageError, match="score_threshold is a number from 0 to 1, not 7"):
        evaluate(run.checkpoint, zoo, score_threshold=7)
    with pytest.raises(UsageError, match="has no option 'nms_treshold'. Did you mean nms_threshold?"):
        evaluate(run.checkpoint, zoo, nms_treshold=0.5)
    with pytest.raises(UsageError, match="The nms_threshold of a detector that is built already cannot be changed"):
        evaluate(create_model(RETINANET, profile="pocket"), zoo, recipe=Recipe(), nms_threshold=0.5)


def test_benchmarks(zoo, capsys):
    record = benchmark(RETINANET, zoo, images=12, interval=4, warmup=2)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "image 4 of 12", "image 8 of 12", "image 12 of 12"]
    times = [record.speed[f"inference_{name}_s"] for name in ("q1", "median", "q3", "p95")]
    assert 0 < times[0] and times == sorted(times)
    model = create_model(RETINANET, profile="pocket", num_classes=len(pocket_zoo.CLASSES))
    assert record.metrics["parameters"] == sum(p.numel() for p in model.parameters())
    # Four times the pixels, four times the work, in a network that is all convolution.
    with FlopCounterMode(display=False) as counter:
        model.eval().predict(Images(torch.zeros(1, 3, 256, 256), [(256, 256)]))
    model.train()
    assert counter.get_total_flops() == pytest.approx(4 * record.metrics["flops"], rel=0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = benchmark(model, zoo, training=True, recipe=resolve(RETINANET).recipe, first=1, last=3, batch_size=2,
                         device="cpu", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(UsageError, match="no option 'images'"):
        benchmark(RETINANET, zoo, training=True, images=3)
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


# Broken machines and files

def broken_copy(done, tmp_path, change):
    """A copy of a finished run without its record, whose checkpoint `change` has been at."""
    shutil.copytree(done, tmp_path / "run")
    (tmp_path / "run/record.json").unlink()
    file = tmp_path / "run/checkpoints/step_00000001.pt"
    state = torch.load(file)
    change(state)
    torch.save(state, file)
    return tmp_path / "run"


@pytest.mark.parametrize("change, told", [
    *((lambda s, n=n: s.pop(n), n) for n in ("meta", "run", "step", "elapsed", "best", "window", "losses",
                                              "state_dict", "aside", "optimizer", "scaler")),
    (lambda s: s.update(step="1"), "step"), (lambda s: s.update(step=3), "step"),
    (lambda s: s.update(window=[1]), "window"), (lambda s: s.update(elapsed=None), "elapsed"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_a_checkpoint_without_its_parts_is_named(zoo, done, tmp_path, change, told):
    folder = broken_copy(done, tmp_path, change)
    before = content(folder)
    with pytest.raises(WeightsError, match=f"_00000001.pt is damaged: {told} in it is missing or of the wrong kind"):
        quick(RETINANET, zoo, folder, steps=1, resume=True)
    assert content(folder) == before


@pytest.mark.parametrize("change", [
    lambda s: s["optimizer"].clear(), lambda s: s["optimizer"].update(state=3),
    lambda s: s["optimizer"]["param_groups"].pop(), lambda s: s["optimizer"]["param_groups"][0].update(betas="x"),
    lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.zeros(1, 7)), lambda s: s["window"].update(a="x"),
    lambda s: s["state_dict"].popitem(), lambda s: s["state_dict"].update({next(iter(s["state_dict"])): 5})])
def test_a_checkpoint_that_does_not_fit_is_named(zoo, done, tmp_path, change):
    folder = broken_copy(done, tmp_path, change)
    with pytest.raises(UsageError, match="the model has changed, or its newest checkpoint is damaged"):
        quick(RETINANET, zoo, folder, steps=1, resume=True)


def test_a_flipped_byte_is_noticed(done, tmp_path):
    shutil.copytree(done, tmp_path / "run")
    kept = Checkpoints(tmp_path / "run/checkpoints", 2)
    [file] = kept.paths()
    sound = file.read_bytes()
    for place in range(1000, len(sound) * 9 // 10, len(sound) // 7):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1:])
        try:
            found = kept.load()
        except WeightsError as error:
            assert "cannot be read" in str(error) and "start anew" in str(error)
            continue
        file.write_bytes(sound)  # a byte between the parts
        assert all(torch.equal(v, kept.load()["state_dict"][n]) for n, v in found["state_dict"].items())
    place = sound.index(torch.load(file)["state_dict"]["backbone.conv1.weight"].numpy().tobytes()) + 5
    file.write_bytes(sound[:place] + bytes([sound[place] ^ 64]) + sound[place + 1:])
    with pytest.raises(WeightsError, match="the checksum of its part .* is wrong"):
        kept.load()


@pytest.mark.parametrize("log", [
    None, b"", b"\xff\xfe\n", b"[]\n1\nnull\n", b'{"step": "1"}\n{"loss": 1}\n', b'{"step": 1, "loss": {"a": []}}\n',
    b"[" * 20_000 + b"}\n"], ids=["none", "empty", "bytes", "kinds", "keys", "nested", "deep"])
def test_a_broken_log_does_not_keep_a_run_from_going_on(zoo, done, tmp_path, log):
    folder = broken_copy(done, tmp_path, lambda state: None)
    (folder / "log.jsonl").unlink() if log is None else (folder / "log.jsonl").write_bytes(log)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert quick(RETINANET, zoo, folder, steps=1, resume=True).record.parameters["steps_done"] == 1
    damaged = log not in (None, b"") and not log.startswith(b'{"step": 1')
    assert sum("are damaged and left out" in str(w.message) for w in told) == damaged


def test_an_evaluation_that_fails_loses_no_step(zoo, tmp_path, monkeypatch):
    whole = quick(RETINANET, zoo, tmp_path / "whole", steps=2)

    def fail(*args, **options):
        raise DataError("A mask is broken.")

    with monkeypatch.context() as patch:
        patch.setattr("detcore.engine.train.score", fail)
        with pytest.raises(DataError, match="A mask"):
            quick(RETINANET, zoo, tmp_path / "run", steps=2)
    assert (tmp_path / "run/checkpoints/step_00000002.pt").exists()
    resumed = quick(RETINANET, zoo, tmp_path / "run", steps=2, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert resumed.record.metrics == whole.record.metrics and resumed.best.exists()


def test_a_metric_that_is_not_defined_ends_no_run(zoo, tmp_path):
    shutil.copytree(zoo, tmp_path / "zoo")
    file = tmp_path / "zoo/annotations/instances_val2017.json"
    [file] = [file] if file.exists() else (tmp_path / "zoo/annotations").glob("instances_val*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(annotations=[])))
    run = quick(RETINANET, tmp_path / "zoo", tmp_path / "run", steps=2)
    assert run.record.metrics["bbox_AP"] is None and run.best is None and run.checkpoint.exists()


def test_two_runs_do_not_write_into_one_folder(zoo, tmp_path):
    args = (RETINANET, "--data-root", zoo, "--batch-size", 4, "--no-validate", "--steps", 500, "--log-interval", 1,
            "--output", tmp_path / "run")
    first = command(*args, "--workers", 1)
    log, deadline = tmp_path / "run/log.jsonl", time.monotonic() + 120
    while first.poll() is None and not (log.exists() and log.read_text().count("\n") >= 2):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for options in (dict(resume=True), dict(overwrite=True), {}):
        with pytest.raises(UsageError, match="Another run is writing into .*run: wait"):
            quick(RETINANET, zoo, tmp_path / "run", **options)
    os.kill(first.pid, signal.SIGHUP)  # as a terminal does that is closed
    assert first.wait(60) == 130 and "Traceback" not in first.stderr.read()
    [saved] = (tmp_path / "run/checkpoints").glob("*.pt")
    assert int(saved.stem.removeprefix("step_")) == losses(tmp_path / "run")[-1]["step"]
    quick(RETINANET, zoo, tmp_path / "run", steps=1, overwrite=True, validate=False)
    with pytest.raises(UsageError, match="holds a run"):  # the lock is gone, after errors too
        quick(RETINANET, zoo, tmp_path / "run")
    assert quick(RETINANET, zoo, tmp_path / "run", steps=1, resume=True, validate=False).record


def test_a_folder_that_is_removed_is_told(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("detcore.engine.train.peak_memory_gb", lambda: shutil.rmtree(tmp_path / "run") or {})
    with pytest.raises(DetcoreError, match="run was removed or moved while the run was writing into it"):
        quick(RETINANET, zoo, tmp_path / "run", validate=False)


def test_files_are_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        Checkpoints(tmp_path, 1).save(1, {})
        save_weights(tmp_path / "x.safetensors", torch.nn.Linear(1, 1), {})
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o640}
