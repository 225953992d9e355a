"""Bring the catalogues in `book/locale` up to date with the pages: `make translations`.

Every page has a catalogue; the book's own extension has `zoobook.po`, the pages' frame `sphinx.po`. What another
catalogue has translated already is translated in the same way. Prints each message that is not translated, or only
guessed (fuzzy), and exits with 1 if there are any.
"""
from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po, write_po
from sphinx_intl import basic

from workflow.fingerprint import ROOT
from workflow.pages import BUILD, sphinx

sys.path.insert(0, str(ROOT / "book/_ext"))
from zoobook import outputs
from zoobook.facts import title
from zoobook.families import families, stem

WIDTH = 100  # of the catalogues' lines
LOCALE = ROOT / "book/locale"
TEMPLATES = BUILD / "gettext"
# What Sphinx and the theme leave in English.
FRAME = ("Color mode", "System Settings", "Link to this heading", "Link to this table", "Link to this image",
         "Link to this code", "Link to this equation", "Link to this term")


def extension_messages() -> Catalog:
    """The texts of the book's extension: its own, titles and changes of the families, the published tables' headers."""
    catalogue = Catalog(project="detcore", charset="utf-8", fuzzy=False)
    for file, line, message, comments, _ in extract_from_dir(ROOT / "book/_ext", [("**.py", "python")]):
        catalogue.add(message, locations=[(file, line)], auto_comments=comments)
    for name, family in families().items():
        catalogue.add(title(name), locations=[(f"detcore/zoo/families/{stem(name)}.py", 1)])
        catalogue.add(family.change, locations=[("families.yaml", 1)])
    for path in sorted((ROOT / "book/data").glob("*.csv")):
        heading, header = path.read_text("utf-8").splitlines()[:2]
        catalogue.add(heading.lstrip("# ").partition(" <")[0], locations=[(path.name, 1)])
        for text in next(csv.reader([header])):
            catalogue.add(text, locations=[(path.name, 2)])
    return catalogue


def output_messages() -> Catalog:
    """The texts of chapters' tables, plots and drawings."""
    catalogue = Catalog(project="detcore", charset="utf-8", fuzzy=False)
    for file, message in outputs.messages(ROOT):
        catalogue.add(message, locations=[(file, 1)])
    return catalogue


def catalogues(language: str) -> dict[str, Catalog]:
    """All catalogues of a language by their file, relative to `book/locale`."""
    found = {}
    for path in sorted((LOCALE / language / "LC_MESSAGES").rglob("*.po")):
        with path.open("rb") as file:
            found[str(path.relative_to(LOCALE))] = read_po(file, locale=language)
    return found


def missing(language: str) -> list[tuple[str, str]]:
    """(file, message) of what is not translated or fuzzy, or was and is no longer on any page."""
    return [(name, str(message.id)) for name, catalogue in catalogues(language).items() for message in catalogue
            if message.id and (not message.string or message.fuzzy)]


def repeat(language: str) -> None:
    """Translate messages as another catalogue has translated them already."""
    found = catalogues(language)
    known = {str(message.id): message.string for catalogue in found.values() for message in catalogue
             if message.id and message.string and not message.fuzzy}
    for name, catalogue in found.items():
        new = [m for m in catalogue if m.id and (not m.string or m.fuzzy) and str(m.id) in known]
        for message in new:
            message.string = known[str(message.id)]
            message.flags.discard("fuzzy")
        if new:
            with (LOCALE / name).open("wb") as file:
                write_po(file, catalogue, width=WIDTH)


def templates(folder: Path = TEMPLATES) -> None:
    """Write the pages' and the extension's messages to a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    if sphinx("gettext", "en", folder):
        sys.exit("The pages have warnings; they are errors.")
    with (folder / "zoobook.pot").open("wb") as file:
        write_po(file, extension_messages())
    with (folder / "outputs.pot").open("wb") as file:
        write_po(file, output_messages())
    with (folder / "sphinx.pot").open("rb") as file:
        frame = read_po(file)
    for text in FRAME:
        frame.add(text)
    with (folder / "sphinx.pot").open("wb") as file:
        write_po(file, frame)


def main() -> None:
    languages = sys.argv[1:] or ["ja"]
    templates()
    left = 0
    for language in languages:
        basic.update(str(LOCALE), str(TEMPLATES), [language], line_width=WIDTH)
        repeat(language)
        expected = {path.relative_to(TEMPLATES).with_suffix(".po") for path in TEMPLATES.rglob("*.pot")}
        for path in sorted((LOCALE / language / "LC_MESSAGES").rglob("*.po")):
            relative = path.relative_to(LOCALE / language / "LC_MESSAGES")
            if relative not in expected:
                print(f"{relative} belongs to no page: remove it")
        for name, message in missing(language):
            print(f"{name}: {message!r}")
            left += 1
    print(f"{left} messages to translate" if left else "Every message is translated.")
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
