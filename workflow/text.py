"""Chapters as notebooks: `notebooks/NAME.py` is the truth, an executed notebook adds the outputs of its code cells."""
from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat

from detcore.runs import code
from workflow.contents import ROOT

METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
KEPT = ("tags", "mystnb")  # of a cell's metadata: how it is shown and tested, and MyST-NB's captions


def names() -> list[str]:
    """All chapters that there are, in the table of contents or not."""
    return sorted(path.stem for path in (ROOT / "notebooks").glob("*.py") if path.stem != "conftest")


def read(name: str) -> nbformat.NotebookNode:
    """The chapter's text as a notebook without outputs; cells are numbered, so that two readings are the same."""
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return _plain(notebook)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what differs from one run to the next: times, progress bars, papermill's and the kernel's notes."""
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = count = count + 1
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
                if "image/jpeg" in output.get("data", {}):
                    output.data.pop("image/png", None)  # Pillow gives both; photographs are ten times smaller so
    return _plain(notebook)


def merge(name: str, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The chapter's text as it is now, with the outputs of the cells whose code a run has executed."""
    done: dict[str, list[nbformat.NotebookNode]] = {}
    for cell in executed.cells:
        if cell.cell_type == "code":
            done.setdefault(_key(cell.source), []).append(cell)
    notebook = read(name)
    for cell in notebook.cells:
        if cell.cell_type == "code" and (found := done.get(_key(cell.source))):
            before = found.pop(0)
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return notebook


def load(name: str, path: Path) -> nbformat.NotebookNode:
    """The chapter's text with the outputs of an executed notebook; without any where there is none."""
    return merge(name, nbformat.read(path, as_version=4)) if path.exists() else read(name)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def _plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        kept = {key: cell.metadata[key] for key in KEPT if cell.metadata.get(key)}
        if "tags" in kept:
            kept["tags"] = [tag for tag in kept["tags"] if not tag.startswith("papermill-")]
        cell.metadata = nbformat.from_dict({key: value for key, value in kept.items() if value})
    return notebook


def _key(source: str) -> str:
    try:
        return code(source)
    except SyntaxError:  # a magic of IPython
        return source
