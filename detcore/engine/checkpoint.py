"""Checkpoints: all that a run needs to go on as if it had never stopped.

What is random in a step is drawn from (seed, step, process), and the place in the data follows from the step, so that
neither the state of a random generator nor that of a loader has to be kept.
"""
from __future__ import annotations

import hashlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import torch

import detcore
from detcore.errors import DetcoreError, WeightsError
from detcore.records import write_atomically


@cache
def code_digest() -> str:
    """Twelve hexadecimal digits that stand for the library's own source."""
    digest = hashlib.sha256()
    for path in sorted(Path(detcore.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Checkpoints:
    """The numbered checkpoints of a run, of which the last few are kept.

    Each is one PyTorch file, readable without running code: "meta" (model, profile, classes) and "state_dict" as
    `detcore.zoo.create.restore` takes them, beside what training needs.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, max(keep, 1)

    def paths(self) -> list[Path]:
        """The checkpoints there are, oldest first."""
        return sorted(self.folder.glob("step_*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, whole or not at all, then remove those that are too old.

        Raises:
            DetcoreError: it cannot be written; those before stay.
        """
        path = self.folder / f"step_{step:08}.pt"
        # Through memory: a full disk then shows as an ordinary error of one write.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getbuffer())
        except OSError as error:
            last = self.paths()
            rest = f"{last[-1]} is whole, and the run can go on from it" if last else "there is none before it"
            raise DetcoreError(f"The checkpoint {path} cannot be written: {error.strerror}; {rest}.") from error
        for old in self.paths()[:-self.keep]:
            old.unlink()
        return path

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint, None where there is none.

        Raises:
            WeightsError: it cannot be read.
        """
        paths = self.paths()
        if not paths:
            return None
        try:
            return torch.load(paths[-1], map_location="cpu", weights_only=True)
        except Exception as error:  # there is no end to the ways in which a damaged pickle fails
            raise WeightsError(f"The checkpoint {paths[-1]} cannot be read; remove it to go on from the one before "
                               f"it.") from error

    def clear(self) -> None:
        """Remove them all."""
        for path in self.paths():
            path.unlink()
