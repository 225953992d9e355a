"""One model on one data set, for a chapter of the book or a script: trained, evaluated, timed, looked at, compared.

    exp = Experiment("retinanet_r50_fpn_1x_coco", "data/pocket", output="runs/retinanet")
    exp.train()          # resumes; shows the curves of the losses
    exp.evaluate()       # AP with 95 % intervals
    exp.benchmark()
    sample = exp.sample(8)
    exp.gallery(sample)  # detections above the ground truth

What it gives shows itself in a notebook as a table or a picture, and as plain text elsewhere. A model with other
options than the zoo's is an experiment of its own: `Experiment(name, label="gamma = 0", options=dict(gamma=0.0))`.
"""
from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from detcore import draw
from detcore.data.loader import Batch, build_loader
from detcore.detectors import Detector
from detcore.engine import benchmark as timing
from detcore.engine import evaluate as evaluation
from detcore.engine import train as training
from detcore.engine.common import load_data, pick_device
from detcore.errors import UsageError
from detcore.metrics.intervals import interval
from detcore.ranges import checked
from detcore.recipe import Recipe
from detcore.records import Record, read_record
from detcore.runs import Checkpoints
from detcore.structures import Detections, Images, Polygons, Target
from detcore.weights import sha256
from detcore.zoo.create import create_model
from detcore.zoo.entries import ModelEntry
from detcore.zoo.index import get_model_entry

QUICK_IMAGES = 16  # evaluated where `steps` asks for less than a training
TIMED_IMAGES = 50
NAMES = {"bbox": "box", "segm": "mask", "proposal": ""}


