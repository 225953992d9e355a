"""`make book`: draw the data, run the chapters that are out of date, build the pages where something has changed.

Where nothing is out of date, and no chapter has run on this machine yet, one chapter runs as a proof (`proof` in
`workflow/config.yaml`): its results are shown beside the committed ones. Everything is written under `build/`.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from detcore.records import read_json
from detcore.runs import alone, take
from workflow import contents, fingerprint, machine
from workflow.chapter import RECORDS, copy_records, files_are_here
from workflow.faults import sentences
from workflow.fingerprint import BUILD, ROOT


def draw(profile: str) -> None:
    """Draw the profile's data, where it is one that is drawn; what is there already stays."""
    settings = fingerprint.config()["profiles"][profile]
    if zoo := settings.get("pocket_zoo"):
        plan, wanted = ROOT / zoo["root"] / "pocket_zoo.json", fingerprint.drawn(profile) or {}
        if plan.exists() and (wanted | dict(finished=True)).items() <= read_json(plan).items():
            return
        options = [word for key, value in zoo.items() for word in (f"--{key}", str(value))]
        subprocess.run([sys.executable, "-m", "detcore", "data", "pocket", *options, "--workers", str(os.cpu_count())],
                       cwd=ROOT, check=True)


def to_run(profile: str, which: str, names: Iterable[str]) -> dict[str, str]:
    """The chapters to run, each with the reason.

    Args:
        which: "all", "none" or "changed".
        names: chapters to run whatever their state.
    """
    states, found = fingerprint.states(profile), {name: "asked for" for name in names}
    if which == "all":
        found |= dict.fromkeys(states, "all")
    if which == "changed" and not found:
        found = {name: f"out of date because of {'; '.join(state.stale)}" for name, state in states.items()
                 if state.stale}
        proof = fingerprint.config()["proof"]
        if not found and profile == "pocket" and proof in states and not any(s.here for s in states.values()):
            found[proof] = "the proof"
    for name in reversed(list(states)):
        if name in found:
            found |= {need: f"{name} reads its files" for need in contents.file_needs(name)
                      if need not in found and not files_are_here(need, profile)}
    return {name: found[name] for name in states if name in found}


