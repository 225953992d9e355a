"""Which classes of two data sets, or of a data set and a model, are the same: those of one name.

The order of categories in a file, and their ids, say nothing.
"""
from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence

import numpy as np

from detcore.errors import UsageError

SHOWN = 8  # names in a sentence


def listing(names: Collection[str]) -> str:
    """Names for a sentence, the first few of many."""
    shown = [repr(name) for name in list(names)[:SHOWN]]
    return ", ".join(shown) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def match(names: Sequence[str], known: Sequence[str], used: Collection[int], *, file: object, title: str) -> np.ndarray:
    """int64 [n], the place of each name among the known ones, -1 for a name without objects that is not known.

    Args:
        names, known: the classes of a data set, and those that it is to have.
        used: the places of the names that have objects.
        file: the data set's annotations; title: what has the known classes.

    Raises:
        UsageError: there are objects of a class that is not known, or none of the names is.
    """
    place = {name: i for i, name in enumerate(known)}
    table = np.array([place.get(name, -1) for name in names], np.int64)
    strange = [name for i, name in enumerate(names) if table[i] < 0 and i in used]
    if not strange and names and (table < 0).all():
        strange = list(names)
    if strange:
        raise UsageError(f"{file} has {'objects of ' if used else ''}the class{'es' * (len(strange) > 1)} "
                         f"{listing(strange)}, which {title} does not have (it has {listing(known)}): classes are the "
                         f"same where their names are; rename those that are only called otherwise "
                         f"(--rename OLD=NEW, rename={{old: new}}).")
    spare = [name for i, name in enumerate(names) if table[i] < 0]
    if spare:
        warnings.warn(f"{file} lists {listing(spare)}, which {title} does not have; there are no objects of "
                      f"{'it' if len(spare) == 1 else 'them'}.", stacklevel=3)
    return table
