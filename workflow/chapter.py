"""Run one chapter: `python -m workflow.chapter mask_rcnn [-p profile coco -p data_root /data/coco]`.

The text `notebooks/NAME.py` is the truth. It is read with jupytext, executed with papermill in the repository's root,
and written as a notebook that holds nothing of the moment it ran: without parameters as `notebooks/NAME.ipynb`, the one
that is committed, with parameters under `build/notebooks/`. A chapter that fails writes nothing.
"""
from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from workflow import contents, fingerprint
from workflow.fingerprint import ROOT

METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


class Client(PapermillNotebookClient):
    """Shows on the chapter's bar what the running cell writes to its standard error: the bar inside."""

    shown = 0.0

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] == "stream" and content["name"] == "stderr":
            lines = [line.strip() for line in re.split(r"[\r\n]", content["text"]) if line.strip()]
            bar = self.nb_man.pbar
            if lines and time.monotonic() - self.shown > bar.mininterval:
                self.shown = time.monotonic()
                bar.set_postfix_str(lines[-1][:90])
        return super().process_message(msg, cell, cell_index)


class Engine(NBClientEngine):
    """papermill's own engine, with that client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:  # type: ignore[override]
        client = Client(nb_man, timeout=None, kernel_name=kernel_name, startup_timeout=120)
        # What the kernel itself says goes to a file; what cells write arrives as messages.
        log = ROOT / "build/kernel.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            client.execute(cwd=str(ROOT), stderr=file)


papermill_engines.register("chapter", Engine)


def read(name: str) -> nbformat.NotebookNode:
    """The chapter's text as a notebook without outputs; cells are numbered, so that two readings are the same."""
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {})
    return notebook


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Take out what differs from one run to the next: times, progress bars, papermill's and the kernel's notes."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
        tags = [tag for tag in cell.metadata.get("tags", []) if not tag.startswith("papermill-")]
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
                if "image/jpeg" in output.get("data", {}):
                    output.data.pop("image/png", None)  # Pillow gives both; photographs are ten times smaller so
    return notebook


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    nbformat.write(notebook, part)
    os.replace(part, path)


def parameters_of(notebook: nbformat.NotebookNode, given: dict[str, Any]) -> dict[str, Any]:
    """The values of the parameters cell, with those given in their place."""
    values: dict[str, Any] = {}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            exec(cell.source, {}, values)
    return values | given


def prepare(output: Path, decides: str) -> None:
    """Keep what an interrupted run of the same chapter left in its output folder; move aside what another version left.

    Nothing is removed: the folder of the other version gets a number, such as `runs/rpn.1`.
    """
    note = output / "fingerprint"
    if (ROOT / "runs").resolve() in output.resolve().parents:
        if output.exists() and not (note.exists() and note.read_text() == decides):
            aside = next(path for n in itertools.count(1)
                         if not (path := output.with_name(f"{output.name}.{n}")).exists())
            output.rename(aside)
            print(f"{output.relative_to(ROOT)} is of another version of its chapter: it is now "
                  f"{aside.relative_to(ROOT)}", file=sys.stderr)
        output.mkdir(parents=True, exist_ok=True)
        note.write_text(decides)


def run(name: str, given: dict[str, Any]) -> Path:
    """Execute a chapter and write its notebook.

    Returns:
        The notebook's path.

    Raises:
        PapermillExecutionError: a cell raised an error.
    """
    needs = contents.chapters()
    notebook = read(name)
    values = parameters_of(notebook, given)
    if "output" in values:
        prepare(ROOT / values["output"], fingerprint.run(name, needs, given))
    target = ROOT / "build/notebooks" / values.get("profile", "") / f"{name}.ipynb" if given else \
        ROOT / "notebooks" / f"{name}.ipynb"
    number = f"chapter {list(needs).index(name) + 1} of {len(needs)}: " if name in needs else ""
    wide = sys.stderr.isatty()
    bar = dict(desc=f"{number}{name}", dynamic_ncols=wide, mininterval=0.3 if wide else 20, file=sys.stderr,
               bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} cells, {elapsed}{postfix}")
    write(clean(papermill.execute_notebook(notebook, None, given, engine_name="chapter", kernel_name="python3",
                                           progress_bar=bar)), target)
    return target


def value(text: str) -> Any:
    """A parameter as typed: a number, true, null, or else a string."""
    return yaml.safe_load(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.chapter", description="Run one chapter of the book.")
    parser.add_argument("name", choices=sorted(path.stem for path in (ROOT / "notebooks").glob("*.py")
                                               if path.stem != "conftest"))
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a value for the chapter's parameters cell")
    parser.add_argument("--stamp", type=Path, help="file written when the chapter is done; its older ones go")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        target = run(options.name, {key: value(text) for key, text in options.p})
    except PapermillExecutionError as error:
        sys.exit(f"\n{options.name}: cell {error.cell_index} raised {error.ename}: {error.evalue}\n\n{error.source}")
    if options.stamp:
        options.stamp.parent.mkdir(parents=True, exist_ok=True)
        for old in options.stamp.parent.glob(f"{options.name}.{'?' * fingerprint.LENGTH}"):
            old.unlink()
        options.stamp.write_text(f"{time.monotonic() - started:.0f} s\n")
    print(f"{target.relative_to(ROOT)}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
