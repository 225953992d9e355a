"""What a new method still lacks: `python -m workflow.check [--write]`.

A method is a file in `detcore/methods/`, its family a file in `detcore/zoo/families/`, its chapter one in `notebooks/`,
and a reference case in `tests/reference/cases/`. Everything else follows from these, or this command says in one
sentence what is missing; with `--write` it writes what can be derived: rows of `published.csv`, the zoo page, the lines
of `_toc.yml`. Exit status 1 while something is missing.
"""
from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib import import_module
from pathlib import Path

import yaml

from detcore.zoo import index
from workflow.contents import ROOT, chapters, pages

sys.path.insert(0, str(ROOT / "book/_ext"))
from zoobook.facts import title

ZOO = "detcore/zoo"
FAMILIES = "book/families.yaml"
PAGE = """# {title}: models and results

{title} in three sentences: what problem it solves, how, and what follows.

```{{family-facts}} {family}
```

## Results

AP in percent on COCO's `val2017`, memory per GPU in training, inference time of one image on a V100. Columns marked \
“ours” come from our own records, with 95 % intervals where they were computed. A model's name leads to its recipe.

```{{zoo-table}} {family}
```

## How to run

What the family's first model is, its training by the published recipe, and the same at pocket size:

```{{family-commands}} {family}
```

## Recipes

```{{recipe-table}} {family}
```
"""
Problem = tuple[str, Callable[[], object] | None]  # a sentence, and what mends it


def problems() -> Iterator[Problem]:
    """Everything that is missing, in the order in which it is best mended."""
    yield from zoo_problems()
    yield from page_problems()
    cases = {path.name.removesuffix(".json.gz") for path in (ROOT / "tests/reference/cases").glob("*.json.gz")}
    entries = [index.get_model_entry(name) for name in index.rows()]
    covered = {entry.builder for entry in entries if entry.name in cases}
    for family in index.families():
        if covered.isdisjoint(entry.builder for entry in entries if entry.family == family):
            yield (f"No reference case is of the family {family}, or of another with its builder: add "
                   f"tests/reference/cases/MODEL.json.gz.", None)


def zoo_problems() -> Iterator[Problem]:
    """Models that are in a family's file or in `published.csv`, but not in both."""
    listed = index.rows()
    for path in sorted((ROOT / ZOO / "families").glob("[!_]*.py")):
        entries = {entry.name: entry for entry in import_module(f"detcore.zoo.families.{path.stem}").MODELS}
        for name, entry in entries.items():
            if name not in listed:
                yield (f"published.csv has no row of {name}, which {path.relative_to(ROOT)} has.",
                       partial(add_row, name, entry.family or path.stem, entry.backbone.name if entry.backbone else ""))
        for name, row in listed.items():
            if row.family.replace("+", "_") == path.stem and name not in entries:
                yield f"{path.relative_to(ROOT)} has no model {name}, of which published.csv has a row.", None


def page_problems() -> Iterator[Problem]:
    """Chapters and pages that are not in the table of contents, and the other way round."""
    toc = pages()
    families = {family.replace("+", "_"): family for family in index.families()}
    texts = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py") if path.stem != "conftest")
    zoo_pages = {f"book/zoo/{name}.md": name for name in families}
    described = yaml.safe_load((ROOT / FAMILIES).read_text("utf-8"))
    for page, name in zoo_pages.items():
        family = families[name]
        if family not in described:
            yield (f"{FAMILIES} lacks {family}: its year, the family that it builds on, what it changes, its papers.",
                   partial(add_family, family))
        if not (ROOT / page).exists():
            yield f"{page} is missing, the page of the family {family}.", partial(
                (ROOT / page).write_text, PAGE.format(title=title(family), family=family), "utf-8")
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "book").rglob("*.md")} | set(zoo_pages)
    for page in sorted(written) + [f"notebooks/{name}.ipynb" for name in texts]:
        if page not in toc:
            yield f"{page} is not in _toc.yml.", partial(add_page, page)
    for page in toc:
        if not (ROOT / page).exists() and page not in zoo_pages:
            run = f": make book NAME={Path(page).stem}" if Path(page).stem in texts else ""
            yield f"{page} is in _toc.yml, but is not there{run}.", None
        for language in yaml.safe_load((ROOT / "workflow/config.yaml").read_text("utf-8"))["languages"]:
            catalogue = Path(f"book/locale/{language}/LC_MESSAGES", page).with_suffix(".po")
            if language != "en" and not (ROOT / catalogue).exists():
                yield f"{catalogue} is missing: make translations.", None


def add_row(name: str, family: str, backbone: str) -> None:
    """Add a model without published results to `published.csv`, after its family's others."""
    path = ROOT / ZOO / "published.csv"
    lines = path.read_text("utf-8").splitlines()
    columns = len(next(csv.reader([lines[1]])))
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow([name, family, backbone] + [""] * (columns - 3))
    last = max((i for i, line in enumerate(lines) if f",{family}," in line), default=len(lines) - 1)
    path.write_text("\n".join([*lines[:last + 1], row.getvalue(), *lines[last + 1:], ""]), "utf-8")


def add_family(family: str) -> None:
    """Add a family to `families.yaml`, for a person to complete."""
    with (ROOT / FAMILIES).open("a", encoding="utf-8") as file:
        file.write(f'{family}:\n  year: {date.today().year}\n  change: "what it changes, in a few words"\n'
                   "  papers: []\n")


def add_page(page: str) -> None:
    """Add a page to `_toc.yml`, after the last one of a family in the same folder."""
    path = ROOT / "_toc.yml"
    lines = path.read_text("utf-8").splitlines()
    folder, families = Path(page).parent, {family.replace("+", "_") for family in index.families()}
    last = max((i for i, line in enumerate(lines) if (file := Path(line.partition("file: ")[2])).parent == folder
                and (file.stem in families or folder.name not in ("zoo", "notebooks"))), default=len(lines) - 1)
    indent = lines[last][:len(lines[last]) - len(lines[last].lstrip())]
    added = [f"{indent}- file: {page}"]
    if folder.name == "zoo":  # short in the table of contents
        last += lines[last + 1:last + 2] != [] and lines[last + 1].lstrip().startswith("title:")
        family = next(f for f in index.families() if f.replace("+", "_") == Path(page).stem)
        added.append(f"{indent}  title: {title(family)}")
    path.write_text("\n".join([*lines[:last + 1], *added, *lines[last + 1:], ""]), "utf-8")


def main() -> None:
    found, write = list(problems()), "--write" in sys.argv[1:]
    while write and (mendable := [(sentence, mend) for sentence, mend in found if mend]):
        for sentence, mend in mendable:
            mend()
            print(f"Written: {sentence}")
        index.rows.cache_clear()
        found = list(problems())
    for sentence, mend in found:
        print(f"{sentence}{' (--write writes it)' if mend else ''}")
    if not found:
        print(f"Nothing is missing: {len(index.rows())} models, {len(chapters())} chapters, {len(pages())} pages.")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
