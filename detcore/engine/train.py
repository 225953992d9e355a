"""Training: a recipe, a data set, and as many processes as there are.

What is random in a step (samples, dropout) is drawn from (seed, process, step), what is random in the data from
(seed, epoch, place). So a run that was killed goes on from its last checkpoint with the very losses it would have had.
"""
from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from torch import Tensor, nn

from detcore.data.dataset import Dataset
from detcore.data.loader import Batch, build_loader
from detcore.data.sampling import epoch_images
from detcore.engine.checkpoint import Checkpoints, code_digest
from detcore.engine.common import (
    TRAIN,
    VAL,
    Interruption,
    describe,
    load_data,
    loading_processes,
    output_folder,
    pick_device,
    pick_profile,
)
from detcore.engine.evaluate import detect, flat
from detcore.engine.journal import Journal, Meter, read_log
from detcore.engine.launch import launch
from detcore.engine.scoring import score, watchers
from detcore.errors import DetcoreError, UsageError
from detcore.records import Record, peak_memory_gb, read_record
from detcore.structures import Images, Target
from detcore.zoo.create import create_model
from detcore.zoo.entries import ModelEntry
from detcore.zoo.models import get_model_entry
from detcore.zoo.recipes import SGD, Adam, AdamW, Recipe, parameter_groups
from detcore.zoo.weights import load_backbone, save_weights

PRECISIONS = ("no", "bf16", "fp16")


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


def train(name: str, data_root: str | Path, *, profile: str | None = None, output: str | Path | None = None,
          steps: int | None = None, seconds: float | None = None, seed: int = 0, device: str | None = None,
          gpus: int = 1, resume: bool = False, overwrite: bool = True, weights: str | Path | None = None,
          proposals: str | Path | None = None, batch_size: int | None = None, workers: int | None = None,
          mixed_precision: str | None = None, clip_norm: float | None = None, sync_bn: bool = False,
          validate: bool = True, log_interval: int | None = None, checkpoint_interval: int | None = None, keep: int = 2,
          measure: tuple[int, int] = (100, 500), progress: bool = True) -> TrainResult:
    """Train a model of the zoo by its recipe, on a data set in any of the layouts.

    With `weights="published"` the data may have other classes than COCO: what depends on their number starts anew.

    The output folder gets `model.safetensors` (the last weights), `best.safetensors`, `record.json`, `log.jsonl`,
    `tensorboard/` and `checkpoints/`. Ctrl-C ends the step, writes a checkpoint, and raises KeyboardInterrupt.

    Args:
        profile: "pocket" or "coco", which is the default with published weights.
        output: folder; "runs/NAME.PROFILE" by default.
        steps: optimiser steps; the recipe's schedule is compressed or stretched to them.
        seconds: stop after so much time, wherever the schedule is.
        device: "cpu" or "cuda"; the GPU where there is one by default.
        gpus: processes to start, a GPU each (or on the CPU, where that is the device). Not used under torchrun or
            `accelerate launch`, which start processes of their own.
        resume: go on from the newest checkpoint in the folder, if there is one; a run that is over is left as it is.
        overwrite: start anew where the folder holds a run that is not to be resumed, or cannot be: of other settings,
            data or code. False refuses; then code may differ.
        weights: where to start from: None for the profile's pretrained backbone, "random", "published", or a file.
        proposals: file of precomputed proposals, for the models that take them.
        batch_size: images a step and process; the learning rate follows the total.
        mixed_precision: "no", "bf16" or "fp16"; by default fp16 on a GPU where the recipe has mixed precision.
        clip_norm: in place of the recipe's.
        sync_bn: statistics of batch norm over all processes.
        validate: evaluate where the recipe says, and at the end.
        log_interval, checkpoint_interval: steps between lines of the log, and between checkpoints (of which the last
            `keep` stay).
        measure: the steps whose mean time is the record's speed; the second half of a run too short for them.

    Raises:
        DetcoreError: in one sentence, before training whatever can be known to be wrong; then a loss that is not
            finite, or a full disk.
    """
    profile = pick_profile(profile, weights)
    options = {k: v for k, v in locals().items() if k not in ("name", "data_root", "gpus")}
    entry = get_model_entry(name)
    recipe = entry.recipe_for(profile)
    started = "WORLD_SIZE" in os.environ
    where = pick_device(device, int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if started else gpus)
    precision = pick_precision(mixed_precision, recipe, where)
    if sync_bn and where.type == "cpu":
        raise UsageError("Synchronised batch norm needs GPUs.")
    folder = output_folder(output or f"runs/{name}.{profile}")
    checkpoints = Checkpoints(folder / "checkpoints", keep)
    if checkpoints.paths() and not resume and not overwrite:
        raise UsageError(f"{folder} holds a run: go on with it (resume), write over it (overwrite), or name another "
                         f"folder.")
    data = load_data(data_root, recipe, TRAIN, training=True, proposals=proposals)
    val_data = load_data(data_root, recipe, VAL, proposals=proposals) if validate else None
    model = starting_model(entry, profile, weights, len(data.class_names), seed)
    if gpus > 1 and not started:
        del data, val_data, model
        launch(train, gpus, where, name, data_root, **options | dict(output=folder))
        return finished(folder)

    accelerator = make_accelerator(where, precision)
    run = Run(entry, profile, model, recipe, data, val_data, folder, checkpoints, accelerator,
              steps=steps, seed=seed, batch_size=batch_size, clip_norm=clip_norm, sync_bn=sync_bn, workers=workers,
              log_interval=log_interval, checkpoint_interval=checkpoint_interval, progress=progress)
    if not (resume and run.restore(strict=overwrite, refuse=not overwrite)):
        run.clear()
    if run.step < run.steps or not (folder / "record.json").exists():
        run.fit(seconds)
        run.finish(measure, None if weights is None else Path(weights).name)
    return finished(folder)


