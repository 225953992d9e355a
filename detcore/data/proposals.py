"""Files of precomputed proposals, as Fast R-CNN takes them.

A NumPy archive with four arrays: `image_ids` [n], `offsets` [n + 1], `boxes` [p, 4] (x1, y1, x2, y2 in pixels of the
original image) and `scores` [p]; image i has the boxes from offsets[i] to offsets[i + 1], best first.
"""
from __future__ import annotations

import os
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
    """A file's proposals: image id -> float32 [p, 5], best first; DataError if it is missing or of another form."""

    def __init__(self, path: str | Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as file:
                ids, offsets = file["image_ids"], file["offsets"]
                table = np.concatenate([file["boxes"], file["scores"][:, None]], 1).astype(np.float32)
        except FileNotFoundError:
            raise DataError(f"There is no proposal file {path}.") from None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a proposal file as `detcore proposals` writes it: {error}.") from error
        if table.shape[1:] != (5,) or len(offsets) != len(ids) + 1 or offsets[-1] != len(table):
            raise DataError(f"The arrays of the proposal file {path} do not fit together.")
        super().__init__(zip(ids.tolist(), np.split(table, offsets[1:-1])))
