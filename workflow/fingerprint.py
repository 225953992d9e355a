"""What a run of a chapter depends on, and whether that has changed since.

A run leaves `run.json`, like a compiler's dependency file: a hash of the chapter's own code, the `detcore` modules that
its process loaded with the hash of each one's code (see `detcore.runs.code`), its parameters, what the data was drawn
from, and the digests of the chapters that it reads from. Those of the committed notebooks are in `notebooks/runs/`.
Dates of files play no part.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from detcore.errors import DataError
from detcore.records import read_json
from detcore.runs import code
from workflow import contents
from workflow.contents import ROOT

BUILD = ROOT / "build"
RUNS = ROOT / "notebooks/runs"
LENGTH = 12
# A change in these changes results. One in any other room (engine, data, metrics, pocket, draw ...) is noted, and asks
# for RUN=all before a release.
DECIDING = ("detectors", "structures", "recipe", "methods", "layers", "ops", "backbones", "necks", "zoo.families")
Run = dict[str, Any]  # the content of a run.json
KINDS = dict(code=str, given=dict, needs=dict, modules=dict, records=list)  # of what is looked at in every one


def digest(*parts: Any) -> str:
    """A short hash of strings, bytes and JSON values."""
    total = hashlib.sha256()
    for part in parts:
        part = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:LENGTH]


@cache
def modules() -> dict[str, str]:
    """The hash of every module of `detcore`, by its name."""
    found = {}
    for path in sorted((ROOT / "detcore").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = digest(code(path.read_text("utf-8")))
    return found


def decides(module: str) -> bool:
    """Whether a change of a module makes what ran with it out of date."""
    room = module.removeprefix("detcore.")
    return any(room == name or room.startswith(f"{name}.") for name in DECIDING)


def chapter_code(name: str) -> str:
    """The hash of a chapter's own code, without its texts and comments."""
    return digest(code((ROOT / "notebooks" / f"{name}.py").read_text("utf-8")))


@cache
def config() -> dict[str, Any]:
    """`workflow/config.yaml`."""
    return yaml.safe_load((ROOT / "workflow/config.yaml").read_text("utf-8"))


def parameters(profile: str) -> dict[str, Any]:
    """What a profile gives to every chapter."""
    return config()["profiles"][profile]["parameters"]


@cache
def drawn(profile: str) -> dict[str, Any] | None:
    """What the profile's data is drawn from, with the version of the drawing; None where it is not drawn."""
    if not (zoo := config()["profiles"][profile].get("pocket_zoo")):
        return None
    # Read from the text, since an import of it would import PyTorch.
    version = re.search(r"^VERSION = (\d+)", (ROOT / "detcore/pocket/pocket_zoo.py").read_text("utf-8"), re.MULTILINE)
    assert version
    return {key: value for key, value in zoo.items() if key != "root"} | dict(version=int(version[1]))


def stamp(run: Mapping[str, Any]) -> str:
    """A digest of all that decides a run's results."""
    return digest(run["code"], run["given"], run["drawn"], run["needs"],
                  {name: value for name, value in run["modules"].items() if decides(name)})


def build_folder(profile: str, name: str) -> Path:
    """Where a run on this machine leaves its notebook and its list."""
    return BUILD / profile / name


def read(path: Path) -> Run | None:
    """A run's list, None where there is none; raises a DataError if it is damaged."""
    return _sound(path, read_json(path)) if path.exists() else None


def read_all(path: Path) -> dict[str, Run]:
    """The lists of several runs in one file, by name, none where there is none; raises a DataError as `read` does."""
    return {name: _sound(path, run) for name, run in read_json(path).items()} if path.exists() else {}


def _sound(path: Path, run: Any) -> Run:
    for name, kind in KINDS.items():
        if not isinstance(run, Mapping) or not isinstance(run.get(name), kind):
            raise DataError(f"The list of a run {path} is damaged, {name!r} in it is missing or of the wrong kind: "
                            "remove it, and run its chapter again.")
    return dict(run)


def committed(name: str) -> Run | None:
    """The list of the committed run of a chapter."""
    return read(RUNS / f"{name}.json")


def ours(profile: str, name: str) -> Run | None:
    """The list of a chapter's run on this machine, if it is one of full length with the profile's parameters."""
    run = read(build_folder(profile, name) / "run.json")
    return run if run and not run["error"] and run["given"] == parameters(profile) else None


@dataclass
class State:
    """Where a chapter stands.

    Attributes:
        run: the run that stands for it: this machine's, or else the committed one; None where there is none.
        here: whether that is this machine's.
        stale: in words what has changed of that which decides; nothing if it is up to date.
        noted: what else has changed, and asks for no run.
    """

    run: Run | None = None
    here: bool = False
    stale: list[str] = field(default_factory=list)
    noted: list[str] = field(default_factory=list)


def library_changes(run: Run, profile: str) -> tuple[list[str], list[str]]:
    """What has changed of the library and of the data since a run: that which decides, and the rest."""
    changed = [module for module, value in run["modules"].items() if modules().get(module) != value]
    stale = [module for module in changed if decides(module)]
    if run["drawn"] != drawn(profile):
        stale.insert(0, "what the data is drawn from")
    return stale, [module for module in changed if not decides(module)]


def changes(name: str, run: Run, profile: str, before: Mapping[str, State], needs: list[str]) -> State:
    """What has changed since a run.

    Args:
        before: the states of the chapters before it in the book.
        needs: those that it reads from.
    """
    state = State(run)
    if run["code"] != chapter_code(name):
        state.stale.append("its own code")
    if run["given"] != parameters(profile):
        state.stale.append("its parameters")
    stale, state.noted = library_changes(run, profile)
    state.stale += stale
    for need in needs:
        other = before[need]
        if other.stale:
            state.stale.append(f"{need}, which it reads from and which is out of date")
        elif run["needs"].get(need) != (stamp(other.run) if other.run else None):
            state.stale.append(f"{need}, which it reads from and which has been run anew")
    if gone := set(run["needs"]) - set(needs):
        state.stale.append(f"{', '.join(sorted(gone))}, which it no longer reads from")
    return state


def states(profile: str = "pocket", *, here: bool = True) -> dict[str, State]:
    """Where each chapter stands, in the book's order.

    Args:
        here: look at this machine's runs, too; otherwise at the committed ones alone.
    """
    found: dict[str, State] = {}
    for name, needs in contents.chapters().items():
        mine = ours(profile, name) if here else None
        theirs = committed(name) if profile == "pocket" else None
        tried = [(run, run is mine) for run in (mine, theirs) if run]
        if tried:
            for run, is_mine in reversed(tried):
                state = changes(name, run, profile, found, needs)
                state.here = is_mine
                if not state.stale or name not in found or found[name].stale:
                    found[name] = state
        else:
            # A notebook from before there were lists is taken as it is.
            old = profile == "pocket" and (ROOT / "notebooks" / f"{name}.ipynb").exists()
            found[name] = State(noted=["its run left no list of what it depends on"]) if old else \
                State(stale=["a run that it lacks"])
    return found
