"""`pytest --nbval`: kernels start in a folder that looks like the repository's root.

There the chapters find the data and what their own runs left, so that no training is repeated, and the records that
they write do not replace those of the book.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import nbval.kernel
import nbval.plugin

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "build" / "nbval"


class Kernel(nbval.kernel.RunningKernel):
    """A kernel that starts there."""

    def __init__(self, kernel_name: str, cwd: str | None = None, **options: Any):
        SCRATCH.mkdir(parents=True, exist_ok=True)
        for name in ("data", "runs"):
            if not (SCRATCH / name).exists():
                (SCRATCH / name).symlink_to(ROOT / name)
        super().__init__(kernel_name, cwd=str(SCRATCH), **options)


nbval.plugin.RunningKernel = Kernel
