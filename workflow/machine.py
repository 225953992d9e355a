"""What chapters gave on this machine beside the committed results, for the terminal and the page "On this machine"."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from detcore.records import Record, read_record
from workflow import fingerprint
from workflow.chapter import COMMITTED_RECORDS, RECORDS
from workflow.fingerprint import BUILD

FILE = BUILD / "machine.json"
# Of the many metrics of an evaluation those that a chapter speaks of.
SHOWN = ("bbox_AP", "segm_AP", "panoptic_PQ", "proposal_AR100", "proposal_AR1000", "mIoU", "probe_accuracy")
Row = dict[str, Any]


def compare(profile: str) -> list[Row]:
    """A row for each result of each chapter that has run on this machine, with the committed value and interval."""
    rows = []
    for name, state in fingerprint.states(profile).items():
        if not (state.here and state.run):
            continue
        for file in state.run["records"]:
            here, before = _record(RECORDS / file), _record(COMMITTED_RECORDS / file)
            if here is None or here.kind != "evaluate":
                continue
            for metric in (m for m in SHOWN if here.metrics.get(m) is not None):
                committed = before.metrics.get(metric) if before else None
                interval = before.intervals.get(metric) if before else None
                value = here.metrics[metric]
                assert value is not None
                rows.append(dict(chapter=name, model=here.model, metric=metric, committed=committed, interval=interval,
                                 here=value, within=interval[0] <= value <= interval[1] if interval else None))
    return rows


def summary(profile: str) -> dict[str, Any]:
    """The rows, and each chapter's run: seconds, machine, date, commit; those of the committed run beside them."""
    runs = []
    for name, state in fingerprint.states(profile).items():
        if state.here and state.run:
            committed = fingerprint.committed(name) or {}
            runs.append(dict(chapter=name, seconds=state.run["seconds"], committed_seconds=committed.get("seconds"),
                             machine=_machine(state.run), committed_machine=_machine(committed),
                             date=state.run["date"], commit=state.run["commit"], clean=state.run["clean"]))
    return dict(profile=profile, runs=runs, rows=compare(profile))


def write(profile: str) -> dict[str, Any]:
    """Write the summary to `build/machine.json`, for the page."""
    found = summary(profile)
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: dict[str, Any]) -> str:
    """The rows as plain text."""
    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    lines = [("chapter", "model", "metric", "committed", "95 % interval", "here", "within")]
    for row in found["rows"]:
        bounds = " to ".join(map(percent, row["interval"])) if row["interval"] else "-"
        within = {True: "yes", False: "no", None: "-"}[row["within"]]
        lines.append((row["chapter"], row["model"] or "", row["metric"], percent(row["committed"]), bounds,
                      percent(row["here"]), within))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _record(path: Path) -> Record | None:
    return read_record(path) if path.exists() else None


def _machine(run: dict[str, Any]) -> str | None:
    machine = run.get("machine")
    return ", ".join([machine["cpu"], f"{machine['cores']} cores", *machine["accelerators"]]) if machine else None
