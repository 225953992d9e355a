"""Files of precomputed proposals, as Fast R-CNN takes them.

A NumPy archive with four arrays: `image_ids` [n], `offsets` [n + 1], `boxes` [p, 4] (x1, y1, x2, y2 in pixels of the
original image) and `scores` [p]; image i has the boxes from offsets[i] to offsets[i + 1], best first.
"""
from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detcore.errors import DataError


def save_proposals(path: str | Path, proposals: Mapping[int, np.ndarray]) -> None:
    """Write proposals (image id -> [p, 5] x1, y1, x2, y2, score) so that the file is there whole or not at all."""
    path = Path(path)
    rows = [p[np.argsort(-p[:, 4], kind="stable")] for p in proposals.values()]
    table = np.concatenate(rows) if rows else np.zeros((0, 5))
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.savez(file, image_ids=np.array(list(proposals), np.int64), offsets=np.cumsum([0, *map(len, rows)]),
                     boxes=table[:, :4].astype(np.float32), scores=table[:, 4].astype(np.float32))
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"The proposal file {path} cannot be written: {error.strerror}.") from error


class ProposalFile(dict[int, np.ndarray]):
    """A file's proposals: image id -> float32 [p, 5], best first.

    Boxes that are not finite or end before they begin are left out and counted in one warning.

    Raises:
        DataError: it is missing or of another form.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            check_archive(path)
            with np.load(path, allow_pickle=False) as file:
                ids, offsets, boxes, scores = (file[name] for name in ("image_ids", "offsets", "boxes", "scores"))
        except FileNotFoundError:
            raise DataError(f"There is no proposal file {path}.") from None
        except Exception as error:  # whatever NumPy raises of a broken file
            raise DataError(f"{path} is not a proposal file as `detcore proposals` writes it: {str(error)[:200]}."
                            ) from error
        if not (ids.ndim == offsets.ndim == scores.ndim == 1 and boxes.shape == (len(scores), 4)
                and len(offsets) == len(ids) + 1):
            shapes = ", ".join(str(list(a.shape)) for a in (ids, offsets, boxes, scores))
            raise DataError(f"The arrays of the proposal file {path} do not fit together: image_ids, offsets, boxes "
                            f"and scores have the shapes {shapes}.")
        if ids.dtype.kind not in "iu" or offsets.dtype.kind not in "iu" or boxes.dtype.kind + scores.dtype.kind not in (
                "ff", "fi", "if", "ii"):
            raise DataError(f"The arrays of the proposal file {path} are of the kinds {ids.dtype}, {offsets.dtype}, "
                            f"{boxes.dtype} and {scores.dtype}: image_ids and offsets are integers, boxes and scores "
                            f"numbers.")
        ends = offsets.astype(np.int64)
        if ends[0] != 0 or ends[-1] != len(scores) or (ends[1:] < ends[:-1]).any():
            raise DataError(f"The offsets of the proposal file {path} do not rise from 0 to {len(scores)}, the number "
                            f"of its boxes.")
        if len(np.unique(ids)) < len(ids):
            raise DataError(f"The proposal file {path} has an image more than once.")
        with np.errstate(over="ignore"):
            table = np.concatenate([boxes, scores[:, None]], 1).astype(np.float32)
        sound = np.isfinite(table).all(1) & (table[:, 2:4] >= table[:, :2]).all(1)
        if not sound.all():
            first = ids[np.searchsorted(ends, np.argmin(sound), side="right") - 1]
            warnings.warn(f"{path}: dropped {len(table) - sound.sum()} of {len(table)} proposals that are not finite "
                          f"or end before they begin (the first: one of image {first}).", stacklevel=2)
            table, ends = table[sound], np.append(0, sound.cumsum())[ends]
        super().__init__(zip(ids.tolist(), np.split(table, ends[1:-1])))


def check_archive(path: str | Path) -> None:
    """ValueError where the members of a NumPy archive are said to be far larger than the file: they would fill the
    memory; BadZipFile where it is no archive."""
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > 50 * os.path.getsize(path) + 2**20:
        raise ValueError(f"its members have {size:,} bytes, which are far more than the file's")
