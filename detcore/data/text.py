"""Names and numbers in the text files of data sets."""
from __future__ import annotations

import codecs
import re
import warnings
from pathlib import Path

from detcore.data.files import open_file
from detcore.errors import DataError

LARGEST_SIDE = 1_000_000  # pixels of a picture's width or height: more is a damaged file
LONGEST_NAME = 250  # bytes of a file's or folder's name
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def read_text(path: str | Path, what: str = "file") -> str:
    """The content of a text file in UTF-8 (or UTF-16 with its mark); DataError, which calls it `what`, if it is not."""
    with open_file(path, what) as file:
        data = file.read()
    try:
        return data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[:error.start].count(b"\n") + 1
        raise DataError(f"The {what} {path} is not UTF-8 text (line {line}: {error.reason}): save it as UTF-8."
                        ) from None


def inside(name: str, where: object) -> str:
    """A name of a file under a folder, as it is; DataError where it leads elsewhere. `where` is what has the name."""
    parts = re.split(r"[\\/]", name)
    if not name.strip() or ".." in parts or parts[0] == "" or parts[0][1:2] == ":" or "\0" in name or (
            len(name) > 1000 or any(len(part.encode(errors="replace")) > LONGEST_NAME for part in parts)):
        raise DataError(f"{where} names the file {name[:100]!r}, which is not inside the data set's folder: only names "
                        f"under it are read.")
    return name


def side(text: str | float, what: str = "width") -> int:
    """A picture's width or height; ValueError where it is no whole number of pixels from 1 to `LARGEST_SIDE`."""
    value = float(text)
    if not (value == value // 1 and 1 <= value <= LARGEST_SIDE):
        raise ValueError(f"the {what} {str(text)[:50]} is not a whole number of pixels from 1 to {LARGEST_SIDE:,}")
    return int(value)


def listed(names: list[str], most: int = 5) -> str:
    """Names for a message, cut to a few."""
    return ", ".join(name[:50] for name in names[:most]) + f" and {len(names) - most} more" * (len(names) > most)


def problem(error: Exception) -> str:
    """What a message says of an error of a text file."""
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text ({error.reason})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)[:300]


def warn_again(path: Path, again: int, objects: int | None = None) -> None:
    """A warning of images that a file names again, there with so many objects."""
    if again:
        lost = "" if objects is None else f": {objects} objects are left out"
        warnings.warn(f"{path}: {again} images are named again and are left out there{lost}.", stacklevel=4)
