"""Looking through the folder of a data set: what is there, what is missing, and where to get it."""
from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detcore.data.dataset import ReadOptions
from detcore.data.layouts import Layout, find_layout, get_layout
from detcore.errors import DataError, DetcoreError

DECODED = 20  # pictures of a split that are decoded


@dataclass(frozen=True)
class Finding:
    """What one look found.

    Attributes:
        verdict: "ok"; "missing" or "broken", with which something cannot be done; "note", with which all can.
        what: the file, folder or split.
        text: what is known of it; of what is missing, where to get it.
    """

    verdict: str
    what: str
    text: str


def check(root: str | Path, layout: str | None = None, *, progress: bool = True) -> list[Finding]:
    """Look through a data set: its files, its annotations, whether every picture is there, and whether some open.

    Args:
        layout: a name of `detcore.data.layouts.LAYOUTS`; by default the one that the files have.

    Raises:
        UsageError: there is no such layout.
        DataError: there is no such folder.
    """
    root = Path(root)
    form = get_layout(layout) if layout else find_layout(root)
    if not root.is_dir():
        raise DataError(f"There is no data set at {root}: no such folder.")
    found = [Finding("ok" if form.fits(root) else "missing", str(root), f"read as {form.title} (layout {form.name})")]
    for needed in form.needed:
        if next(form.home(root).glob(needed.path), None) is not None:
            found.append(Finding("ok", needed.path, ""))
        else:
            found.append(Finding("note" if needed.optional else "missing", needed.path, needed.what))
    for split in ("train", "val"):
        found += _split(root, form, split, progress)
    return found


def _split(root: Path, form: Layout, split: str, progress: bool) -> Iterator[Finding]:
    """The annotations of a split, then its pictures."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            data = form.open(root, split, ReadOptions())
        except DetcoreError as error:
            yield Finding("broken", split, str(error))
            return
    yield Finding("ok", split, f"{len(data)} images, {len(data.objects()['labels'])} objects of "
                               f"{len(data.class_names)} classes")
    for warning in told:
        yield Finding("note", split, str(warning.message))
    missing = [path for path in tqdm(map(data.path, range(len(data))), total=len(data), desc=f"pictures of {split}",
                                     unit="img", disable=not progress, leave=False) if not path.is_file()]
    if missing:
        yield Finding("missing", split, f"{len(missing)} of {len(data)} pictures, the first {missing[0]}")
        return
    for index in np.unique(np.linspace(0, len(data) - 1, DECODED).astype(int)).tolist() if len(data) else ():
        try:
            data.sample(index)
        except DataError as error:
            yield Finding("broken", split, str(error))
