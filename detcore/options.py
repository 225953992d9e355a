"""Options of builders: what a builder takes, also where it hands some on to another one."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, TypeVar

from detcore.errors import UsageError
from detcore.ranges import check_option

F = TypeVar("F", bound=Callable[..., Any])


def forwards(*builders: Callable[..., Any], without: Collection[str] = ()) -> Callable[[F], F]:
    """Decorator of a builder whose `**options` go to others: it gets a signature that names their options too.

    Args:
        without: options of the others that the builder sets itself.
    """
    def decorate(builder: F) -> F:
        own = inspect.signature(builder)
        parameters = {n: p for n, p in own.parameters.items() if p.kind != inspect.Parameter.VAR_KEYWORD}
        for other in builders:
            parameters |= {n: p for n, p in inspect.signature(other).parameters.items()
                           if p.kind == inspect.Parameter.KEYWORD_ONLY and n not in {*parameters, *without}}
        builder.__signature__ = own.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        return builder
    return decorate


def builder_options(builder: Callable[..., Any]) -> dict[str, Any]:
    """The keyword options of a builder, with their defaults."""
    return {name: p.default for name, p in inspect.signature(builder).parameters.items()
            if p.kind == inspect.Parameter.KEYWORD_ONLY}


def check_options(builder: Callable[..., Any], options: dict[str, Any], title: str) -> dict[str, Any]:
    """The options, whose names are known and whose numbers are in their ranges.

    Raises:
        UsageError: the builder of `title` does not take one of the options, and takes those that the sentence names;
            or a number is out of range.
    """
    known = builder_options(builder)
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            offer = f" Did you mean {near[0]}?" if near else ""
            raise UsageError(f"{title} has no option {name!r}.{offer} It takes {', '.join(known)}.")
    return {name: check_option(name, value, known[name]) for name, value in options.items()}
