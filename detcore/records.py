"""The record of a run: what ran, on what, with which versions and parameters, and what came out.

Every number of the book comes from such a file or from a published fact. A record is written when its run is over,
whole or not at all.
"""
from __future__ import annotations

import datetime
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from detcore.errors import DataError

PACKAGES = ("detcore", "torch", "torchvision", "accelerate", "numpy", "opencv-python-headless", "faster-coco-eval",
            "pycocotools")
Number = int | float | None
NUMBERS = re.compile(r"\[[^][{}\"]*\]")  # a list without strings


class Hardware(BaseModel, extra="forbid"):
    """The machine of a run: processor, its cores, main memory in GB, accelerators by name."""

    cpu: str
    cores: int
    memory_gb: float
    accelerators: list[str] = []


class DataInfo(BaseModel, extra="forbid"):
    """The data of a run: its annotation file's name, the file's `detcore.data.coco.fingerprint`, its images used."""

    name: str
    fingerprint: str
    images: int


class Record(BaseModel, extra="forbid"):
    """What a run leaves behind.

    Attributes:
        kind: what was done.
        model, profile: the zoo's name and the size it was run at; None where no model of the zoo took part.
        data: what it ran on.
        hardware, versions, commit: where; `commit` is None outside of a git checkout.
        date: the day of the run, as "2026-01-31"; None in records of version 0.2 and before.
        duration_s: wall time.
        parameters: what the run was told: steps, batch size, learning rate ...
        metrics: results by name ("bbox_AP"); fractions of 1, None where undefined.
        intervals, replicates: for a metric its 95 % interval, and its values under resamplings of the images
            (`detcore.metrics.intervals`), where they were asked for.
        per_class: for each kind of evaluation the AP of each class.
        by_iou: for each kind of evaluation the AP at IoU 0.5, 0.55 and so on to 0.95.
        speed: seconds and images a second, by name.
        memory: in GB, by name.
        curves: lists of equal length that belong together ("step", "loss").
    """

    kind: Literal["train", "evaluate", "benchmark", "data", "pretrain"]
    model: str | None = None
    profile: str | None = None
    data: DataInfo | None = None
    seed: int | None = None
    hardware: Hardware = Field(default_factory=lambda: hardware())
    versions: dict[str, str] = Field(default_factory=lambda: versions())
    commit: str | None = Field(default_factory=lambda: commit())
    date: str | None = Field(default_factory=lambda: datetime.date.today().isoformat())
    duration_s: float
    parameters: dict[str, Any] = {}
    metrics: dict[str, Number] = {}
    intervals: dict[str, tuple[float, float]] = {}
    replicates: dict[str, list[Number]] = {}
    per_class: dict[str, dict[str, Number]] = {}
    by_iou: dict[str, list[Number]] = {}
    speed: dict[str, float] = {}
    memory: dict[str, float] = {}
    curves: dict[str, list[Number]] = {}

    def write(self, path: str | Path) -> Path:
        """Write the record as JSON, a list of numbers on one line; raises as `write_text` does."""
        return write_text(path, NUMBERS.sub(lambda m: " ".join(m[0].split()), self.model_dump_json(indent=1)) + "\n")


def read_record(path: str | Path) -> Record:
    """The record in a file; raises a DataError if there is none, or it is not of this form."""
    try:
        record = Record.model_validate_json(Path(path).read_bytes())
        return record if "date" in record.model_fields_set else record.model_copy(update=dict(date=None))
    except OSError as error:
        raise DataError(f"The record {path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{path} is not a record: {f'{place[:200]}: ' if place else ''}{first['msg']}. "
                        "Run what makes it again, or remove it.") from error
    except (ValueError, RecursionError) as error:  # a path that cannot be one
        raise DataError(f"The record {str(path)!r} cannot be read: {error}.") from error


def read_json(path: str | Path, kind: type = dict) -> Any:
    """The content of a JSON file that is a dict, or of another `kind`; raises a DataError if it is not."""
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"The file {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"The file {path} is damaged, it is not JSON ({error}): make it again, or "
                        "remove it.") from error
    if not isinstance(found, kind):
        raise DataError(f"The file {path} is damaged, it holds a {type(found).__name__}, not a {kind.__name__}: "
                        "make it again, or remove it.")
    return found


def read_records(folder: str | Path) -> dict[str, Record]:
    """All records of a folder, by file name without ".json", sorted; raises as `read_record` does."""
    return {path.stem: read_record(path) for path in sorted(Path(folder).glob("*.json"))}


def write_atomically(path: Path, data: bytes | memoryview, *, sync: bool = True) -> None:
    """Write a file so that, whatever happens to the process, the old content or the new one is there.

    Args:
        sync: force it to the disk, so that this holds where the power fails, too.

    Raises:
        OSError: the folder or the disk does not take it.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file, whole or not at all, and its folder where there is none; raises a DataError if it cannot."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise DataError(f"The file {path} cannot be written: {error.strerror}.") from error
    return path


def hardware() -> Hardware:
    """This machine."""
    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Hardware(cpu=cpu, cores=cores, memory_gb=round(psutil.virtual_memory().total / 2**30, 1),
                    accelerators=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())])


def versions() -> dict[str, str]:
    """The versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str | None:
    """The git commit of the library, with "-dirty" where its files differ from it; None where it is no checkout."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
                              timeout=10, check=True).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory_gb() -> dict[str, float]:
    """The largest memory so far: resident of this process, and of the fullest GPU as PyTorch has allocated it."""
    import torch

    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kilobytes elsewhere
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts what started this process into ru_maxrss, but not into VmHWM
        told = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        resident = int(told.get("VmHWM", f"{resident} kB").split()[0])
    peak = {"resident_gb": resident / unit}
    if torch.cuda.is_available():
        peak["cuda_gb"] = max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())) / 2**30
    return {name: round(value, 3) for name, value in peak.items()}


class Clock:
    """Seconds since it was made, waiting for the device's work before it looks."""

    def __init__(self, device: Any = None) -> None:
        self._cuda = str(device).startswith("cuda")
        self.start = self._now()

    def _now(self) -> float:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def __call__(self) -> float:
        return self._now() - self.start
