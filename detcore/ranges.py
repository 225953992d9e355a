"""What numbers may be: a table by the names of parameters, and a decorator that holds functions and commands to it.

A number is checked before any work begins. NaN, infinities, truth values and texts are no numbers.
"""
from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

from detcore.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
        whole: whole ones alone. above: without `low` itself. pair: two of them.
        most: a `high` that is far beyond what anyone needs, and isn't told unless it is passed.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    pair: bool = False
    most: bool = False

    def describe(self, high: bool = False) -> str:
        """In words, such as "at least 1"; with the upper end where that is told, or `high` asks for it."""
        if self.most and not high:
            return f"{'above' if self.above else 'at least'} {self.low:,}"
        start = f"above {self.low:,} and up to" if self.above else f"from {self.low:,} to"
        return f"{start} {self.high:,}"

    def check(self, name: str, value: Any) -> Any:
        """The value as an int or a float, or a pair of them; raises a UsageError if it is out of range."""
        if self.pair:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise UsageError(f"{name} is a pair of numbers, not {shown(value)}.")
            return tuple(self._one(name, one) for one in value)
        return self._one(name, value)

    def _one(self, name: str, value: Any) -> int | float:
        kind = "whole number" if self.whole else "number"
        number = isinstance(value, Real) and not isinstance(value, bool) and type(value).__name__ != "bool"
        # As before, 4.0 is taken for 4.
        fits = number and (isinstance(value, Integral) or math.isfinite(value) and (not self.whole or value % 1 == 0))
        if not fits or not (self.low < value if self.above else self.low <= value) or value > self.high:
            bound = " of" if self.most and not self.above and not (fits and value > self.high) else ""
            raise UsageError(f"{name} is a {kind}{bound} {self.describe(fits and value > self.high)}, "
                             f"not {shown(value)}.")
        if self.whole:
            return int(value)
        return value if isinstance(value, (int, float)) else float(value)


def shown(value: Any) -> str:
    """A value as a part of a sentence, not too long."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    text = str(value) if isinstance(value, Real) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def whole(low: int, high: int | None = None) -> Range:
    """Whole numbers from `low` on, or to `high`."""
    return Range(low, 10**9 if high is None else high, whole=True, most=high is None)


COUNT, COUNT_0 = whole(1), whole(0)
SHARE, POSITIVE = Range(0, 1), Range(0, 1e12, above=True, most=True)
NOT_NEGATIVE = Range(0, 1e12, most=True)
PROCESSES = 4096

# By the names that parameters have everywhere, also as options of models.
RANGES: Mapping[str, Range] = {
    # runs
    "steps": COUNT, "batch_size": Range(1, 2**20, whole=True, most=True), "images": COUNT, "keep": COUNT,
    "log_interval": COUNT, "checkpoint_interval": COUNT, "interval": COUNT, "warmup": COUNT_0, "first": COUNT_0,
    "last": COUNT, "gpus": Range(1, PROCESSES, whole=True, most=True),
    "workers": Range(0, PROCESSES, whole=True, most=True), "seed": Range(0, 2**64 - 1, whole=True, most=True),
    "replicates": Range(0, 10**6, whole=True, most=True), "seconds": POSITIVE, "clip_norm": NOT_NEGATIVE,
    "measure": Range(0, 10**9, whole=True, pair=True, most=True), "number": COUNT, "min_ap": Range(0, 100),
    "scale": Range(0, 100, above=True),
    # data
    "val": COUNT_0, "holdout": Range(0, 1, above=True),
    # models
    "num_classes": Range(1, 10**6, whole=True, most=True), "score_threshold": SHARE, "nms_threshold": SHARE,
    "max_detections": Range(1, 10**6, whole=True, most=True), "object_score": SHARE, "dropout": SHARE,
    "rpn_nms_threshold": SHARE, "alpha": SHARE, "gamma": NOT_NEGATIVE, "box_weight": NOT_NEGATIVE,
    "soft_nms_sigma": POSITIVE, "anchor_scale": POSITIVE, "border": whole(-1), "stuff": COUNT_0, "stuff_area": COUNT_0,
    "sampling_ratio": COUNT_0, "box_convs": COUNT_0, "mask_convs": COUNT_0, "grid_convs": COUNT_0,
}
PROPERTY = "__ranges__"  # of a function that is held to its ranges


def checked(**others: Range | None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: the numbers among a function's arguments are checked, and those among its `**options`, by their names.

    None passes where it is the default. What the function does not name passes through `**options`.

    Args:
        others: ranges of the function's own, in place of those in `RANGES`; None for what is no number here.
    """
    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        named = {name: found for name in signature.parameters if (found := others.get(name, RANGES.get(name)))}
        rest = next((n for n, p in signature.parameters.items() if p.kind == inspect.Parameter.VAR_KEYWORD), "")

        @wraps(function)
        def run(*args: P.args, **options: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **options)
            except TypeError:
                return function(*args, **options)  # which tells what is wrong in its own words
            given = bound.arguments
            for name, allowed in named.items():
                if name in given and not (given[name] is None and signature.parameters[name].default is None):
                    given[name] = allowed.check(name, given[name])
            for name, value in given.get(rest, {}).items():
                if value is not None and (range_ := others.get(name, RANGES.get(name))):
                    given[rest][name] = range_.check(name, value)
            return function(*bound.args, **bound.kwargs)

        setattr(run, PROPERTY, named)
        return run
    return decorate


def check_option(name: str, value: Any, default: Any) -> Any:
    """An option of a model's builder, checked by its name, or else by what its default is; others as they are.

    Raises:
        UsageError: it is out of range.
    """
    if isinstance(default, bool):
        if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
            raise UsageError(f"{name} is True or False, not {shown(value)}.")
        return bool(value)
    if value is None and default is None:
        return None
    number = isinstance(default, Real)
    allowed = RANGES.get(name)
    if allowed and (default is None or number and allowed.low <= default <= allowed.high):
        return allowed.check(name, value)
    if number:
        least = COUNT_0 if isinstance(default, int) else NOT_NEGATIVE
        return least.check(name, value) if default >= 0 else Range(-1e12, 1e12).check(name, value)
    return value
