"""Train the chapters' models with more seeds: `make seeds [ONLY=*rcnn*]`, which `workflow/config.yaml` lists.

Each model and seed is a process of its own, which takes up what a stopped one left. Their records are written to
`build/records/`; `python -m workflow.accept seeds` takes them over into the repository. What has been trained and is up
to date, on this machine or in the repository, is not trained again.
"""
from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from fnmatch import fnmatchcase

from workflow import book, fingerprint, inside
from workflow.accept import SEEDS
from workflow.chapter import RECORDS, commit, copy_records, finish, prepare
from workflow.fingerprint import ROOT, RUNS, Run

PROFILE = "pocket"


def name_of(model: str, seed: int) -> str:
    """What the run of a model with a seed is called."""
    return f"{model}.seed{seed}"


def lists() -> dict[str, Run]:
    """The lists of all runs with other seeds that are up to date, this machine's before the committed ones."""
    found: dict[str, Run] = fingerprint.read_all(RUNS / "seeds.json")
    found |= {path.stem: json.loads(path.read_text("utf-8")) for path in SEEDS.glob("*.json")}
    return {name: run for name, run in found.items() if not fingerprint.library_changes(run, PROFILE)[0]}


def command(model: str, seed: int) -> list[str]:
    """The command that trains a model with a seed."""
    return [sys.executable, "-m", "workflow.seeds", "--one", model, str(seed)]


def train(model: str, seed: int) -> None:
    """Train and evaluate a model with a seed, write its records and the list of what the run depends on."""
    inside.begin()
    started, now = time.monotonic(), datetime.datetime.now(datetime.UTC)
    settings = fingerprint.config()["seeds"]["models"][model]
    name, (sha, clean) = name_of(model, seed), commit()
    run: Run = dict(chapter=name, profile=PROFILE, given={}, parameters=dict(seed=seed), code="", needs={}, error=None,
                    drawn=fingerprint.drawn(PROFILE), modules=fingerprint.modules(), commit=sha, clean=clean,
                    date=now.isoformat(timespec="seconds"))
    output = ROOT / "runs/seeds" / name
    prepare(output, run, lists().get(name))
    root = fingerprint.config()["profiles"][PROFILE]["pocket_zoo"]["root"]

    from detcore.engine.evaluate import make_proposals
    from detcore.experiment import Experiment

    def experiment(model: str, **options: object) -> Experiment:
        return Experiment(model, ROOT / root, profile=PROFILE, seed=seed, records=RECORDS, **options)  # type: ignore

    proposals = None
    if first := settings.get("proposals"):
        rpn = experiment(first, output=ROOT / "runs/seeds" / name_of(first, seed))
        proposals = make_proposals(first, ROOT / root, output / "proposals.npz", weights=rpn.checkpoint,
                                   profile=PROFILE)
    exp = experiment(settings.get("model", model), output=output, proposals=proposals,
                     options=settings.get("options", {}))
    exp.train()
    print(f"{name}\n{exp.evaluate()}", flush=True)
    seen = inside.seen()
    run |= dict(modules={module: fingerprint.modules()[module] for module in seen["modules"]},
                records=sorted(os.path.basename(path) for path in seen["written"]
                               if os.path.dirname(os.path.abspath(path)) == str(RECORDS)),
                machine=seen["machine"], seconds=round(time.monotonic() - started))
    SEEDS.mkdir(parents=True, exist_ok=True)
    (SEEDS / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n")
    finish(output, run)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.seeds", description=__doc__)
    parser.add_argument("--only", default="*", help="models to train, with wildcards")
    parser.add_argument("--jobs", type=int, help="runs side by side; as many as there are cores by default")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "SEED"), help="train this model with this seed")
    options = parser.parse_args()
    if options.one:
        train(options.one[0], int(options.one[1]))
        return
    settings = fingerprint.config()["seeds"]
    models = [model for model in settings["models"] if fnmatchcase(model, options.only)]
    if not models:
        sys.exit(f"No model matches {options.only}: the models are {', '.join(settings['models'])}.")
    book.draw(PROFILE)
    copy_records(RECORDS)
    done, jobs = lists(), dict[str, tuple[list[str], list[str]]]()
    for seed in settings["values"]:
        for model in models:
            if name_of(model, seed) in done:
                continue
            waits = []
            if first := settings["models"][model].get("proposals"):
                waits = [name_of(first, seed)]
                if not (ROOT / "runs/seeds" / waits[0] / "model.safetensors").exists():
                    jobs[waits[0]] = command(first, seed), []
            jobs[name_of(model, seed)] = command(model, seed), waits
    threads = fingerprint.config()["profiles"][PROFILE]["threads"]
    failed = book.run(jobs, options.jobs or max(1, (os.cpu_count() or 1) // threads), threads)
    if failed:
        sys.exit(f"These runs failed: {', '.join(failed)}. make seeds goes on with them.")
    print(f"{len(jobs)} runs. make accept NAME=seeds takes their records over." if jobs else
          "Every model has been trained with every seed, and nothing has changed since.")


if __name__ == "__main__":
    main()
