"""Opening the files of a data set."""
from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO, Any

from detcore.errors import DataError


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
