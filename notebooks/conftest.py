"""`pytest --nbval`: kernels start in a folder that looks like the repository's root.

There the chapters find the data and what their own runs left, so that no training is repeated, and the records that
they write, beside a copy of the book's, do not replace them.
"""
from __future__ import annotations

import os
import shutil
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
        shutil.copytree(ROOT / "book/records", SCRATCH / "book/records", dirs_exist_ok=True)
        super().__init__(kernel_name, cwd=str(SCRATCH), **options)


# What chapters write to standard error is left out of the committed notebooks; this warning comes with an import.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
nbval.plugin.RunningKernel = Kernel
