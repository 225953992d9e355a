"""Training: a recipe, a data set, and as many processes as there are.

What is random in a step (samples, dropout) is drawn from (seed, process, step), what is random in the data from
(seed, epoch, place). So a run that was killed goes on from its last checkpoint with the very losses it would have had.
"""
from __future__ import annotations

import errno
import math
import os
import pickle
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn

from detcore.data.loader import Batch, build_loader
from detcore.data.options import DataOptions
from detcore.data.sampling import epoch_images
from detcore.detectors import Detector
from detcore.engine.common import (
    check_stuff,
    describe,
    load_data,
    loading_processes,
    match_classes,
    match_stuff,
    pick_device,
    weights_classes,
)
from detcore.engine.evaluate import detect, flat
from detcore.engine.journal import Journal, Meter, read_log
from detcore.engine.launch import launch
from detcore.engine.scoring import score, watchers
from detcore.errors import DetcoreError, UsageError
from detcore.options import builder_options, check_options, forwards
from detcore.ranges import checked
from detcore.recipe import SGD, Adam, AdamW, Recipe, parameter_groups
from detcore.records import Record, peak_memory_gb, read_record
from detcore.runs import Checkpoints, Interruption, alone, code_digest, output_folder, release, removed, take
from detcore.weights import load_backbone, read_checkpoint, save_weights, weights_file
from detcore.zoo.create import Model, Resolved, resolve

PRECISIONS = ("no", "bf16", "fp16")
WEIGHTS, BEST, RECORD = "model.safetensors", "best.safetensors", "record.json"  # of a run, in its folder


@dataclass(frozen=True)
class TrainResult:
    """What a training leaves behind.

    Attributes:
        checkpoint: the weights at the end, for `create_model` or `evaluate`.
        best: the weights of the best evaluation on the way, None where there was none.
        record: the record of the run; its curves are those of the log.
        log: the lines of `log.jsonl`.
    """

    checkpoint: Path
    best: Path | None
    record: Record = field(repr=False)
    log: list[dict[str, Any]] = field(repr=False)


# What a checkpoint holds; `best` is below 0, or None, where nothing has been evaluated.
FORM = dict(meta=dict, run=dict, step=int, elapsed=float, best=(float, type(None)), window=dict, losses=list,
            state_dict=dict, aside=dict, optimizer=dict, scaler=dict)


