"""Run one chapter: `python -m workflow.chapter mask_rcnn [-p profile coco -p data_root /data/coco]`.

The text `notebooks/NAME.py` is read with jupytext, executed with papermill in the repository's root, and written as a
notebook that holds nothing of the moment it ran. Everything that a run leaves is under `build/` and `runs/`:
`build/PROFILE/NAME/NAME.ipynb`, the list `run.json` of what it depends on (see `workflow.fingerprint`), and the records
that it writes to `build/records/`. `python -m workflow.accept NAME` takes them over into the repository.
"""
from __future__ import annotations

import argparse
import datetime
import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from detcore.records import read_json
from workflow import contents, fingerprint, text
from workflow.faults import sentences
from workflow.fingerprint import BUILD, ROOT

RECORDS = BUILD / "records"
COMMITTED_RECORDS = ROOT / "book/records"
NOTE = "made-by.json"  # in a run's folder: what it was made by
SHORT = ".short"  # the folders of runs of a few steps; they are not kept
# What `workflow.accept` writes; whether these files differ from the commit decides no result.
OUTPUTS = ("notebooks/*.ipynb", "notebooks/runs", "book/records")


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
        log = BUILD / "kernel.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("a") as file:
            client.execute(cwd=str(ROOT), stderr=file)


papermill_engines.register("chapter", Engine)


def parameters_of(notebook: nbformat.NotebookNode, given: dict[str, Any]) -> dict[str, Any]:
    """The values of the parameters cell, with those given in their place."""
    values: dict[str, Any] = {}
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            exec(cell.source, {}, values)
    return values | given


def short(name: str, values: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Other folders for a run of a few steps, so that it does not stand where a whole one is looked for."""
    folders = dict(output=f"runs/{name}{SHORT}/run", records=f"build/{values.get('profile', 'pocket')}/{name}/records")
    return {key: value for key, value in folders.items()
            if given.get("steps") is not None and key in values and key not in given}


def prepare(output: Path, run: fingerprint.Run, before: fingerprint.Run | None) -> None:
    """Keep what an interrupted run of the same chapter left in its output folder; move aside anything else.

    Nothing is removed: the folder that was there gets a number, such as `runs/rpn.1`.

    Args:
        run: the list of the run that begins, with all modules.
        before: the list of an earlier run, which tells the modules that matter.
    """
    note = output / NOTE
    if output.name.endswith(SHORT):
        shutil.rmtree(output, ignore_errors=True)
    if output.exists():
        found = read_json(note) if note.exists() else {}
        matter = [module for module in (before or run)["modules"] if fingerprint.decides(module)]
        same = all(found.get(key) == run[key] for key in ("code", "parameters", "drawn", "needs")) and \
            all(found["modules"].get(module) == run["modules"].get(module) for module in matter)
        if not same or found["finished"]:
            aside = next(path for n in itertools.count(1)
                         if not (path := output.with_name(f"{output.name}.{n}")).exists())
            output.rename(aside)
            why = "is a finished run" if same else "is of another version of its chapter"
            print(f"{output.relative_to(ROOT)} {why}: it is now {aside.relative_to(ROOT)}", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(run | dict(finished=False)))


def folder_of(values: dict[str, Any]) -> Path | None:
    """The folder in `runs/` in which a chapter's output is; None where its output is elsewhere, or it has none."""
    output, runs = ROOT / values.get("output", ""), ROOT / "runs"
    return runs / output.relative_to(runs).parts[0] if runs in output.parents else None


def finish(output: Path, run: fingerprint.Run) -> None:
    """Note that the run in a folder is over."""
    (output / NOTE).write_text(json.dumps(run | dict(finished=True)))


def files_are_here(name: str, profile: str) -> bool:
    """Whether the folder in `runs/` of a chapter holds what its code gives as it is now."""
    run = fingerprint.read(ROOT / "runs" / name / NOTE)
    return bool(run and run["finished"] and run["given"] == fingerprint.parameters(profile) and
                run["code"] == fingerprint.chapter_code(name) and not fingerprint.library_changes(run, profile)[0])


def copy_records(folder: Path) -> None:
    """Put the committed records where chapters read them, beside those that this machine's runs have written.

    A record that was copied and has been left alone follows the committed one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    note = folder / ".copied"
    copied: dict[str, str] = read_json(note) if note.exists() else {}
    new = {}
    for path in sorted(COMMITTED_RECORDS.glob("*.json")):
        content, target = path.read_bytes(), folder / path.name
        new[path.name] = fingerprint.digest(content)
        if not target.exists() or fingerprint.digest(target.read_bytes()) == copied.get(path.name) != new[path.name]:
            part = target.with_name(f".{target.name}.{os.getpid()}")
            part.write_bytes(content)
            os.replace(part, target)
    for name in copied.keys() - new.keys():
        if (folder / name).exists() and fingerprint.digest((folder / name).read_bytes()) == copied[name]:
            (folder / name).unlink()
    if new != copied:
        note.write_text(json.dumps(new))


def commit() -> tuple[str | None, bool]:
    """The commit that is checked out, and whether the tracked files are those of it, outputs of chapters aside."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".",
                      *(f":(exclude,glob){path}{'' if '*' in path else '/**'}" for path in OUTPUTS))
        return git("rev-parse", "--short=12", "HEAD"), not changed
    except (OSError, subprocess.CalledProcessError):
        return None, False


