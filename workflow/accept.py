"""Take runs on this machine over into the repository: `python -m workflow.accept rpn`, `all` or `seeds`.

Of a chapter: the executed notebook, the list of what it depends on, and the records that it wrote. A chapter of which
only the text has changed since its committed run takes that text. Nothing is taken from a run that failed, that was
given parameters, or whose code is not that of a commit.
"""
from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from detcore.records import read_record
from workflow import contents, fingerprint, text
from workflow.chapter import COMMITTED_RECORDS, RECORDS
from workflow.fingerprint import BUILD, ROOT, RUNS, Run

SEEDS = BUILD / "seeds"  # a list for each run of `make seeds`


def problem(run: Run) -> str | None:
    """In a sentence why a run cannot be taken over; None if it can."""
    name = run["chapter"]
    if run["error"]:
        return f"The run of {name} failed ({run['error']}): run it again, make book NAME={name}."
    if run["given"]:
        given = ", ".join(f"{key}={value}" for key, value in run["given"].items())
        return f"The run of {name} was given {given}; the book has runs with a chapter's own parameters: " \
               f"make book NAME={name}."
    if run["commit"] is None:
        return f"The run of {name} was made outside of a git checkout: nobody could find its code again."
    if not run["clean"]:
        return f"The run of {name} was made with changes that are in no commit: commit them, then " \
               f"make book NAME={name}."
    return None


def take_records(names: list[str], commit: str, folder: Path = RECORDS) -> None:
    """Copy records; each carries the commit of its run, which outputs that are already accepted do not change."""
    for name in names:
        record = read_record(folder / name)
        record.model_copy(update=dict(commit=commit)).write(COMMITTED_RECORDS / name)


def accept(name: str) -> str | None:
    """Take over a chapter's run, or its text; in a sentence why it cannot be, None if it is done."""
    folder = fingerprint.build_folder("pocket", name)
    run, before = fingerprint.read(folder / "run.json"), fingerprint.committed(name)
    target = ROOT / "notebooks" / f"{name}.ipynb"
    if run is None or run == before:
        if before is None:
            return f"{name} has not run on this machine: make book NAME={name}."
        if before["code"] != fingerprint.chapter_code(name):
            return f"The code of {name} has changed since it ran: make book NAME={name}."
        text.write(text.load(name, target), target)
        return None
    if wrong := problem(run):
        return wrong
    state = fingerprint.states()[name]
    if not state.here or state.stale:
        return f"{name} has changed since it ran ({'; '.join(state.stale) or 'the committed run is newer'}): " \
               f"make book NAME={name}."
    text.write(text.load(name, folder / f"{name}.ipynb"), target)
    take_records(run["records"], run["commit"])
    others = {file for other in contents.chapters() if other != name
              for file in (fingerprint.committed(other) or {}).get("records", [])}
    for file in set((before or {}).get("records", [])) - set(run["records"]) - others:
        (COMMITTED_RECORDS / file).unlink(missing_ok=True)
    RUNS.mkdir(exist_ok=True)
    shutil.copyfile(folder / "run.json", RUNS / f"{name}.json")
    return None


def accept_seeds() -> list[str]:
    """Take over the records of `make seeds`; sentences about those that cannot be."""
    path = RUNS / "seeds.json"
    lists = fingerprint.read_all(path)
    sentences = []
    found = sorted(SEEDS.glob("*.json"))
    for file in found:
        run = fingerprint.read(file) or {}
        if wrong := problem(run | dict(given={})):
            sentences.append(wrong.replace(f"make book NAME={run['chapter']}", "make seeds"))
            continue
        take_records(run["records"], run["commit"])
        lists[file.stem] = run
    if not found:
        sentences.append("No model has been trained with other seeds on this machine: make seeds.")
    else:
        RUNS.mkdir(exist_ok=True)
        path.write_text(json.dumps(dict(sorted(lists.items())), indent=1) + "\n")
    return sentences


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.accept", description=__doc__)
    parser.add_argument("name", help="a chapter, all, or seeds")
    name = parser.parse_args().name
    chapters = list(contents.chapters())
    if name not in (*chapters, "all", "seeds"):
        sys.exit(f"There is no chapter {name}: name one of {', '.join(chapters)}, all, or seeds.")
    if name == "seeds":
        sentences = accept_seeds()
    else:
        sentences = []
        for chapter in chapters if name == "all" else [name]:
            if wrong := accept(chapter):
                sentences.append(wrong)
            else:
                print(f"notebooks/{chapter}.ipynb is as it ran.")
    if sentences:
        sys.exit("\n".join(sentences))


if __name__ == "__main__":
    main()