@dataclass(frozen=True)
class Table:
    """Rows under headers, with a caption; HTML in a notebook, plain text elsewhere. Numbers are strings already."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def _repr_html_(self) -> str:
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        head = "".join(f'<th scope="col">{escape(h)}</th>' for h in self.headers)
        body = "".join(f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(v)}</td>" for v in rest)
                       + "</tr>" for first, *rest in self.rows)
        return f'<table class="detcore">{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'

    def __str__(self) -> str:
        lines = [list(self.headers), *map(list, self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.headers))]
        return "\n".join("  ".join(f"{v:<{w}}" if i == 0 else f"{v:>{w}}" for i, (v, w) in enumerate(zip(line, widths)))
                         for line in lines)

    __repr__ = __str__


@dataclass(frozen=True)
class Sample:
    """A few images of a data set, ready for the network and for the eye.

    Attributes:
        images: the network's input, on the experiment's device.
        pictures: the same as uint8 [h, w, 3] RGB, without padding.
        targets: the ground truth, in the input's pixels, on the device.
        class_names: a name for each label.
    """

    images: Images
    pictures: list[np.ndarray]
    targets: list[Target]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)


class Shown:
    """Shows itself as its table."""

    table: Table

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    def __repr__(self) -> str:
        return str(self.table)


@dataclass(frozen=True, repr=False)
class Result(Shown):
    """What a step of an experiment gave: its record, as a table."""

    record: Record
    table: Table
    figure: Figure | None = None

    def __getitem__(self, metric: str) -> float:
        """A metric as a fraction of 1, such as "bbox_AP"; NaN where it is not defined."""
        value = self.record.metrics[metric]
        return float("nan") if value is None else float(value)


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Two models on the same images.

    Attributes:
        metric: what is compared, such as "bbox_AP".
        difference: of the first from the second, a fraction of 1.
        interval: 95 % interval of the difference, from a paired bootstrap over the images; None without replicates.
        seeds: for each of the two the values of all seeds that have records.
        table: what is shown.
    """

    metric: str
    difference: float
    interval: tuple[float, float] | None
    seeds: tuple[list[float], list[float]]
    table: Table

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero. It tells of these images, not of other seeds."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass
class Experiment:
    """A model, its data and its run.

    Args:
        model: a name of the zoo or a `ModelEntry`.
        data_root: the data set, in any layout that `detcore.train` takes.
        profile: "pocket" or "coco".
        seed: of the training.
        steps: optimiser steps in place of the recipe's; evaluation and timing then take a few images only.
        output: folder of the run; by default under `runs/`. With `steps` the number is added to its name.
        records: folder of the records; None: that of the run.
        proposals: file of precomputed proposals, for the models that need them.
        label: what the model is called in tables and figures; its name by default.
        options: of the model's builder, in place of the zoo's; they become part of its name.
        changes: fields of the recipe, in place of the zoo's; they too.
    """

    model: str | ModelEntry
    data_root: str | Path = "data/pocket"
    _: KW_ONLY
    profile: str = "pocket"
    seed: int = 0
    steps: int | None = None
    device: str | None = None
    gpus: int = 1
    output: str | Path | None = None
    records: str | Path | None = None
    proposals: str | Path | None = None
    label: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @checked()
    def _numbers(self, *, seed: int, steps: int | None = None, gpus: int) -> None:
        """Raise a UsageError if one of them is out of range."""

    def __post_init__(self) -> None:
        self._numbers(seed=self.seed, steps=self.steps, gpus=self.gpus)

    @property
    def full(self) -> bool:
        """Whether it trains as long as its recipe says; what is said of results holds only then."""
        return self.steps is None

    @cached_property
    def entry(self) -> ModelEntry:
        """The model's entry, with the options and changes of this experiment."""
        entry = get_model_entry(self.model) if isinstance(self.model, str) else self.model
        told = {**self.options, **self.changes}
        if not told:
            return entry
        pocket = entry.pocket and replace(entry.pocket, options={**entry.pocket.options, **self.options},
                                          recipe=replace(entry.pocket.recipe, **self.changes))
        name = "+".join([entry.name, *(re.sub(r"[^\w.-]+", "-", f"{k}-{v}") for k, v in sorted(told.items()))])
        return replace(entry, name=name, options={**entry.options, **self.options}, pocket=pocket,
                       recipe=replace(entry.recipe, **self.changes))

    @property
    def name(self) -> str:
        """What it is called in tables and figures."""
        return self.label or self.entry.name

    @cached_property
    def recipe(self) -> Recipe:
        """How it is trained and tested."""
        return self.entry.recipe_for(self.profile)

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        seed = f".seed{self.seed}" if self.seed else ""
        path = Path(self.output or f"runs/{self.entry.name}.{self.profile}{seed}")
        return path if self.full else path.with_name(f"{path.name}.{self.steps}-steps")

    @checked()
    def record_path(self, kind: str, seed: int | None = None) -> Path:
        """Where the record of a kind ("train", "evaluate", "benchmark") is; of this seed by default."""
        seed = self.seed if seed is None else seed
        middle = f".seed{seed}" if seed else ""
        return Path(self.records or self.folder) / f"{self.entry.name}.{self.profile}{middle}.{kind}.json"

    def beside(self, model: str | ModelEntry, **settings: Any) -> Experiment:
        """Another model on the same data, with the same profile, seed, steps, device and folder of records.

        Args:
            settings: what else differs, named as the arguments of `Experiment`.
        """
        own: dict[str, Any] = dict(output=None, proposals=None, label=None, options={}, changes={})
        return replace(self, model=model, **own | settings)

    # What it does

    def train(self, **options: Any) -> Result:
        """Train by the recipe, or take up what the folder holds: the curves of the losses, and the record.

        Args:
            options: more of `detcore.train`, such as `checkpoint_interval` and `keep`.
        """
        run = training.train(self.entry, self.data_root, profile=self.profile, output=self.folder, steps=self.steps,
                             seed=self.seed, device=self.device, gpus=self.gpus, proposals=self.proposals, resume=True,
                             **dict(validate=self.full and self.profile != "pocket") | options)
        record = self._write(run.record)
        rows = [("steps", f"{record.parameters['steps_done']:,}"),
                ("images seen", f"{images_seen(record):,}"), ("seconds", f"{record.duration_s:.0f}"),
                *((f"loss: {draw.loss_name(name)}", f"{values[-1]:.3f}") for name, values in record.curves.items()
                  if name not in ("step", "lr") and values and values[-1] is not None)]
        return Result(record, Table(["training", self.name], rows), draw.losses(record.curves))

    @property
    def checkpoint(self) -> Path:
        """The trained weights.

        Raises:
            UsageError: it has not been trained.
        """
        path = self.folder / training.WEIGHTS
        if not path.exists():
            raise UsageError(f"{self.name} has not been trained in {self.folder}: call train() first.")
        return path

    def checkpoints(self) -> dict[int, Path]:
        """The weights on the way, by optimiser step: those that training kept (`keep` of `train`)."""
        return {int(path.stem.removeprefix("step_")): path
                for path in Checkpoints(self.folder / "checkpoints", keep=2).paths()}

    def evaluate(self) -> Result:
        """The measure of the data set on its validation images, each value with its 95 % interval."""
        found = evaluation.evaluate(
            self.entry, self.data_root, weights=self.checkpoint, profile=self.profile, device=self.device,
            proposals=self.proposals, images=None if self.full else QUICK_IMAGES, output=self.folder / "evaluation")
        record = self._write(found.record)
        return Result(record, metrics_table(record, self.name))

    def benchmark(self) -> Result:
        """Time of an image (median and quartiles; nothing else should run), operations, parameters and memory."""
        images = 2 if not self.full else TIMED_IMAGES if self.profile == "pocket" else 2000
        record = self._write(timing.benchmark(
            self.entry, self.data_root, weights=self.checkpoint, profile=self.profile, device=self.device,
            proposals=self.proposals, images=images, say=None))
        ms = [1000 * record.speed[f"inference_{name}_s"] for name in ("median", "q1", "q3")]
        rows = [("inference, ms per image", f"{ms[0]:.1f} [{ms[1]:.1f}, {ms[2]:.1f}]"),
                ("GFLOPs", f"{(record.metrics['flops'] or 0) / 1e9:.2f}"),
                ("parameters, millions", f"{(record.metrics['parameters'] or 0) / 1e6:.2f}"),
                *((f"memory, {name.removesuffix('_gb')}, GB", f"{v:.2f}") for name, v in record.memory.items())]
        return Result(record, Table(["speed and size", self.name], rows))

    def compare(self, *others: Experiment, metric: str = "bbox_AP") -> Comparison:
        """This model beside others that have records: values, seeds, images seen, the paired difference to the first.

        Raises:
            UsageError: a model has no record of an evaluation.
        """
        rows, all_seeds = [], []
        for exp in (self, *others):
            record, trained = exp.recorded("evaluate"), exp.recorded("train")
            all_seeds.append(exp.over_seeds(metric))
            rows.append((exp.name, with_interval(record, metric), exp.spread(metric),
                         f"{trained.parameters['steps_done']:,}", f"{images_seen(trained):,}",
                         f"{trained.duration_s:.0f}"))
        difference, bounds = paired(self.recorded("evaluate"), others[0].recorded("evaluate"), metric)
        rows.append((f"{self.name} − {others[0].name}", signed(difference, bounds), "", "", "", ""))
        table = Table(["model", f"{metric_name(metric)} (%) [95 % interval]", "mean ± std over seeds (n)", "steps",
                       "images seen", "training, s"], rows)
        return Comparison(metric, difference, bounds, (all_seeds[0], all_seeds[1]), table)

    # What it can be asked

    @checked()
    def recorded(self, kind: str, seed: int | None = None) -> Record:
        """Its record of a kind.

        Raises:
            UsageError: there is none.
        """
        path = self.record_path(kind, seed)
        if not path.exists():
            raise UsageError(f"{self.name} has no record {path}: run the chapter or script that makes it first.")
        return read_record(path)

    def over_seeds(self, metric: str) -> list[float]:
        """A metric of every seed from 0 to 9 that has a record."""
        found = (self.record_path("evaluate", seed) for seed in range(10))
        values = [read_record(path).metrics.get(metric) for path in found if path.exists()]
        return [float(v) for v in values if v is not None]

    def spread(self, metric: str) -> str:
        """Mean and standard deviation of a metric over the seeds, in percent, and their number; a dash for one seed."""
        seeds = self.over_seeds(metric)
        return f"{100 * np.mean(seeds):.1f} ± {100 * np.std(seeds, ddof=1):.1f} ({len(seeds)})" \
            if len(seeds) > 1 else "–"

    @cached_property
    def detector(self) -> Detector:
        """The trained model, in evaluation mode on its device."""
        return self.load(self.checkpoint)

    def load(self, weights: str | Path | None) -> Detector:
        """The model with other weights, in evaluation mode on its device; None for random ones from seed 0."""
        torch.manual_seed(0)
        model = create_model(self.entry, weights=weights, profile=self.profile, num_classes=len(self.class_names))
        return model.to(pick_device(self.device)).eval()

    def data(self, split: str = "val") -> Any:
        """The data set as the model is tested on it, images as they are, with masks where the model learns them."""
        recipe = self.recipe
        if recipe.masks:  # of which only a training set has any
            recipe = replace(recipe, train_transforms=recipe.test_transforms, filter_empty=False, min_size=0, min_box=0)
        return load_data(self.data_root, recipe, split, training=bool(recipe.masks), proposals=self.proposals)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """A name for each label; a data set has the same classes in all splits."""
        return tuple(self.data().class_names)

    @checked()
    def batch(self, number: int = 8, *, indices: Sequence[int] | None = None, split: str = "val") -> Batch:
        """The first images of a split, or those at `indices`, with their ground truth, on the experiment's device."""
        data = self.data(split)
        chosen = np.zeros(len(data), bool)
        chosen[list(indices) if indices is not None else slice(number)] = True
        data.select(chosen)
        return next(iter(build_loader(data, len(data), preprocess=self.recipe.preprocess))).to(pick_device(self.device))

    @checked()
    def sample(self, number: int = 8, *, indices: Sequence[int] | None = None, split: str = "val") -> Sample:
        """The same, normalised for the network, and as pictures."""
        batch = self.batch(number, indices=indices, split=split)
        images = self.recipe.preprocess(batch.images, batch.sizes)
        pictures = [draw.pixels(images, i, self.recipe.preprocess) for i in range(len(batch))]
        return Sample(images, pictures, batch.targets, self.class_names)

    def predict(self, sample: Sample) -> list[Detections]:
        """Detections in the sample's own pixels, with the names of the classes."""
        given = [t.proposals for t in sample.targets] if self.detector.needs_proposals else None
        with torch.inference_mode():
            found = self.detector.predict(sample.images, proposals=given)  # type: ignore[arg-type]
        return [replace(d.to("cpu"), class_names=sample.class_names) for d in found]

    @checked()
    def gallery(self, sample: Sample, *, score_threshold: float = 0.3, scale: float = 2) -> Image.Image:
        """Detections in the upper row, ground truth in the lower, with names of classes and scores."""
        upper = [draw.detections(d, p, score_threshold=score_threshold, scale=scale)
                 for d, p in zip(self.predict(sample), sample.pictures)]
        return draw.grid(upper + [truth(sample, i, scale=scale) for i in range(len(sample))], columns=len(sample))

    def provenance(self) -> Table:
        """Where the numbers come from: version, commit, machine, date, seed, steps, checkpoint, time."""
        records = {kind: read_record(path) for kind in ("train", "evaluate", "benchmark")
                   if (path := self.record_path(kind)).exists()}
        rows = []
        for kind, r in records.items():
            machine = ", ".join([r.hardware.cpu, f"{r.hardware.cores} cores", *r.hardware.accelerators])
            rows.append((kind, r.versions.get("detcore", "–"), r.commit or "–", r.date or "–", machine,
                         r.versions.get("torch", "–"), str(r.seed), str(r.parameters.get("checkpoint", "–")),
                         f"{r.duration_s:.0f}"))
        return Table(["record", "version", "commit", "date", "machine", "PyTorch", "seed", "checkpoint", "s"], rows,
                     caption=self.entry.name)

    def _write(self, record: Record) -> Record:
        """Write a record with what it lacks: the seed and the hash of the weights."""
        record = record.model_copy(update=dict(seed=self.seed, parameters=dict(
            record.parameters, checkpoint=checkpoint_hash(self.checkpoint))))
        record.write(self.record_path(record.kind))
        return record


