"""Opening the files of a data set, and the names that annotations give to pictures."""
from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from detcore.errors import DataError

# Absolute, upwards, or with a zero byte; with Windows' separators too.
_OUTSIDE = re.compile(r"^[/\\]|^[A-Za-z]:[/\\]|(^|[/\\])\.\.([/\\]|$)|\0")
LONGEST = 255  # bytes of a file's or a folder's name, on every usual file system


def open_file(path: str | Path, what: str = "file", mode: str = "rb", **options: Any) -> IO:
    """A file, open for reading; DataError, which calls it `what`, where there is none or it cannot be read."""
    try:
        if not stat.S_ISREG(kind := os.stat(path).st_mode) and not stat.S_ISDIR(kind):
            raise DataError(f"The {what} {path} is a pipe or a device, not a file.")  # reading it may never end
        return open(path, mode, **options)
    except FileNotFoundError:
        raise DataError(f"There is no {what} {path}.") from None
    except OSError as error:
        raise DataError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # a zero byte
        raise DataError(f"The {what} {str(path)!r} cannot be read: {error}.") from error


def check_names(files: Sequence[str], ids: Sequence[Any], source: object) -> None:
    """Raise a DataError where an image's picture has no name that can be one of a file in the folder of images.

    Args:
        files: the names, from that folder on; ids: of the images; source: the file that says so.
    """
    for name, image in zip(files, ids):
        if _OUTSIDE.search(name):
            problem = "which is not a place inside the folder of images"
        elif not name.strip("/\\ ."):
            problem = "which is no file name"
        elif len(name) > LONGEST // 4 and _too_long(name) or not name.isascii() and _unwritable(name):
            problem = "which no file can have"
        else:
            continue
        shown = name if len(name) <= 80 else f"{name[:77]}..."
        raise DataError(f"Image {image} of {source} names the picture {shown!r}, {problem}: correct the name.")


def _too_long(name: str) -> bool:
    return any(len(part.encode(errors="replace")) > LONGEST for part in name.split("/"))


def _unwritable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # half a pair of surrogates
        return True
    return False