def data_of(root: Path) -> dict[str, str]:
    """The fingerprints of a data set's annotation files, as records have them, if it is in COCO's layout."""
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest()[:fingerprint.LENGTH]
            for path in sorted(root.glob("annotations/instances_*.json"))}


def run(name: str, given: dict[str, Any]) -> Path:
    """Execute a chapter; write its notebook, and the list of what it depends on.

    Returns:
        The notebook's path.

    Raises:
        PapermillExecutionError: a cell raised an error; the list then says which, and no notebook is written.
    """
    started, now = time.monotonic(), datetime.datetime.now(datetime.UTC)
    notebook = text.read(name)
    values = parameters_of(notebook, given)
    profile = values.get("profile", "pocket")
    given_here = short(name, values, given)
    values |= given_here
    needs, states = contents.chapters(), fingerprint.states(profile)
    sha, clean = commit()
    done = dict(
        chapter=name, profile=profile, given=given, parameters=values, code=fingerprint.chapter_code(name),
        drawn=fingerprint.drawn(profile), modules=fingerprint.modules(),
        needs={need: fingerprint.stamp(run) if (run := states[need].run) else None for need in needs.get(name, [])},
        commit=sha, clean=clean, date=now.isoformat(timespec="seconds"), error=None)
    if output := folder_of(values):
        prepare(output, done, fingerprint.ours(profile, name) or fingerprint.committed(name))
    if "records" in values:
        copy_records(ROOT / values["records"])
    folder = fingerprint.build_folder(profile, name)
    folder.mkdir(parents=True, exist_ok=True)
    seen = folder / "seen.json"
    inside = "__import__('workflow.inside').inside"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(f"{inside}.begin()", id="runner-begin"))
    notebook.cells.append(nbformat.v4.new_code_cell(f"{inside}.end({str(seen)!r})", id="runner-end"))
    number = f"chapter {list(needs).index(name) + 1} of {len(needs)}: " if name in needs else ""
    wide = sys.stderr.isatty()
    bar = dict(desc=f"{number}{name}", dynamic_ncols=wide, mininterval=0.3 if wide else 20, file=sys.stderr,
               bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} cells, {elapsed}{postfix}")
    try:
        executed = papermill.execute_notebook(notebook, None, given_here | given, engine_name="chapter",
                                              kernel_name="python3", progress_bar=bar)
    except PapermillExecutionError as error:
        done |= dict(error=f"{error.ename}: {error.evalue}", modules={}, records=[])
        (folder / "run.json").write_text(json.dumps(done, indent=1) + "\n")
        raise
    told = read_json(seen)
    seen.unlink()
    executed.cells = [cell for cell in executed.cells if not cell.id.startswith("runner-")]
    records = (ROOT / values.get("records", "build/records")).resolve()
    done |= dict(
        modules={module: fingerprint.modules()[module] for module in told["modules"]},
        records=sorted(path.name for path in map(Path, told["written"]) if (ROOT / path).resolve().parent == records),
        data=data_of(ROOT / values["data_root"]) if "data_root" in values else {},
        machine=told["machine"], seconds=round(time.monotonic() - started))
    target = folder / f"{name}.ipynb"
    text.write(text.clean(executed), target)
    (folder / "run.json").write_text(json.dumps(done, indent=1) + "\n")
    if output:
        finish(output, done)
    return target


def value(typed: str) -> Any:
    """A parameter as typed: a number, true, null, or else a string."""
    return yaml.safe_load(typed)


@sentences()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.chapter", description="Run one chapter of the book.")
    parser.add_argument("name", choices=text.names())
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="a value for the chapter's parameters cell")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        target = run(options.name, {key: value(typed) for key, typed in options.p})
    except PapermillExecutionError as error:
        sys.exit(f"\n{options.name}: cell {error.cell_index - 1} raised {error.ename}: {error.evalue}\n\n"
                 f"{error.source}")
    print(f"{target.relative_to(ROOT)}: {time.monotonic() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