def finished(folder: Path) -> TrainResult:
    """The result of the run that a folder holds."""
    best = folder / "best.safetensors"
    return TrainResult(folder / "model.safetensors", best if best.exists() else None,
                       read_record(folder / "record.json"), read_log(folder))


def pick_precision(asked: str | None, recipe: Recipe, device: torch.device) -> str:
    """The precision to train in.

    Raises:
        UsageError: there is none of that name, or the device cannot do it.
    """
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


def starting_model(entry: ModelEntry, profile: str, weights: str | Path | None, num_classes: int,
                   seed: int = 0) -> nn.Module:
    """The model that training starts from; see `train` for `weights`."""
    torch.manual_seed(seed)
    if weights not in (None, "random"):
        return create_model(entry.name, weights=weights, num_classes=num_classes, profile=profile)
    model = create_model(entry.name, num_classes=num_classes, profile=profile)
    if weights is None and (source := entry.backbone_weights(profile)):
        load_backbone(model, source)
    return model


def build_optimizer(model: nn.Module, settings: SGD | Adam | AdamW, lr: float) -> torch.optim.Optimizer:
    """The recipe's optimiser, with a base rate of `lr`."""
    groups = parameter_groups(model, settings, lr)
    if isinstance(settings, SGD):
        return torch.optim.SGD(groups, lr, settings.momentum)
    return (torch.optim.Adam if isinstance(settings, Adam) else torch.optim.AdamW)(groups, lr)


