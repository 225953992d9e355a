"""Errors that a user can act on: each message is one sentence that names what is at fault and what to do."""
from __future__ import annotations

import re

LONGEST = 2_000  # characters of a message
# What moves the cursor, changes colours or turns the direction of a terminal's text, and what cannot be encoded.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object, longest: int = LONGEST) -> str:
    """Text that is safe on a terminal: control characters as escapes ("\\x1b"), a long one without its middle."""
    clean = _UNSAFE.sub(lambda m: m[0].encode("unicode_escape").decode(), str(text))
    head = 2 * longest // 3
    return clean if len(clean) <= longest else f"{clean[:head]} ... {clean[head + 5 - longest:]}"


class DetcoreError(Exception):
    """Base of every error that detcore raises on purpose; the command line prints it and exits with 1."""

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(message))


class UsageError(DetcoreError):
    """A wrong name, option or combination of them."""


class DataError(DetcoreError):
    """A data set, annotation or image that cannot be used; the message names the file and the record."""


class WeightsError(DetcoreError):
    """A checkpoint that is missing, broken, unsafe, or made for another model."""
