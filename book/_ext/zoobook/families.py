"""The families of methods: `book/families.yaml` has their years, parents and changes, `book/references.bib` the papers.

    ```{family-facts} gfl          a line of links: its chapter, what it builds on, its source
    ```
    ```{family-commands} gfl       how to run one of its models
    ```
    ```{cite-family} gfl           its papers, with BibTeX
    ```
    ```{family-tree}               all of them over the years, each with what changed
    ```
    ```{family-list} data set      those of a kind, in a list
    ```
"""
from __future__ import annotations

import ast
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape

import yaml
from docutils import nodes
from pybtex.database import BibliographyData, Entry, Person, parse_file
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from detcore.zoo import index
from zoobook import facts
from zoobook.languages import _

KINDS = ("method", "data set")
# The tree's measures, in its own units.
YEAR_WIDTH, ROW, LEFT, TOP, TEXT, DOT = 62, 42, 20, 44, 320, 5


@dataclass(frozen=True)
class Family:
    """A family as `families.yaml` describes it.

    Attributes:
        year: of its paper.
        change: what it changes in the one that it builds on, in a few words of English.
        papers: keys of `references.bib`, the first one first.
        parent: the family that it builds on.
        kind: one of `KINDS`.
    """

    name: str
    year: int
    change: str
    papers: tuple[str, ...]
    parent: str | None = None
    kind: str = "method"

    @property
    def page(self) -> str:
        """The document of its page."""
        return f"book/zoo/{stem(self.name)}"

    @property
    def chapter(self) -> str:
        """The document of its chapter, if it has one."""
        return f"notebooks/{stem(self.name)}"


def stem(family: str) -> str:
    """A family's name in the names of files."""
    return family.replace("+", "_")


@cache
def families() -> dict[str, Family]:
    """All families of the file, by name."""
    rows = yaml.safe_load((facts.BOOK / "families.yaml").read_text("utf-8"))
    return {name: Family(name, row["year"], row["change"], tuple(row["papers"]), row.get("from"),
                         row.get("kind", "method")) for name, row in rows.items()}


@cache
def papers() -> BibliographyData:
    return parse_file(str(facts.BOOK / "references.bib"))