def run(jobs: Mapping[str, tuple[list[str], Iterable[str]]], parallel: int, threads: int) -> list[str]:
    """Run commands side by side, each after those that it waits for.

    Args:
        jobs: for each name its command, and the names it waits for.
        parallel: how many at a time, each of them on so many `threads`.

    Returns:
        The names of those that failed, or did not run because one that they wait for failed.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    waiting, failed = dict(jobs), list[str]()
    running: dict[Future[int], str] = {}
    done: set[str] = set()
    with ThreadPoolExecutor(parallel) as pool:
        while waiting or running:
            for name, (command, needs) in list(waiting.items()):
                if broken := [need for need in needs if need in failed]:
                    print(f"{name} is not run, since {broken[0]} failed.", file=sys.stderr)
                    failed.append(name)
                    del waiting[name]
                elif all(need in done or need not in jobs for need in needs):
                    running[pool.submit(subprocess.call, command, cwd=ROOT, env=environment)] = name
                    del waiting[name]
            finished: set[Future[int]] = wait(running, return_when=FIRST_COMPLETED)[0] if running else set()
            for future in finished:
                name = running.pop(future)
                (failed.append if future.result() else done.add)(name)
    return failed


def run_chapters(profile: str, chosen: Mapping[str, str], parallel: int | None, submit: str) -> list[str]:
    """Run chapters; those that read from another wait for it. The names of those that failed."""
    settings, needs = fingerprint.config()["profiles"][profile], contents.chapters()
    threads = settings["threads"]
    given = [word for key, value in settings["parameters"].items() for word in ("-p", key, str(value))]
    jobs = {name: ([*shlex.split(submit), sys.executable, "-m", "workflow.chapter", name, *given],
                   [need for need in needs[name] if need in chosen]) for name in chosen}
    return run(jobs, parallel or max(1, (os.cpu_count() or 1) // threads), threads)


def page_inputs() -> str:
    """A digest of all that the pages are made from, dates aside."""
    files = [ROOT / "_config.yml", ROOT / "_toc.yml", machine.FILE]
    for folder, patterns in (("book", ("*",)), ("detcore", ("*.py", "*.csv")), ("notebooks", ("*.py", "*.ipynb")),
                             ("workflow", ("*.py", "*.yaml")), ("build", ("*/*/*.ipynb", "*/*/run.json")),
                             (".", ("*.md", "*.cff", "LICENSE", "NOTICE")), ("tests/reference", ("*.json",))):
        for pattern in patterns:
            found = (ROOT / folder).rglob(pattern) if folder not in ("build", ".") else (ROOT / folder).glob(pattern)
            files += [path for path in found if path.is_file() and path.suffix not in (".mo", ".pyc")]
    total = hashlib.sha256()
    for path in sorted({path for path in files if path.exists()}):
        total.update(f"{path.relative_to(ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def build_pages(profile: str, languages: Iterable[str]) -> list[str]:
    """Build the pages of each language where something has changed; the languages that failed."""
    note = BUILD / "book/made-from.json"
    inputs = f"{profile} {page_inputs()}"
    made: dict[str, str] = read_json(note) if note.exists() else {}
    jobs: dict[str, tuple[list[str], Iterable[str]]] = {
        language: ([sys.executable, "-m", "workflow.pages", language, "--profile", profile], ())
        for language in languages
        if made.get(language) != inputs or not (BUILD / "book" / language / "book/index.html").exists()}
    failed = run(jobs, os.cpu_count() or 1, 1)
    made |= {language: inputs for language in jobs if language not in failed}
    if jobs:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(made, indent=1) + "\n")
    return failed


def report(profile: str, say: Callable[[str], None] = print) -> None:
    """Say which chapters are out of date, and what has changed that asks for no run."""
    for name, state in fingerprint.states(profile).items():
        if state.stale:
            say(f"{name} is out of date because of {'; '.join(state.stale)}.")
    noted = sorted({module for state in fingerprint.states(profile).values() for module in state.noted})
    if noted:
        say(f"Changed since some chapters ran, without making them out of date: {', '.join(noted)}. Run all of them "
            "before a release: make book RUN=all.")


@sentences()
@alone
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.book", description=__doc__)
    parser.add_argument("--profile", default="pocket", choices=fingerprint.config()["profiles"])
    parser.add_argument("--run", default="changed", choices=["changed", "all", "none"], help="chapters to run")
    parser.add_argument("--name", default="", help="run these chapters, whatever has changed")
    parser.add_argument("--jobs", type=int, help="chapters side by side; by default one for each of the profile's "
                        "threads that the machine has cores for")
    parser.add_argument("--submit", default="", help="a command that runs another on a cluster and waits for it, such "
                        "as 'srun --gpus 8' or 'qsub -sync y -b y'")
    parser.add_argument("--no-pages", action="store_true", help="data and chapters alone")
    options = parser.parse_args()
    names = options.name.replace(",", " ").split()
    if unknown := [name for name in names if name not in contents.chapters()]:
        sys.exit(f"There is no chapter {unknown[0]}: the chapters are {', '.join(contents.chapters())}.")
    BUILD.mkdir(parents=True, exist_ok=True)
    take(BUILD)
    draw(options.profile)
    copy_records(RECORDS)
    chosen = to_run(options.profile, options.run, names)
    for name, why in chosen.items():
        print(f"{name} runs ({why})", flush=True)
    failed = run_chapters(options.profile, chosen, options.jobs, options.submit)
    if failed:
        sys.exit(f"These chapters failed: {', '.join(failed)}. make book NAME={failed[0]} goes on with the first.")
    if not chosen:
        report(options.profile)
    found = machine.write(options.profile)
    if found["rows"]:
        print(f"\nOn this machine, in percent:\n{machine.table(found)}\n", flush=True)
    if not options.no_pages:
        if failed := build_pages(options.profile, fingerprint.config()["languages"]):
            sys.exit(f"The pages in these languages failed: {', '.join(failed)}.")
        print(f"The book: {(BUILD / 'book/index.html').as_uri()}   (or: make serve)")


if __name__ == "__main__":
    main()
