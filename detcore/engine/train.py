"""Training: a recipe, a data set, and as many processes as there are.

What is random in a step (samples, dropout) is drawn from (seed, step, process), what is random in the data from
(seed, epoch, place). So a run that was killed goes on from its last checkpoint with the very losses it would have had.
"""
from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn

from detcore.data.coco import CocoDataset
from detcore.data.loader import Batch, build_loader
from detcore.engine.checkpoint import Checkpoints
from detcore.engine.common import (
    TRAIN,
    VAL,
    Interruption,
    describe,
    load_data,
    loading_processes,
    output_folder,
    pick_device,
)
from detcore.engine.evaluate import detect, flat, score
from detcore.engine.journal import Journal, Meter
from detcore.errors import DetcoreError, UsageError
from detcore.records import Clock, DataInfo, Record, peak_memory_gb, read_record
from detcore.structures import Images, Target
from detcore.zoo.create import create_model
from detcore.zoo.entries import ModelEntry
from detcore.zoo.models import get_model_entry
from detcore.zoo.recipes import SGD, Recipe, parameter_groups
from detcore.zoo.weights import load_backbone, save_weights


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


def train(name: str, data_root: str | Path, *, profile: str = "pocket", output: str | Path | None = None,
          steps: int | None = None, seconds: float | None = None, seed: int = 0, device: str | None = None,
          gpus: int = 1, resume: bool = False, overwrite: bool = True, weights: str | Path | None = None,
          proposals: str | Path | None = None, batch_size: int | None = None, workers: int | None = None,
          mixed_precision: str | None = None, clip_norm: float | None = None, sync_bn: bool = False,
          validate: bool = True, log_interval: int | None = None, checkpoint_interval: int | None = None, keep: int = 2,
          measure: tuple[int, int] = (100, 500), progress: bool = True) -> TrainResult:
    """Train a model of the zoo by its recipe, on a data set in COCO's layout.

    The output folder gets `model.safetensors` (the last weights), `best.safetensors`, `record.json`, `log.jsonl`,
    `tensorboard/` and `checkpoints/`. Ctrl-C ends the step, writes a checkpoint, and raises KeyboardInterrupt.

    Args:
        output: folder; "runs/NAME.PROFILE" by default.
        steps: optimiser steps; the recipe's schedule is compressed or stretched to them.
        seconds: stop after so much time, wherever the schedule is.
        device: "cpu" or "cuda"; the GPU where there is one by default.
        gpus: processes to start, a GPU each (or on the CPU, where that is the device). Under torchrun or `accelerate
            launch`, which start them, it is not used.
        resume: go on from the newest checkpoint in the folder, if there is one.
        overwrite: start anew where the folder holds a run; False refuses.
        weights: where to start from: None for the profile's pretrained backbone, "random", "published", or a file.
        proposals: file of precomputed proposals, for the models that take them.
        batch_size: images a step and process; the learning rate follows the total.
        mixed_precision: "no", "bf16" or "fp16"; the recipe's choice by default (fp16 where it has any, on a GPU).
        clip_norm: in place of the recipe's.
        sync_bn: batch norm over all processes.
        validate: evaluate where the recipe says, and at the end.
        log_interval, checkpoint_interval: steps between lines of the log, and between checkpoints (of which `keep`
            are kept).
        measure: the steps whose mean time is the record's speed; the second half of a run that is too short for it.

    Raises:
        DetcoreError: in one sentence, whatever can be known to be wrong before training; then a loss that is not
            finite, and a full disk.
    """
    options = dict(locals())
    if gpus > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(gpus, options)
    entry = get_model_entry(name)
    recipe = entry.recipe_for(profile)
    where = pick_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    precision = _precision(mixed_precision, recipe, where)
    folder = output_folder(output or f"runs/{name}.{profile}")
    data = load_data(data_root, recipe, TRAIN, training=True, proposals=proposals)
    val_data = load_data(data_root, recipe, VAL, proposals=proposals) if validate else None
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    if checkpoints.paths() and not resume and not overwrite:
        raise UsageError(f"{folder} holds a run: go on with it (resume), start anew over it (overwrite), or name another "
                         f"folder.")

    accelerator = _accelerator(where, precision)
    rank, world = accelerator.process_index, accelerator.num_processes
    torch.manual_seed(seed)
    model = starting_model(entry, profile, weights, len(data.class_names))
    if sync_bn and world > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    batch_size = batch_size or recipe.batch_per_gpu
    lr = recipe.optimizer.lr * batch_size * world / recipe.batch_size
    clip_norm = recipe.clip_norm if clip_norm is None else clip_norm
    model.to(where)
    module, optimizer = accelerator.prepare(_Losses(model), build_optimizer(model, recipe, lr))
    rates = [group["lr"] for group in optimizer.param_groups]

    per_epoch = -(-len(data) * recipe.repeat // (batch_size * world))
    length = recipe.iterations or (recipe.epochs or 1) * per_epoch
    steps = length if steps is None else steps
    every = recipe.val_interval * (per_epoch if recipe.epochs else 1)
    val_interval = max(every * steps // length, 1)
    log_interval = log_interval or max(min(50, steps // 20), 1)
    checkpoint_interval = checkpoint_interval or max(min(per_epoch, steps // 4), 1)
    told = dict(seed=seed, steps=steps, batch_size=batch_size, processes=world, precision=precision)

    meta = dict(model=name, profile=profile, classes=list(data.class_names))
    best_path, last_path = folder / "best.safetensors", folder / "model.safetensors"
    start, elapsed, best, meter = 0, 0.0, -1.0, Meter()
    accelerator.wait_for_everyone()
    state = checkpoints.load() if resume else None
    if state is not None:
        if (different := {k for k, v in told.items() if state["run"][k] != v}) or state["meta"]["model"] != name:
            raise UsageError(f"The run in {folder} cannot go on with another {' or '.join(sorted(different)) or 'model'}.")
        start, elapsed, best, meter = state["step"], state["elapsed"], state["best"], Meter(state["window"])
        model.load_state_dict(state["state_dict"])
        optimizer.load_state_dict(state["optimizer"])
        if accelerator.scaler is not None and state["scaler"]:
            accelerator.scaler.load_state_dict(state["scaler"])
        if start >= steps and (folder / "record.json").exists():
            return TrainResult(last_path, best_path if best_path.exists() else None, read_record(folder / "record.json"),
                               Journal(folder, start, steps, write=False, progress=False, title=name).lines)
    elif accelerator.is_main_process:
        _clear(folder, checkpoints)
    accelerator.wait_for_everyone()

    journal = Journal(folder, start, steps, write=accelerator.is_main_process, progress=progress, title=name)
    clock, durations, data_time, done, stopped = Clock(where), [], 0.0, start, False
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def save() -> None:
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
            checkpoints.save(done, dict(
                meta=meta, state_dict=model.state_dict(), optimizer=optimizer.state_dict(), scaler=scaler, run=told,
                step=done, elapsed=elapsed + clock(), best=best, window=meter.window))

    try:
        with Interruption() as interruption:
            batches = _batches(data, recipe, batch_size, start, steps, seed, rank, world, where,
                               loading_processes(where) if workers is None else workers)
            began = time.perf_counter()
            for step, batch in batches:
                fetched = time.perf_counter()
                # One more than numpy's limit wraps around: four bytes of a hash of the three numbers.
                set_seed(int(np.random.SeedSequence([seed, rank, step]).generate_state(1)[0]))
                factor = recipe.schedule.factor(step * length // steps, per_epoch)
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate * factor
                batch = batch.to(where, non_blocking=True)
                losses = module(recipe.preprocess(batch.images, batch.sizes), batch.targets)
                total: Tensor = sum(v for k, v in losses.items() if "loss" in k)  # type: ignore[assignment]
                accelerator.backward(total)
                if clip_norm:
                    losses["grad_norm"] = accelerator.clip_grad_norm_(module.parameters(), clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                meter.add(step, losses | {"loss": total}, [meta.image_id for meta in batch.metas])
                done = step + 1
                durations.append((step, time.perf_counter() - began))
                data_time += fetched - began
                journal.advance()

                log_now = done % log_interval == 0 or done == steps
                if log_now:
                    values = _over_processes(meter.means(), accelerator)
                    recent = [d for _, d in durations[-log_interval:]]
                    journal.write(done, dict(
                        epoch=round(done / per_epoch, 3), lr=lr * factor, **values, seconds=sum(recent) / len(recent),
                        loading_seconds=data_time / len(recent), **peak_memory_gb()))
                    data_time = 0.0
                # One process sees an interruption at once; several agree where they meet anyway.
                asked = interruption.wanted or (seconds is not None and elapsed + clock() >= seconds)
                stopped = asked if world == 1 else log_now and any(gather_object([asked]))
                due = done % checkpoint_interval == 0 or done == steps or stopped
                if due or done % val_interval == 0:
                    meter.flush()
                if val_data is not None and (done % val_interval == 0 or done == steps) and not stopped:
                    pause = time.perf_counter()
                    values = _validate(model, val_data, recipe, batch_size, workers, accelerator, journal, done, progress)
                    if (value := next(iter(values.values()), None) or 0.0) > best:
                        best = value
                        if accelerator.is_main_process:
                            save_weights(best_path, model, meta)
                    clock.start += time.perf_counter() - pause
                if due:
                    save()
                if stopped:
                    break
                began = time.perf_counter()
            if interruption.wanted:
                raise KeyboardInterrupt
    except OSError as error:
        raise DetcoreError(f"The run in {folder} cannot be written: {error.strerror}; resume it once there is "
                           f"room.") from error
    finally:
        journal.close()
    duration = elapsed + clock()
    record = Record(
        kind="train", model=name, profile=profile, data=describe(data), seed=seed, duration_s=duration,
        parameters=dict(told, steps_done=done, learning_rate=lr, device=where.type, images_a_step=batch_size * world,
                        weights=None if weights is None else Path(weights).name, recipe=_plain(recipe)),
        metrics={n: v for n, v in journal.lines[-1].items() if n.startswith(recipe.metric)},
        speed=_speed([d for _, d in durations], start, measure, batch_size * world), memory=peak_memory_gb(),
        curves=_curves(journal.lines))
    if accelerator.is_main_process:
        save_weights(last_path, model, meta)
        record.write(folder / "record.json")
    accelerator.wait_for_everyone()
    return TrainResult(last_path, best_path if best >= 0 else None, record, journal.lines)
