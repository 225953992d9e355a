"""What the tables and charts show: published facts, models and records, read once."""
from __future__ import annotations

import ast
import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from detcore.records import Record, read_records
from detcore.zoo.entries import ModelEntry
from detcore.zoo.index import Published, get_model_entry, rows

BOOK = Path(__file__).resolve().parents[2]
# The release that the published results are of; its branches move on.
ZOO_URL = "https://github.com/open-mmlab/mmdetection/tree/v3.3.0"


@cache
def title(family: str) -> str:
    """A family's name for people: the docstring of its file, up to the first colon, comma or full stop."""
    path = BOOK.parent / "detcore/zoo/families" / f"{family.replace('+', '_')}.py"
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or family
    return re.split(r"[:,.](?:\s|$)", text)[0]


@dataclass(frozen=True)
class Table:
    """A file of `book/data`: its header, its rows, and where the numbers come from (title, address)."""

    header: list[str]
    rows: list[list[str]]
    source: tuple[str, str]


@cache
def table(name: str) -> Table:
    """A published table. Its file starts with "# TITLE <ADDRESS>"."""
    first, *lines = (BOOK / "data" / f"{name}.csv").read_text("utf-8").splitlines()
    title, _, address = first.lstrip("# ").rstrip(">").partition(" <")
    header, *rows = csv.reader(lines)
    return Table(header, rows, (title, address))


@cache
def records() -> list[Record]:
    """All records, in the order of their file names."""
    return list(read_records(BOOK / "records").values())


def models(family: str) -> list[tuple[ModelEntry, Published]]:
    """A family's models with what was published of them."""
    return [(get_model_entry(name), row.published or Published()) for name, row in rows().items()
            if row.family == family]


@dataclass(frozen=True)
class Ours:
    """Our results for a model at one profile, from all its records; a later kind of run adds to an earlier one.

    Attributes:
        metrics: by name, fractions of 1.
        intervals: of 95 %, by name of the metric.
        training_s: wall time of the training.
        memory_gb: peak of the training.
        inference_ms: an image.
        hardware: what the training ran on.
        commit: the version of the library.
    """

    model: str
    family: str
    profile: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    training_s: float | None
    memory_gb: float | None
    inference_ms: float | None
    steps: int | None
    images_seen: int | None
    seed: int | None
    hardware: str
    commit: str | None

    def percent(self, metric: str) -> float | None:
        """A metric in percent, as the published ones."""
        return round(100 * self.metrics[metric], 1) if metric in self.metrics else None

    def interval(self, metric: str) -> tuple[float, float] | None:
        """Its 95 % interval in percent."""
        found = self.intervals.get(metric)
        return (round(100 * found[0], 1), round(100 * found[1], 1)) if found else None


@cache
def ours() -> list[Ours]:
    """Our results, a row for each model and profile, in the zoo's order; of several seeds the first, 0."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records():
        if record.model in rows() and record.profile and not record.seed:
            found.setdefault((record.model, record.profile), []).append(record)
    order = list(rows())
    return [_summary(model, profile, group)
            for (model, profile), group in sorted(found.items(), key=lambda item: order.index(item[0][0]))]


def _summary(model: str, profile: str, group: list[Record]) -> Ours:
    metrics = {name: value for record in group for name, value in record.metrics.items() if value is not None}
    intervals = {name: tuple(ends) for record in group for name, ends in getattr(record, "intervals", {}).items()}
    speed = {name: value for record in group for name, value in record.speed.items()}
    trained = next((record for record in group if record.kind == "train"), None)
    memory = (trained or group[0]).memory
    told = trained.parameters if trained else {}
    steps, batch = told.get("steps"), told.get("batch_size")
    latency = speed.get("inference_median_s", speed.get("inference_mean_s"))
    machine = group[0].hardware
    return Ours(model, rows()[model].family, profile, metrics, intervals, trained.duration_s if trained else None,
                memory.get("cuda_gb", memory.get("resident_gb")), 1000 * latency if latency else None, steps,
                told.get("images_seen", steps * batch if steps and batch else None),
                trained.seed if trained else None,
                ", ".join(machine.accelerators) or f"{machine.cpu}, {machine.cores} cores",
                (trained or group[0]).commit)