def buffers_aside(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are no part of the state dict, by name: what a method has seen in training so far."""
    state = model.state_dict(keep_vars=True)
    return {name: value for name, value in model.named_buffers() if name not in state}


class Losses(nn.Module):
    """A detector whose forward pass is its loss: what runs in several processes at once."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Images, targets: list[Target]) -> dict[str, Tensor]:
        return self.detector.loss(images, targets)  # type: ignore[operator]


class Run:
    """A training on its way.

    Attributes:
        step: optimiser steps done, of `steps`.
        told: what a run must share with a checkpoint to go on from it.
        elapsed: seconds of training so far, evaluations left out.
        best: the best evaluation so far, -1 before the first.
    """

    def __init__(self, entry: ModelEntry, profile: str, model: nn.Module, recipe: Recipe, data: Dataset,
                 val_data: Dataset | None, folder: Path, checkpoints: Checkpoints, accelerator: Accelerator, *,
                 steps: int | None, seed: int, batch_size: int | None, clip_norm: float | None, sync_bn: bool,
                 workers: int | None, log_interval: int | None, checkpoint_interval: int | None,
                 progress: bool) -> None:
        self.recipe, self.data, self.val_data, self.folder = recipe, data, val_data, folder
        self.checkpoints, self.accelerator, self.progress = checkpoints, accelerator, progress
        self.device = accelerator.device
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.workers = loading_processes(self.device) if workers is None else workers
        self.batch_size = batch_size or recipe.batch_per_gpu
        self.clip_norm = recipe.clip_norm if clip_norm is None else clip_norm
        self.meta: dict[str, Any] = dict(model=entry.name, profile=profile, classes=list(data.class_names))

        # The published rate is for the published number of images a step.
        self.lr = recipe.optimizer.lr * self.batch_size * self.world / recipe.batch_size
        if sync_bn and self.world > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        self.model = model.to(self.device).train()
        self.module, self.optimizer = accelerator.prepare(Losses(self.model),
                                                          build_optimizer(self.model, recipe.optimizer, self.lr))
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]

        shown = len(epoch_images(data, recipe.repeat, recipe.sampling))
        self.per_epoch = -(-shown // (self.batch_size * self.world))
        self.length = recipe.iterations or (recipe.epochs or 1) * self.per_epoch
        self.steps = self.length if steps is None else steps
        every = recipe.val_interval * (self.per_epoch if recipe.epochs else 1)
        self.val_interval = max(every * self.steps // self.length, 1)
        self.log_interval = log_interval or max(min(50, self.steps // 20), 1)
        self.checkpoint_interval = checkpoint_interval or max(min(self.per_epoch, self.steps // 4), 1)
        self.settings = dict(seed=seed, steps=self.steps, batch_size=self.batch_size, processes=self.world,
                             precision=accelerator.mixed_precision, clip_norm=self.clip_norm)
        self.told = dict(self.settings, recipe=repr(recipe), data=describe(data).fingerprint, code=code_digest())
        self.step, self.elapsed, self.best, self.meter = 0, 0.0, -1.0, Meter()
        self.durations: dict[int, float] = {}  # seconds of each step
        self.loading: list[float] = []  # seconds of them that were spent waiting for data, since the last log line

    @property
    def main(self) -> bool:
        return self.accelerator.is_main_process

    def restore(self, *, strict: bool, refuse: bool) -> bool:
        """Take up the newest checkpoint; False where there is none that fits.

        Args:
            strict: one made by other code does not fit.
            refuse: raise where it does not fit.

        Raises:
            UsageError: it is of a run with other settings, and `refuse`.
            WeightsError: it cannot be read.
        """
        state = self.checkpoints.load()
        if state is None:
            return False
        ours, found = self.told | self.meta, state["run"] | state["meta"]
        other = [k for k, v in ours.items() if found.get(k) != v and (strict or k != "code")]
        if other and refuse:
            raise UsageError(f"The run in {self.folder} cannot go on: it has another {' and another '.join(other)}.")
        if other:
            return False
        self.model.load_state_dict(state["state_dict"])
        for name, value in state["aside"].items():
            self.model.get_buffer(name).copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.elapsed, self.best, self.meter = state["elapsed"], state["best"], Meter(state["window"])
        return True

    def clear(self) -> None:
        """Remove what an earlier run left in the folder."""
        self.accelerator.wait_for_everyone()  # all have looked for checkpoints
        if self.main:
            self.checkpoints.clear()
            for name in ("model.safetensors", "best.safetensors", "record.json", "log.jsonl"):
                (self.folder / name).unlink(missing_ok=True)
            for events in (self.folder / "tensorboard").glob("events.*"):
                events.unlink()
        self.accelerator.wait_for_everyone()

    def fit(self, seconds: float | None = None) -> None:
        """Train to the end, or for so many seconds in all; log, evaluate and save on the way.

        Raises:
            KeyboardInterrupt: it was interrupted; the checkpoint is written.
            DetcoreError: a loss is not finite, or the disk is full.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            with (closing(Journal(self.folder, self.step, self.steps, write=self.main, progress=self.progress,
                                  title=self.meta["model"])) as self.journal, Interruption() as interruption):
                began = time.perf_counter()
                for batch in self.batches():
                    self.loading.append(time.perf_counter() - began)
                    self.train_step(batch)
                    taken = time.perf_counter() - began
                    self.durations[self.step] = taken
                    self.elapsed += taken
                    log_now = self.step % self.log_interval == 0 or self.step == self.steps
                    if log_now:
                        self.log()
                    stop = interruption.wanted or (seconds is not None and self.elapsed >= seconds)
                    # One process stops at once; several agree where they meet anyway.
                    if self.world > 1:
                        stop = log_now and any(gather_object([stop]))
                    self.save_and_validate(stop)
                    if stop:
                        break
                    began = time.perf_counter()
            if interruption.wanted:
                raise KeyboardInterrupt
        except OSError as error:
            raise DetcoreError(f"The run in {self.folder} cannot be written: {error.strerror}; it can be resumed once "
                               f"there is room.") from error

    def batches(self) -> Iterator[Batch]:
        """The batches that are left, epoch after epoch."""
        for epoch in range(self.step // self.per_epoch, -(-self.steps // self.per_epoch)):
            loader = build_loader(
                self.data, self.batch_size, preprocess=self.recipe.preprocess, training=True, workers=self.workers,
                seed=self.settings["seed"], epoch=epoch, start=self.step % self.per_epoch, repeat=self.recipe.repeat,
                sampling=self.recipe.sampling, aspect_grouping=self.recipe.aspect_grouping, rank=self.rank,
                world_size=self.world, pin_memory=self.device.type == "cuda")
            for batch in loader:
                yield batch
                if self.step == self.steps:
                    return

    @property
    def rate(self) -> float:
        """The share of the base learning rate that the next step has; the schedule is scaled to the run's length."""
        return self.recipe.schedule.factor(self.step * self.length // self.steps, self.per_epoch)

    def train_step(self, batch: Batch) -> None:
        """One step of the optimiser."""
        seed = np.random.SeedSequence([self.settings["seed"], self.rank, self.step]).generate_state(1)[0]
        set_seed(int(seed))
        for group, base in zip(self.optimizer.param_groups, self.base_rates):
            group["lr"] = base * self.rate
        batch = batch.to(self.device, non_blocking=True)
        values = self.module(self.recipe.preprocess(batch.images, batch.sizes, training=True), batch.targets)
        loss = torch.stack([v for name, v in values.items() if "loss" in name]).sum()
        self.accelerator.backward(loss)
        if self.clip_norm:
            values["grad_norm"] = self.accelerator.clip_grad_norm_(self.module.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.meter.add(self.step, values | {"loss": loss}, [m.image_id for m in batch.metas])
        self.step += 1
        self.journal.advance()

    def log(self) -> None:
        """Write the means since the last line, over all processes."""
        values = self.meter.means()
        if self.world > 1:
            means = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
            values = dict(zip(values, self.accelerator.reduce(means, "mean").tolist()))
        recent = list(self.durations.values())[-len(self.loading):]
        self.journal.write(self.step, dict(
            epoch=round(self.step / self.per_epoch, 3), lr=self.optimizer.param_groups[0]["lr"], **values,
            seconds=round(fmean(recent), 4), loading_seconds=round(fmean(self.loading), 4), **peak_memory_gb()))
        self.loading = []

    def save_and_validate(self, stop: bool) -> None:
        """What is due after a step: an evaluation, a checkpoint, both or nothing."""
        last = self.step == self.steps
        validate = self.val_data is not None and not stop and (last or self.step % self.val_interval == 0)
        save = stop or last or self.step % self.checkpoint_interval == 0
        if validate or save:
            self.meter.flush()
        if validate:
            self.validate()
        if save and self.main:
            scaler = {} if self.accelerator.scaler is None else self.accelerator.scaler.state_dict()
            self.checkpoints.save(self.step, dict(
                meta=self.meta, state_dict=self.model.state_dict(), aside=buffers_aside(self.model),
                optimizer=self.optimizer.state_dict(), scaler=scaler, run=self.told, step=self.step,
                elapsed=self.elapsed, best=self.best, window=self.meter.window))

    def validate(self) -> None:
        """Evaluate, log, and keep the weights where they are the best so far."""
        assert self.val_data is not None
        found = detect(self.model, self.val_data, self.recipe.preprocess, batch_size=self.batch_size,
                       workers=self.workers, rank=self.rank, world_size=self.world, progress=self.progress,
                       watched=(watched := watchers(self.val_data, self.recipe.metric)))
        if self.main:
            results = score(found, self.val_data, self.recipe.metric, watched=watched, progress=self.progress)
            self.journal.write(self.step, flat(results))
            value = next(iter(results.values())).headline
            if value > self.best:
                self.best = value
                save_weights(self.folder / "best.safetensors", self.model, self.meta)
        self.accelerator.wait_for_everyone()

    def finish(self, measure: tuple[int, int], weights: str | None) -> None:
        """Write the weights and the record."""
        peaks = gather_object([peak_memory_gb()]) if self.world > 1 else [peak_memory_gb()]
        if self.main:
            lines = read_log(self.folder)
            losses, metrics = [line for line in lines if "loss" in line], [line for line in lines if "loss" not in line]
            names = ["step", *(n for n in losses[-1] if n == "lr" or "loss" in n and "seconds" not in n)]
            save_weights(self.folder / "model.safetensors", self.model, self.meta)
            Record(
                kind="train", model=self.meta["model"], profile=self.meta["profile"], data=describe(self.data),
                seed=self.settings["seed"], duration_s=self.elapsed, speed=self.speed(*measure),
                memory={name: max(peak[name] for peak in peaks) for name in peaks[0]},
                parameters=dict(self.settings, steps_done=self.step, learning_rate=self.lr, weights=weights,
                                optimizer=type(self.recipe.optimizer).__name__, images=self.batch_size * self.world,
                                device=self.device.type),
                metrics={n: v for n, v in metrics[-1].items() if n != "step"} if metrics else {},
                curves={n: [line.get(n) for line in losses] for n in names},
            ).write(self.folder / "record.json")
        self.accelerator.wait_for_everyone()

    def speed(self, first: int, last: int) -> dict[str, float]:
        """Seconds a step and images a second, over the steps from `first` to `last`."""
        window = [d for step, d in self.durations.items() if first < step <= last]
        window = window or list(self.durations.values())[len(self.durations) // 2:]
        if not window:  # nothing was left to do
            return {}
        seconds = fmean(window)
        return dict(training_step_s=seconds, training_images_per_s=self.batch_size * self.world / seconds)
