"""Opening the files of a data set."""
from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from detcore.errors import DataError


def open_file(path: str | Path, what: str = "file", mode: str = "rb", **options: Any) -> IO:
    """A file, open for reading; DataError, which calls it `what`, where there is none or it cannot be read."""
    try:
        return open(path, mode, **options)
    except FileNotFoundError:
        raise DataError(f"There is no {what} {path}.") from None
    except OSError as error:
        raise DataError(f"The {what} {path} cannot be read: {error.strerror}.") from error
