"""What the zoo has, from `published.csv` alone: names, families, backbones, published results.

Nothing here imports PyTorch. `get_model_entry` imports the file of one family, `all_entries` those of all.
"""
from __future__ import annotations

import csv
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import TYPE_CHECKING

from detcore.errors import UsageError

if TYPE_CHECKING:
    from detcore.zoo.entries import Backbone, ModelEntry

WILDCARDS = "*?["
ALIKE = 0.6  # the likeness from which a name is offered in the place of another


@dataclass(frozen=True)
class Published:
    """What the original zoo publishes of a model; None where it says nothing.

    Attributes:
        dataset: what it was evaluated on.
        box_ap, mask_ap, panoptic_quality, average_recall: in percent; recall is of 1000 proposals.
        training_memory_gb: of each GPU.
        inference_ms: an image, with the `hardware`, `precision` and `resolution` (height x width) it was measured at.
        epochs, iterations: length of the training.
        checkpoint: address of the weights.
    """

    dataset: str | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    panoptic_quality: float | None = None
    average_recall: float | None = None
    training_memory_gb: float | None = None
    inference_ms: float | None = None
    hardware: str | None = None
    precision: str | None = None
    resolution: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    checkpoint: str | None = None


@dataclass(frozen=True)
class Row:
    """A model in `published.csv`.

    Attributes:
        name, family: as published.
        backbone: the name of its backbone.
        published: its results, None where no weights are.
    """

    name: str
    family: str
    backbone: str
    published: Published | None


@cache
def rows() -> dict[str, Row]:
    """All models by name, in the order of the file: family by family."""
    read: dict[str, Callable[[str], float | int | str]] = {
        f.name: float if "float" in str(f.type) else int if "int" in str(f.type) else str for f in fields(Published)}
    text = files("detcore.zoo").joinpath("published.csv").read_text("utf-8")
    table = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["name"]: Row(row["name"], row["family"], row["backbone"], Published(
        **{key: of(row[key]) for key, of in read.items() if row[key]}) if row["checkpoint"] else None)  # type: ignore
        for row in table}


def published_results() -> dict[str, Published]:
    """The published results of every model that has published weights, by name."""
    return {name: row.published for name, row in rows().items() if row.published}


def families() -> tuple[str, ...]:
    """The families, in the order of the file."""
    return tuple(dict.fromkeys(row.family for row in rows().values()))


def list_models(pattern: str = "*", family: str | None = None) -> list[str]:
    """The names that match a pattern with wildcards, such as "*r50*", sorted; of one family if it is named.

    Raises:
        UsageError: there is no such family; the message offers the nearest one.
    """
    if family is not None:
        check_family(family)
    return sorted(name for name, row in rows().items()
                  if fnmatchcase(name, pattern) and family in (None, row.family))


def find_backbones(words: str) -> set[str]:
    """The names of the backbones that a text is in, whatever its case, or that it matches with wildcards.

    Raises:
        UsageError: there is none; the message tells the names.
    """
    names = {row.backbone for row in rows().values()}
    pattern = words.lower() if any(c in words for c in WILDCARDS) else f"*{words.lower()}*"
    matching = {name for name in names if fnmatchcase(name.lower(), pattern)}
    if not matching:
        raise UsageError(f"There is no backbone {words!r} in the zoo: it has {', '.join(sorted(names))}.")
    return matching


# Names that are wrong

def check_name(name: str) -> None:
    """Nothing, if a model has this name or a name matches this pattern.

    Raises:
        UsageError: there is none; the message offers the nearest names, or those of the family of this name.
    """
    if name in rows() or any(c in name for c in WILDCARDS) and list_models(name):
        return
    family = _plain(name).replace("-", "_")
    if family in families():
        names = list_models(family=family)
        raise UsageError(f"{name!r} is a family of {len(names)} models: name one of them, such as "
                         f"{min(names, key=len)} (`detcore list --family {family}` shows them).")
    near = near_names(name)
    offer = f"The nearest names are: {', '.join(near)}." if near else "`detcore list` shows all names."
    wrong = "No model matches" if any(c in name for c in WILDCARDS) else "There is no model"
    raise UsageError(f"{wrong} {name!r}. {offer}")


def check_family(name: str) -> None:
    """Nothing, if there is a family of this name.

    Raises:
        UsageError: there is none; the message offers the nearest one.
    """
    if name not in families():
        near = near_names(name, families(), 1)
        raise UsageError(f"There is no family {name!r}{f'; did you mean {near[0]}?' if near else ':'} It is one of "
                         f"{', '.join(sorted(families()))}.")


def near_names(text: str, names: Collection[str] | None = None, count: int = 3) -> list[str]:
    """The names most like a text, or that begin most like it, best first; of the zoo's models by default.

    Wildcards, case, and whether a word is joined by "-" or "_" do not matter.
    """
    plain = _plain(text)

    def alike(name: str) -> tuple[float, float]:
        whole = SequenceMatcher(None, plain, _plain(name)).ratio()
        if not plain or plain in _plain(name):
            return float(bool(plain)), whole
        return max(whole, SequenceMatcher(None, plain, _plain(name)[:len(plain)]).ratio()), whole

    scores = {name: alike(name) for name in (rows() if names is None else names)}
    return [n for n in sorted(scores, key=lambda n: (*(-s for s in scores[n]), n)) if scores[n][0] >= ALIKE][:count]


def _plain(text: str) -> str:
    return "".join(c for c in text.lower().replace("_", "-") if c not in "*?[]").strip("-")


# Entries

def get_model_entry(name: str) -> ModelEntry:
    """What the zoo knows of a model: how it is built and trained, what was published of it.

    Raises:
        UsageError: there is no such name; the message offers the nearest ones.
    """
    check_name(name)
    if name not in rows():
        raise UsageError(f"{name!r} stands for several models: name one of them, such as "
                         f"{min(list_models(name), key=len)}.")
    family = rows()[name].family
    if name not in _entries(family):
        raise UsageError(f"published.csv has a row of {name}, which the MODELS of "
                         f"detcore/zoo/families/{_module(family)}.py lack.")
    return _entries(family)[name]


@cache
def all_entries() -> dict[str, ModelEntry]:
    """All models of the zoo by name, in the order of the families."""
    return {name: entry for family in families() for name, entry in _entries(family).items()}


def all_backbones() -> tuple[Backbone, ...]:
    """The zoo's backbones, each with its weights, in the order of the models that start from them."""
    return tuple({(b.name, b.weights): b for e in all_entries().values() if (b := e.backbone)}.values())


def models_with(backbone: Backbone) -> list[str]:
    """The names of the models that start from a backbone and its weights."""
    return [name for name, e in all_entries().items()
            if e.backbone and (e.backbone.name, e.backbone.weights) == (backbone.name, backbone.weights)]


def _module(family: str) -> str:
    return family.replace("+", "_")


@cache
def _entries(family: str) -> dict[str, ModelEntry]:
    module = import_module(f"detcore.zoo.families.{_module(family)}")
    return {entry.name: entry for entry in module.MODELS}
