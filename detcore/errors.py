"""Errors that a user can act on: each message is one sentence that names what is at fault and what to do."""


class DetcoreError(Exception):
    """Base of every error that detcore raises on purpose; the command line prints it and exits with 1."""


class UsageError(DetcoreError):
    """A wrong name, option or combination of them."""


class DataError(DetcoreError):
    """A data set, annotation or image that cannot be used; the message names the file and the record."""


class WeightsError(DetcoreError):
    """A checkpoint that is missing, broken, unsafe, or made for another model."""