def sources(family: str) -> list[str]:
    """The files, relative to the root, that the family's file builds its models from: methods, backbones, data."""
    path = facts.BOOK.parent / "detcore/zoo/families" / f"{stem(family)}.py"
    named = [node.module for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    found = [f"{name.replace('.', '/')}.py" for name in named if name and name.startswith(
        ("detcore.methods.", "detcore.backbones.", "detcore.data.instaboost"))]
    own = [file for file in found if "/backbones/resnet" not in file]
    return own + [str(path.relative_to(facts.BOOK.parent))]


def source_page(file: str) -> str:
    """The page that shows a source file."""
    return f"source/{file.removesuffix('.py')}"


def example(family: str) -> str:
    """The model that stands for a family: the first one whose weights are published, or the first one."""
    names = [name for name, row in index.rows().items() if row.family == family]
    return next((name for name in names if index.rows()[name].published), names[0])


def address(here: str, document: str) -> str:
    """The link from one page to another."""
    return posixpath.relpath(f"{document}.html", posixpath.dirname(here))


def has_chapter(family: Family) -> bool:
    return (facts.BOOK.parent / f"{family.chapter}.ipynb").exists()


class FamilyFacts(SphinxDirective):
    """A line of links under a family's title."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        family, here = families()[self.arguments[0]], self.env.docname
        parts: list[list[nodes.Node]] = []
        if has_chapter(family):
            parts.append([link(_("The chapter"), address(here, family.chapter))])
        if family.parent:
            parent = families()[family.parent]
            parts.append([nodes.Text(_("Builds on") + " "), link(_(facts.title(parent.name)),
                                                                 address(here, parent.page))])
        files: list[nodes.Node] = []
        for file in sources(family.name):
            files.append(nodes.Text(", " if files else _("Source code:") + " "))
            files.append(link(file, address(here, source_page(file))))
        parts.append(files)
        line = nodes.paragraph("", "", classes=["zoo-facts"], translatable=False)
        for i, part in enumerate(parts):
            line += ([nodes.Text(" · ")] if i else []) + part
        return [line]


class FamilyCommands(SphinxDirective):
    """The commands that use one of the family's models."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name, entry = example(self.arguments[0]), index.get_model_entry(example(self.arguments[0]))
        layout = "" if entry.recipe.layout == "coco" else f"-{entry.recipe.layout}"
        root = f"/data/{entry.recipe.layout}"
        pocket = f"data/pocket{layout}"
        lines = [f"detcore show {name}"]
        if entry.checkpoint:
            lines += [f"detcore predict {name} street.jpg",
                      f"detcore evaluate {name} --profile coco --weights published --data-root {root}"]
        lines += [f"detcore train {name} --profile coco --data-root {root} --gpus 8",
                  f"detcore data pocket --root {pocket}" + (f" --layout {entry.recipe.layout}" if layout else ""),
                  f"detcore train {name} --data-root {pocket}"]
        text = "\n".join(lines)
        return [nodes.literal_block(text, text, language="bash", translatable=False)]


class CiteFamily(SphinxDirective):
    """The papers of a family, each as a sentence and as BibTeX."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return citation(families()[self.arguments[0]].papers)


class CitePaper(SphinxDirective):
    """One paper of `references.bib`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return citation((self.arguments[0],))


class CiteLibrary(SphinxDirective):
    """This library, from `CITATION.cff`."""

    def run(self) -> list[nodes.Node]:
        path = facts.BOOK.parent / "CITATION.cff"
        self.env.note_dependency(str(path))
        told = yaml.safe_load(path.read_text("utf-8"))
        authors = " and ".join("{" + author["name"] + "}" for author in told["authors"])
        fields = {"author": authors, "title": told["title"], "year": str(told["date-released"])[:4],
                  "note": f"Version {told['version']}"}
        if url := told.get("repository-code"):
            fields["url"] = url
        text = "\n".join(["@software{detcore,", *(f"    {key} = {{{value}}}," for key, value in fields.items()), "}"])
        return [nodes.literal_block(text, text, language="bibtex", translatable=False)]


def citation(keys: tuple[str, ...]) -> list[nodes.Node]:
    """A list of papers, and their BibTeX."""
    listing = nodes.bullet_list(classes=["zoo-papers"])
    for key in keys:
        entry = papers().entries[key]
        line = nodes.paragraph("", "", nodes.Text(reference(entry) + " "), translatable=False)
        line += link(entry.fields["url"].removeprefix("https://"), entry.fields["url"])
        listing += nodes.list_item("", line)
    text = "\n".join(BibliographyData({key: papers().entries[key]}).to_string("bibtex").strip() + "\n"
                     for key in keys).strip()
    return [listing, nodes.literal_block(text, text, language="bibtex", classes=["zoo-cite"], translatable=False)]


def reference(entry: Entry) -> str:
    """Authors, title, venue and year of a paper, as text."""
    people: list[Person] = entry.persons["author"]
    names = [plain(" ".join(person.first_names + person.middle_names + person.prelast_names + person.last_names))
             for person in people]
    names = names[:6] + ["et al."] * (len(names) > 6)
    venue = plain(entry.fields.get("booktitle") or entry.fields["journal"])
    return f"{', '.join(names)}: {plain(entry.fields['title'])}. {venue}, {entry.fields['year']}."


def plain(text: str) -> str:
    """BibTeX's braces and accents as characters."""
    return text.replace(r"{\'a}", "á").replace("{", "").replace("}", "")


# The tree

class FamilyTree(SphinxDirective):
    """The methods over the years: each under the one that it builds on, with what changed."""

    def run(self) -> list[nodes.Node]:
        if self.env.app.builder.format != "html":
            return []
        return [nodes.raw("", tree(self.env.docname), format="html")]


def order() -> Iterator[tuple[Family, int]]:
    """The methods in the tree's order, with the row of each: a family, then all that build on it, oldest first."""
    methods = [family for family in families().values() if family.kind == "method"]
    rows = iter(range(len(methods)))

    def below(parent: str | None) -> Iterator[tuple[Family, int]]:
        for family in sorted((f for f in methods if f.parent == parent), key=lambda f: f.year):
            yield family, next(rows)
            yield from below(family.name)

    return below(None)


def tree(here: str) -> str:
    """The tree as SVG, whose colours are the page's."""
    placed = list(order())
    first, last = min(f.year for f, _row in placed), max(f.year for f, _row in placed)
    width, height = LEFT + (last - first) * YEAR_WIDTH + TEXT, TOP + len(placed) * ROW
    at = {family.name: (LEFT + (family.year - first) * YEAR_WIDTH, TOP + row * ROW) for family, row in placed}
    parts = []
    for year in range(first, last + 1):
        x = LEFT + (year - first) * YEAR_WIDTH
        parts.append(f'<line class="year" x1="{x}" y1="26" x2="{x}" y2="{height}"/>'
                     f'<text class="year" x="{x}" y="16" text-anchor="middle">{year}</text>')
    for family, _row in placed:
        x, y = at[family.name]
        if family.parent:
            px, py = at[family.parent]
            # Two of one year lie below each other: the line goes around the text of those between.
            bend = px if px < x else px - 10
            parts.append(f'<path d="M{px},{py} {f"H{bend} " if bend != px else ""}V{y} H{x}"/>')
    for family, _row in placed:
        x, y = at[family.name]
        kind = "dot" if has_chapter(family) else "dot open"
        parts.append(f'<circle class="{kind}" cx="{x}" cy="{y}" r="{DOT}"/>'
                     f'<a href="{address(here, family.page)}">'
                     f'<text class="name" x="{x + 11}" y="{y + 1}">{escape(_(facts.title(family.name)))}</text></a>'
                     f'<text class="change" x="{x + 11}" y="{y + 16}">{escape(_(family.change))}</text>')
    label = escape(_("Family tree of the methods: year, name, what changed"))
    legend = escape(_("A filled dot: there is a chapter. A name leads to the models."))
    return (f'<div class="zoo-scroll zoo-tree-box" role="region" tabindex="0" aria-label="{label}">'
            f'<svg class="zoo-tree" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="group" '
            f'aria-label="{label}">{"".join(parts)}</svg></div>'
            f'<p class="zoo-source">{legend}</p>')


class FamilyList(SphinxDirective):
    """The families of a kind, each with what it is in a few words."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        listing = nodes.bullet_list(classes=["zoo-families"])
        for family in families().values():
            if family.kind == self.arguments[0]:
                line = nodes.paragraph("", "", translatable=False)
                line += link(_(facts.title(family.name)), address(self.env.docname, family.page))
                line += nodes.Text(_(" ({year}): {change}").format(year=family.year, change=_(family.change)))
                listing += nodes.list_item("", line)
        return [listing]


def link(text: str, target: str) -> nodes.reference:
    return nodes.reference(text, text, refuri=target)


def setup(app: Sphinx) -> None:
    app.add_directive("family-facts", FamilyFacts)
    app.add_directive("family-commands", FamilyCommands)
    app.add_directive("cite-family", CiteFamily)
    app.add_directive("cite-paper", CitePaper)
    app.add_directive("cite-library", CiteLibrary)
    app.add_directive("family-tree", FamilyTree)
    app.add_directive("family-list", FamilyList)