@dataclass(frozen=True)
class Source:
    """The source of functions or classes, and the file that it is in; Markdown in a notebook."""

    code: str
    file: str

    def _repr_markdown_(self) -> str:
        return f"`{self.file}`\n\n```python\n{self.code}\n```\n"

    def __str__(self) -> str:
        return f"# {self.file}\n{self.code}"

    __repr__ = __str__


def source(*objects: Any) -> Source:
    """The source of functions, methods or classes of one file, for a page that explains them."""
    file = Path(inspect.getfile(objects[0])).relative_to(Path(__file__).parents[1])
    code = "\n\n".join(textwrap.dedent(inspect.getsource(one)).rstrip() for one in objects)
    return Source(code, file.as_posix())


@checked()
def truth(sample: Sample, index: int, *, scale: float = 2) -> Image.Image:
    """A picture of the sample with its ground truth: boxes with names, and masks, in the colours of their classes."""
    target, picture = sample.targets[index], draw.to_pil(sample.pictures[index])
    labels = target.labels.tolist()
    if (masks := bitmaps(sample, index)) is not None:
        picture = draw.tint(picture, masks, labels)
    return draw.boxes(picture, target.boxes, colors=[draw.colour(c) for c in labels], width=2,
                      scale=scale, labels=[sample.class_names[c] for c in labels])


