"""What a run tells while it runs: losses collected, checked, and written to a log, to TensorBoard and to a bar."""
from __future__ import annotations

import errno
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from detcore.errors import DetcoreError
from detcore.records import write_atomically

SHOWN = ("lr", "bbox_AP", "segm_AP", "proposal_AR100")  # beside the bar, with the losses


class Meter:
    """The losses of the steps since the last line of the log, and what is measured beside them.

    Values are looked at one step later, so that the processor needn't wait for the GPU.

    Attributes:
        window: values by name, one a step.
        losses: which of the names are losses.
    """

    def __init__(self, window: Mapping[str, list[float]] | None = None, losses: Sequence[str] = ()) -> None:
        self.window: dict[str, list[float]] = {name: list(values) for name, values in (window or {}).items()}
        self.losses = list(losses)
        self._pending: tuple[int, list[str], Tensor, torch.cuda.Event | None, list[int]] | None = None

    def add(self, step: int, losses: Mapping[str, Tensor], others: Mapping[str, Tensor], image_ids: list[int]) -> None:
        """Take the values (0-dim tensors) of a step; a DetcoreError if a loss of the step before is not finite."""
        self.flush()
        self.losses, values = list(losses), {**losses, **others}
        stacked, event = torch.stack([v.detach().float() for v in values.values()]), None
        if stacked.is_cuda:
            stacked = torch.empty_like(stacked, device="cpu", pin_memory=True).copy_(stacked, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending = step, list(values), stacked, event, image_ids

    def flush(self) -> None:
        """Look at the values of the last step; raises as `add` does."""
        if self._pending is None:
            return
        step, names, stacked, event, image_ids = self._pending
        self._pending = None
        if event is not None:
            event.synchronize()
        values = dict(zip(names, stacked.tolist()))
        if bad := [name for name in self.losses if not math.isfinite(values[name])]:
            raise DetcoreError(f"Training stopped at iteration {step + 1}: {' and '.join(bad)} "
                               f"{'is' if len(bad) == 1 else 'are'} not finite, on the images with the ids "
                               f"{', '.join(map(str, image_ids))}.")
        for name, value in values.items():
            self.window.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """The mean of each value; the window is empty afterwards."""
        self.flush()
        means = {name: fmean(values) for name, values in self.window.items()}
        self.window = {}
        return means


class Journal:
    """`log.jsonl` and `tensorboard/` in the output folder, and a progress bar.

    Args:
        start: steps done before; what is logged beyond is cut off, and so are the metrics at `start` if they are
            `pending`.
        write: whether this process writes.
        progress: whether it shows a bar.
    """

    def __init__(self, folder: Path, start: int, steps: int, *, write: bool, progress: bool, title: str,
                 pending: bool = False) -> None:
        self._file: Any = None
        self._folder = folder
        if write:
            from torch.utils.tensorboard import SummaryWriter

            path = folder / "log.jsonl"
            before = [line for line in read_log(folder)
                      if line["step"] < start or line["step"] == start and ("loss" in line or not pending)]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in before).encode())
            self._file = open(path, "a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)
        self._bar = tqdm(total=steps, initial=start, desc=title, unit="step", disable=not (write and progress),
                         dynamic_ncols=True)

    def advance(self) -> None:
        """Count a step."""
        with suppress(OSError):  # of a terminal that was closed
            self._bar.update()

    def write(self, step: int, values: Mapping[str, Any], losses: Sequence[str] = ()) -> None:
        """Log a line for the steps up to `step`: of training, where some of the values are `losses`, or of metrics."""
        if self._file is None:
            return
        if not self._folder.is_dir():  # told here, before TensorBoard's thread finds out
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, (int, float)):
                group = "val/" if not losses else "loss/" if name in losses else ""
                self._board.add_scalar(group + name, value, step)
        with suppress(OSError):
            self._bar.set_postfix({n: f"{v:.3g}" for n, v in values.items()
                                   if isinstance(v, float) and (n in SHOWN or n in losses)})

    def close(self) -> None:
        """Write what is left to be written."""
        with suppress(OSError):
            self._bar.close()
        if self._file is not None:
            self._file.close()
            if self._folder.is_dir():
                self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line cut short by a crash is left out, and what is no line with a warning."""
    try:
        text = (folder / "log.jsonl").read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines, bad = [], 0
    for line in text.split("\n"):
        try:
            found = json.loads(line)
            if type(found["step"]) is not int:
                raise ValueError
            lines.append({name: value for name, value in found.items()
                          if value is None or isinstance(value, (int, float)) and not isinstance(value, bool)})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            bad += bool(line) and (line.endswith("}") or line is not text.rpartition("\n")[2])
    if bad:
        warnings.warn(f"{bad} lines of {folder / 'log.jsonl'} are damaged and left out.", stacklevel=2)
    return lines
