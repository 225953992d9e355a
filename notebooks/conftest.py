"""`pytest --nbval`: every chapter runs at two training steps, in a folder that looks like the repository's root.

The cells are those of `notebooks/NAME.py`; a cell's outputs are compared with the committed notebook's where that has
executed the same code. The folder has the data and a copy of the committed records, and nothing of an earlier run.
"""
from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbval.kernel
import nbval.plugin
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from workflow import contents, text
from workflow.chapter import copy_records, parameters_of

ROOT = Path(__file__).resolve().parent.parent
STEPS = 2


def short(name: str) -> NotebookNode:
    """The chapter at two training steps, with the committed outputs."""
    notebook = text.load(name, ROOT / "notebooks" / f"{name}.ipynb")
    if "steps" in parameters_of(notebook, {}):
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        cell.source += f"\nsteps = {STEPS}"
    return notebook


def scratch(name: str) -> Path:
    """An empty root for a chapter, after the chapters whose files it reads have run there."""
    folder = ROOT / "build/nbval" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "data").symlink_to(ROOT / "data")
    copy_records(folder / "build/records")
    for need in contents.file_needs(name):
        NotebookClient(short(need), kernel_name="python3", timeout=None,
                       resources=dict(metadata=dict(path=str(folder)))).execute()
    return folder


class Kernel(nbval.kernel.RunningKernel):
    """A kernel that starts there."""

    folder: str

    def __init__(self, kernel_name: str, cwd: str | None = None, **options: Any):
        super().__init__(kernel_name, cwd=self.folder, **options)


def collect(self: nbval.plugin.IPyNbFile) -> Iterator[pytest.Item]:
    """The cells of a chapter."""
    self.nb = short(self.path.stem)
    for number, cell in enumerate(cell for cell in self.nb.cells if cell.cell_type == "code"):
        options = defaultdict(bool, nbval.plugin.find_metadata_tags(cell.metadata))
        options.setdefault("check", self.compare_outputs)
        yield nbval.plugin.IPyNbCell.from_parent(self, name=f"Cell {number}", cell_num=number, cell=cell,
                                                 options=options)


def setup(self: nbval.plugin.IPyNbFile) -> None:
    """Prepare the chapter's folder before its kernel starts."""
    if not (ROOT / "data/pocket").exists():
        pytest.fail("The chapters need the data in data/pocket: make test draws it.", pytrace=False)
    # Progress bars, of which the committed notebooks hold nothing; pictures, as nbval leaves out the other kinds.
    self.skip_compare += ("stderr", "image/svg+xml")
    Kernel.folder = str(scratch(self.path.stem))
    nbval_setup(self)


# What chapters write to standard error is left out of the committed notebooks; this warning comes with an import.
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
nbval.plugin.RunningKernel = Kernel
nbval_setup = nbval.plugin.IPyNbFile.setup
nbval.plugin.IPyNbFile.collect, nbval.plugin.IPyNbFile.setup = collect, setup