def bitmaps(sample: Sample, index: int) -> np.ndarray | None:
    """The ground-truth masks [n, h, w] of an image of the sample, without padding; None for models of boxes alone."""
    masks, (h, w) = sample.targets[index].masks, sample.images.sizes[index]
    if masks is None:
        return None
    return (masks.to_bitmap() if isinstance(masks, Polygons) else masks.cpu().numpy())[:, :h, :w]


def checkpoint_hash(path: Path) -> str:
    """The first eight digits of a file's SHA-256, as published checkpoints carry it in their names."""
    return sha256(path)[:8]


def images_seen(record: Record) -> int:
    """Images that a training has looked at."""
    return int(record.parameters["steps_done"]) * int(record.parameters["images"])


def metric_name(metric: str) -> str:
    """A metric for people: "bbox_AP50" is "box AP50"."""
    kind, _, name = metric.partition("_")
    return f"{NAMES.get(kind, kind)} {name}".strip()


def with_interval(record: Record, metric: str) -> str:
    """A metric in percent with its 95 % interval."""
    value, bounds = record.metrics.get(metric), record.intervals.get(metric)
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + (f" [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds else "")


def paired(ours: Record, theirs: Record, metric: str) -> tuple[float, tuple[float, float] | None]:
    """How much larger a metric is in one evaluation than in another, and the 95 % interval of the difference by a
    paired bootstrap over the images; None where the two are not of the same images, or have no replicates."""
    a, b = ours.replicates.get(metric), theirs.replicates.get(metric)
    bounds = interval(np.array(a, float) - np.array(b, float)) if a and b and ours.data == theirs.data else None
    return float(ours.metrics[metric] or 0) - float(theirs.metrics[metric] or 0), bounds


def signed(difference: float, bounds: tuple[float, float] | None) -> str:
    """A difference in percentage points with its 95 % interval."""
    return f"{100 * difference:+.1f}" + (f" [{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]" if bounds else "")


def metrics_table(record: Record, name: str) -> Table:
    """The metrics of an evaluation, a row for each."""
    rows = [(metric_name(metric), with_interval(record, metric)) for metric in record.metrics]
    return Table(["metric", f"{name}, % [95 % interval]"], rows)