@checked()
@alone
@forwards(DataOptions)
def train(model: Model, data_root: str | Path, *, recipe: Recipe | None = None, profile: str | None = None,
          output: str | Path | None = None, steps: int | None = None, seconds: float | None = None, seed: int = 0,
          device: str | None = None, gpus: int = 1, resume: bool = False, overwrite: bool = False,
          weights: str | Path | None = None, proposals: str | Path | None = None, batch_size: int | None = None,
          workers: int | None = None, mixed_precision: str | None = None, clip_norm: float | None = None,
          sync_bn: bool = False, validate: bool = True, log_interval: int | None = None,
          checkpoint_interval: int | None = None, keep: int = 2, measure: tuple[int, int] = (100, 500),
          progress: bool = True, **data_options: Any) -> TrainResult:
    """Train a model by its recipe, on a data set in any of the layouts.

    The output folder gets `model.safetensors` (the last weights), `best.safetensors`, `record.json`, `log.jsonl`,
    `tensorboard/` and `checkpoints/`. Ctrl-C ends the step, writes a checkpoint, and raises KeyboardInterrupt.

    Args:
        model: a name of the zoo, a `ModelEntry`, or a `Detector`, which is trained in place and needs a `recipe`.
        recipe: in place of the model's own.
        profile: "pocket" or "coco", which is the default with published weights.
        output: folder; "runs/NAME.PROFILE" by default.
        steps: optimiser steps; the recipe's schedule is compressed or stretched to them.
        seconds: stop after so much time, wherever the schedule is.
        device: "cpu" or "cuda"; the GPU where there is one by default.
        gpus: processes to start, a GPU each, or on the CPU; torchrun and `accelerate launch` start their own.
        resume: go on from the newest checkpoint in the folder, if there is one; a run that is over is left as it is.
            Only the library's code may have changed since.
        overwrite: remove what the folder holds of a run that is not to be resumed, or cannot be, and start anew.
        weights: where to start from: None for the profile's pretrained backbone (a `Detector`: as it is), "random",
            a file, or "published", also for data with other classes: what depends on their number starts anew.
        proposals: file of precomputed proposals, for the models that need them.
        batch_size: images a step and process; the learning rate follows the total.
        workers: processes that load images, of each process that trains.
        mixed_precision: "no", "bf16" or "fp16"; by default fp16 on a GPU where the recipe has mixed precision.
        clip_norm: L2 norm of the gradient at most, in place of the recipe's; 0 for no limit.
        sync_bn: statistics of batch norm over all processes.
        validate: evaluate where the recipe says, and at the end.
        log_interval, checkpoint_interval: steps between lines of the log, and between checkpoints.
        keep: how many checkpoints stay.
        measure: the steps whose mean time is the record's speed; the second half of a run too short for them.
        data_options: those of `detcore.data.options.DataOptions`, such as `holdout`, `train_annotations` and `rename`.

    Raises:
        UsageError: a wrong name or option; a run in the folder that is neither to be resumed nor overwritten, or that
            cannot be resumed, because its settings or data have changed.
        DetcoreError: whatever else is wrong before training; then a loss that is not finite, or a full disk.
    """
    options = {k: v for k, v in locals().items() if k not in ("model", "data_root", "gpus", "data_options")}
    check_options(train, data_options, "Training")
    options |= data_options
    named = DataOptions(**data_options)

    # What to train, on what, where; everything that can be wrong shows here.
    if measure[0] >= measure[1]:
        raise UsageError(f"The steps to measure end after they begin, unlike {measure[0]} to {measure[1]}.")
    subject = resolve(model, recipe=recipe, profile=profile, weights=weights)
    recipe, started = subject.recipe, "WORLD_SIZE" in os.environ
    where = pick_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if started else gpus)
    precision = pick_precision(mixed_precision, recipe, where)
    if sync_bn and where.type == "cpu":
        raise UsageError("Synchronised batch norm needs GPUs.")
    folder = output_folder(output or f"runs/{subject.name}.{subject.profile}")
    if int(os.environ.get("RANK", 0)) == 0:
        take(folder)
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    protect(folder, checkpoints, resume, overwrite)
    data = load_data(data_root, recipe, "train", training=True, proposals=proposals, options=named)
    match_classes(data, weights_classes(subject, weights, data), "the model's weights")
    val_data = load_data(data_root, recipe, proposals=proposals, options=named) if validate else None
    if val_data is not None:
        match_classes(val_data, data.class_names, f"the training data ({data.annotation_file})")
        match_stuff(val_data, None if data.panoptic is None else data.panoptic.stuff, "the training data")
    stuff = None if data.panoptic is None else data.panoptic.stuff
    detector = starting_model(subject, weights, len(data.class_names), seed, None if stuff is None else len(stuff))

    # Several processes: each of them runs this function, and its environment says which one it is.
    if gpus > 1 and not started:
        del data, val_data
        try:
            pickle.dumps(model)
        except Exception as error:  # whatever a user's object raises
            raise UsageError(f"{subject.name} cannot be sent to other processes ({error}): define its classes and its "
                             f"builder in a module.") from error
        release()
        launch(train, gpus, where, model, data_root, **options | dict(output=folder))
        if subject.detector is not None:
            detector.load_state_dict(read_checkpoint(folder / WEIGHTS).state)
        return finished(folder)

    # Model and optimiser
    accelerator = make_accelerator(where, precision)
    where, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
    workers = loading_processes(where, workers)
    batch_size = batch_size or recipe.batch_per_gpu
    clip_norm = recipe.clip_norm if clip_norm is None else clip_norm
    # The published rate is for the published number of images a step.
    lr = recipe.optimizer.lr * batch_size * world / recipe.batch_size
    if sync_bn and world > 1:
        detector = nn.SyncBatchNorm.convert_sync_batchnorm(detector)
    detector.to(where).train()
    plain_optimizer = build_optimizer(detector, recipe.optimizer, lr)
    base_rates = [group["lr"] for group in plain_optimizer.param_groups]

    # How long, and what happens how often
    shown = len(epoch_images(data, recipe.repeat, recipe.sampling))
    per_epoch = -(-shown // (batch_size * world))
    length = recipe.iterations or (recipe.epochs or 1) * per_epoch
    steps = length if steps is None else steps
    val_interval = max(recipe.val_interval * (per_epoch if recipe.epochs else 1) * steps // length, 1)
    log_interval = log_interval or max(min(50, steps // 20), 1)
    checkpoint_interval = checkpoint_interval or max(min(per_epoch, steps // 4), 1)

    # What a run has to share with a checkpoint to go on from it; all but the code.
    meta = dict(model=subject.name, profile=subject.profile, classes=list(data.class_names),
                category_ids=list(data.category_ids), **({} if stuff is None else dict(stuff=list(stuff))))
    settings = dict(seed=seed, steps=steps, batch_size=batch_size, processes=world,
                    precision=accelerator.mixed_precision, clip_norm=clip_norm)
    told = settings | dict(sync_bn=sync_bn, weights=None if weights is None else weights_file(str(weights)),
                           data=describe(data).fingerprint, code=code_digest(), **described(subject))

    step, elapsed, meter, pending = 0, 0.0, Meter(), False  # pending: the evaluation at `step` is still to be done
    best: float | None = -1.0  # of the evaluations so far
    state = checkpoints.load(FORM) if resume else None
    if state is not None and (changed := changes(told | meta, state["run"] | state["meta"])):
        if not overwrite:
            raise UsageError(f"The run in {folder} cannot go on, because of what has changed: {', '.join(changed)}. "
                             f"Set it back, name another folder (output), or start anew over it (overwrite).")
        state = None
    if state is None:
        accelerator.wait_for_everyone()  # all have looked for checkpoints
        if accelerator.is_main_process:
            clear(folder, checkpoints)
        accelerator.wait_for_everyone()
    else:
        if state["run"].get("code") != told["code"] and accelerator.is_main_process:
            warnings.warn(f"The library's code has changed since the run in {folder} began; it goes on.", stacklevel=2)
        load_state(state, detector, plain_optimizer, accelerator, folder)
        step, elapsed, best = state["step"], state["elapsed"], state["best"]
        meter = Meter(state["window"], state["losses"])
        pending = val_data is not None and not state.get("validated", True)

    if step == steps and (folder / RECORD).exists():
        return finished(folder)

    def loader(epoch: int, start: int) -> Iterable[Batch]:
        return build_loader(data, batch_size, preprocess=recipe.preprocess, training=True, workers=workers, seed=seed,
                            epoch=epoch, start=start, repeat=recipe.repeat, sampling=recipe.sampling,
                            aspect_grouping=recipe.aspect_grouping, rank=rank, world_size=world,
                            pin_memory=where.type == "cuda")

    def save(validated: bool) -> None:
        if accelerator.is_main_process:
            checkpoints.save(step, dict(
                meta=meta, run=told, step=step, elapsed=elapsed, best=best, validated=validated, window=meter.window,
                losses=meter.losses, state_dict=detector.state_dict(), aside=buffers_aside(detector),
                optimizer=optimizer.state_dict(),
                scaler={} if accelerator.scaler is None else accelerator.scaler.state_dict()))

    def evaluated() -> float | None:
        """The best metric so far, with that of the weights as they are, which are kept if it is theirs."""
        assert val_data is not None
        watched, found = watchers(val_data, recipe.metric), best
        detections = detect(detector, val_data, recipe.preprocess, batch_size=batch_size or 1, workers=workers,
                            rank=rank, world_size=world, progress=progress, watched=watched)
        if accelerator.is_main_process:
            results = score(detections, val_data, recipe.metric, watched=watched, progress=progress)
            journal.write(step, flat(results))
            first = next(iter(results.values()))
            value = first.headline if any(v is not None for v in first.metrics.values()) else None  # nothing to count
            if value is not None and math.isfinite(value) and value > (-1.0 if best is None else best):
                found = value
                save_weights(folder / BEST, detector, meta)
        accelerator.wait_for_everyone()
        return found

    durations: dict[int, float] = {}  # seconds of each step
    loading: list[float] = []  # seconds of them that were spent waiting for data, since the last log line
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with (disk_errors(folder), Interruption() as interruption,
          prepared(accelerator, detector, plain_optimizer) as (module, optimizer),
          closing(Journal(folder, step, steps, write=accelerator.is_main_process, progress=progress,
                          title=subject.name, pending=pending)) as journal):
        if pending:
            best = evaluated()
            save(validated=True)
        began = time.perf_counter()
        for batch in batches(loader, step, steps, per_epoch):
            loading.append(time.perf_counter() - began)

            # The schedule is scaled to the run's length.
            share = recipe.schedule.factor(step * length // steps, per_epoch)
            for group, base_rate in zip(optimizer.param_groups, base_rates):
                group["lr"] = base_rate * share

            # Forward, backward, step
            set_seed(int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0]))
            batch = batch.to(where, non_blocking=True)
            losses = module(recipe.preprocess(batch.images, batch.sizes, training=True), batch.targets)
            loss = torch.stack(list(losses.values())).sum()
            accelerator.backward(loss)
            others = {"loss": loss, **detector.diagnostics}
            if clip_norm:
                others["grad_norm"] = accelerator.clip_grad_norm_(module.parameters(), clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            meter.add(step, losses, others, [m.image_id for m in batch.metas])
            step += 1
            journal.advance()
            durations[step] = time.perf_counter() - began
            elapsed += durations[step]

            # Log: means since the last line, over all processes
            log_now = step % log_interval == 0 or step == steps
            if log_now:
                values = meter.means()
                if world > 1:
                    means = torch.tensor(list(values.values()), dtype=torch.float64, device=where)
                    values = dict(zip(values, accelerator.reduce(means, "mean").tolist()))
                times = dict(seconds=round(fmean(list(durations.values())[-len(loading):]), 4),
                             loading_seconds=round(fmean(loading), 4))
                journal.write(step, dict(epoch=round(step / per_epoch, 3), lr=optimizer.param_groups[0]["lr"], **values,
                                         **times, **peak_memory_gb()), losses=["loss", *meter.losses])
                loading = []

            # One process stops at once; several agree where they meet anyway.
            stop = interruption.requested or (seconds is not None and elapsed >= seconds)
            if world > 1:
                stop = log_now and any(gather_object([stop]))

            # Checkpoint; then evaluate, and keep the weights where they are the best so far
            evaluate_now = val_data is not None and not stop and (step == steps or step % val_interval == 0)
            save_now = stop or step == steps or step % checkpoint_interval == 0
            if evaluate_now or save_now:
                meter.flush()
                save(validated=not evaluate_now)
            if evaluate_now:
                best = evaluated()
                save(validated=True)
            if stop:
                break
            began = time.perf_counter()
        if interruption.requested:
            raise KeyboardInterrupt

    # The weights and the record
    peaks = gather_object([peak_memory_gb()]) if world > 1 else [peak_memory_gb()]
    if accelerator.is_main_process:
        save_weights(folder / WEIGHTS, detector, meta)
        lines = read_log(folder)
        logged, metrics = [line for line in lines if "loss" in line], [line for line in lines if "loss" not in line]
        Record(
            kind="train", model=subject.name, profile=subject.profile, data=describe(data), seed=seed,
            duration_s=elapsed, speed=speed(durations, measure, batch_size * world),
            memory={name: max(peak[name] for peak in peaks) for name in peaks[0]},
            parameters=dict(settings, steps_done=step, learning_rate=lr, weights=told["weights"], **named.told(),
                            optimizer=type(recipe.optimizer).__name__, images=batch_size * world, device=where.type),
            metrics={n: v for n, v in metrics[-1].items() if n != "step"} if metrics else {},
            curves={n: [line.get(n) for line in logged] for n in ("step", "lr", *meter.losses, "loss")},
        ).write(folder / RECORD)
    accelerator.wait_for_everyone()
    return finished(folder)


# Before the loop

def protect(folder: Path, checkpoints: Checkpoints, resume: bool, overwrite: bool) -> None:
    """Raise a sentence where a training would remove what an earlier one left in the folder, unless it is asked to."""
    results = [name for name in (WEIGHTS, BEST, RECORD) if (folder / name).exists()]
    if overwrite or not (results or checkpoints.paths()) or (resume and checkpoints.paths()):
        return
    if resume:
        raise UsageError(f"{folder} holds {' and '.join(results)}, but no checkpoint to go on from: name another "
                         f"folder (output), or write over it (overwrite).")
    raise UsageError(f"{folder} holds a run: go on with it (resume), write over it (overwrite), or name another "
                     f"folder (output).")


def clear(folder: Path, checkpoints: Checkpoints) -> None:
    """Remove what an earlier run left in the folder."""
    for path in (*checkpoints.paths(), folder / WEIGHTS, folder / BEST, folder / RECORD, folder / "log.jsonl",
                 *(folder / "tensorboard").glob("events.*")):
        path.unlink(missing_ok=True)


def pick_precision(asked: str | None, recipe: Recipe, device: torch.device) -> str:
    """The precision to train in; raises a UsageError if there is none of that name, or the device cannot do it."""
    if asked is None:
        return "fp16" if recipe.amp and device.type == "cuda" else "no"
    if asked not in PRECISIONS:
        raise UsageError(f"There is no mixed precision {asked!r}: it is one of {', '.join(PRECISIONS)}.")
    if asked == "fp16" and device.type == "cpu":
        raise UsageError("Mixed precision fp16 needs a GPU; on the CPU there is bf16.")
    return asked


def make_accelerator(device: torch.device, precision: str = "no") -> Accelerator:
    """Accelerate's view of the processes; of what an earlier run of this process set up, nothing stays."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device.type == "cpu", mixed_precision=precision)


def starting_model(subject: Resolved, weights: str | Path | None, num_classes: int, seed: int = 0,
                   stuff: int | None = None) -> Detector:
    """The model that training starts from, with so many classes of things and stuff; see `train` for `weights`."""
    torch.manual_seed(seed)
    classes = None if "proposal" in subject.recipe.metric else num_classes  # proposals have no class
    counted = subject.entry is not None and "stuff" in builder_options(subject.entry.builder)
    options = dict(stuff=stuff) if counted and stuff is not None else {}
    detector = subject.build(classes, weights=None if weights == "random" else weights, **options)
    check_stuff(detector, stuff)
    if weights is None and (source := subject.backbone_weights):
        load_backbone(detector, source)
    return detector


def build_optimizer(model: nn.Module, settings: SGD | Adam | AdamW, lr: float) -> torch.optim.Optimizer:
    """The recipe's optimiser, with a base rate of `lr`."""
    groups = parameter_groups(model, settings, lr)
    if isinstance(settings, SGD):
        return torch.optim.SGD(groups, lr, settings.momentum)
    return (torch.optim.Adam if isinstance(settings, Adam) else torch.optim.AdamW)(groups, lr)


# Going on from a checkpoint

def described(subject: Resolved) -> dict[str, str]:
    """What decides how a model is built and trained, by name, as text that can be compared."""
    told = {f"the recipe's {f.name}": repr(getattr(subject.recipe, f.name)) for f in fields(subject.recipe)}
    if subject.entry is not None:
        told["the model's options"] = repr(dict(subject.entry.options))
    return {name: re.sub(r" at 0x[0-9a-f]+", "", text) for name, text in told.items()}  # addresses say nothing


def changes(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs between two runs' descriptions, the library's code left out, as the parts of a sentence."""
    names = {"data": "the data", "classes": "the classes", "category_ids": "the category ids"}
    return [names.get(name, name) if name in names or name.startswith("the ")
            else f"{name} ({theirs.get(name)}, now {value})"
            for name, value in ours.items() if name != "code" and theirs.get(name) != value]


def buffers_aside(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are no part of the state dict, by name: what a method has seen in training so far."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in model.named_buffers() if name not in state}


def load_state(state: Mapping[str, Any], detector: nn.Module, optimizer: Any, accelerator: Accelerator,
               folder: Path) -> None:
    """Bring model, optimiser and loss scale to where a checkpoint has them; a UsageError if it is of another model."""
    built = [{n: v for n, v in group.items() if n not in ("params", "lr")} for group in optimizer.param_groups]
    try:
        detector.load_state_dict(state["state_dict"])
        buffers = dict(detector.named_buffers())
        for name, value in state["aside"].items():
            buffers[name].copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        for group, before in zip(optimizer.param_groups, built, strict=True):
            if any(group[name] != value for name, value in before.items()):
                raise ValueError("other settings of the optimiser")
        for parameter, kept in optimizer.state.items():
            if any(isinstance(v, Tensor) and v.dim() and v.shape != parameter.shape or isinstance(v, (str, dict, list))
                   for v in kept.values()):
                raise ValueError("other shapes in the optimiser")
        Meter(state["window"], state["losses"]).means()
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UsageError(f"The run in {folder} cannot go on, because the model has changed, or its newest checkpoint "
                         "is damaged: name another folder (output), start anew over it (overwrite, without resume), or "
                         "remove that checkpoint.") from error


# In the loop and after it

@contextmanager
def prepared(accelerator: Accelerator, detector: Detector, optimizer: torch.optim.Optimizer) -> Iterator[Any]:
    """Accelerate's versions of a model and its optimiser; afterwards the model has its own `forward` again."""
    own = vars(detector).get("forward")
    try:
        yield accelerator.prepare(detector, optimizer)
    finally:
        for name in ("forward", "_original_forward"):
            vars(detector).pop(name, None)
        if own is not None:
            detector.forward = own  # type: ignore[method-assign]


def batches(loader: Callable[[int, int], Iterable[Batch]], step: int, steps: int, per_epoch: int) -> Iterator[Batch]:
    """The batches of the steps from `step` on, epoch after epoch; `loader` takes an epoch and the steps to skip."""
    while step < steps:
        for batch in loader(step // per_epoch, step % per_epoch):
            yield batch
            step += 1
            if step == steps:
                return


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turns the system's errors about files into a sentence."""
    try:
        yield
    except OSError as error:
        if not folder.is_dir():
            raise removed(folder) from error
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise DetcoreError(f"The run in {folder} cannot be written: {error.strerror or error}; it can be resumed once "
                           f"{'there is room' if full else 'that is mended'}.") from error


def speed(durations: Mapping[int, float], measure: tuple[int, int], images: int) -> dict[str, float]:
    """Seconds a step and images a second, over the steps to be measured, or the second half of a run without them."""
    window = [seconds for step, seconds in durations.items() if measure[0] < step <= measure[1]]
    window = window or list(durations.values())[len(durations) // 2:]
    if not window:  # nothing was left to do
        return {}
    return dict(training_step_s=fmean(window), training_images_per_s=images / fmean(window))


def finished(folder: Path) -> TrainResult:
    """The result of the run that a folder holds."""
    best = folder / BEST
    return TrainResult(folder / WEIGHTS, best if best.exists() else None, read_record(folder / RECORD),
                       read_log(folder))
