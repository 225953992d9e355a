"""What a command of the workflow says where it cannot go on: a sentence in place of a traceback."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from detcore.errors import DetcoreError


@contextmanager
def sentences() -> Iterator[None]:
    """Turns an error that a user can act on, also one that Sphinx has wrapped, into its sentence and exit status 1."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DetcoreError):
            cause = cause.__cause__ or getattr(cause, "orig_exc", None) or cause.__context__
        if cause is None:
            raise
        sys.exit(" ".join(str(cause).split()))
