"""Files of the project on pages of the book: the source of methods, the notebooks, the changelog, the licence.

    ```{project-file} CHANGELOG.md       a file of the root: Markdown as a page, other text as it is; both in English
    ```

Every chapter begins with links to its notebook and its sources; a method's chapter ends with its papers, unless it
names them itself. The source pages belong to the book so that it can be read without a network; where `_config.yml`
names a repository, links to it stand beside.
"""
from __future__ import annotations

import posixpath
import shutil
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from zoobook import facts
from zoobook.families import address, citation, families, source_page, sources, stem
from zoobook.languages import _

ROOT = facts.BOOK.parent


class ProjectFile(SphinxDirective):
    """A file of the project's root, in the language that it is written in."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        path = ROOT / self.arguments[0]
        self.env.note_dependency(str(path))
        text = path.read_text("utf-8")
        if path.suffix != ".md":
            return [nodes.literal_block(text, text, language="yaml" if path.suffix == ".cff" else "none",
                                        translatable=False)]
        if self.env.app.builder.name == "gettext":
            return []
        # Sections stay below the page's own title.
        lines = [line for line in text.splitlines() if not line.startswith("# ")]
        box = nodes.container(classes=["zoo-file"])
        box["lang"] = "en"
        self.state.nested_parse(lines, 0, box, match_titles=True)
        for node in box.findall(nodes.TextElement):
            node["translatable"] = False
        return box.children if any(isinstance(child, nodes.section) for child in box.children) else [box]


class RepositoryLink(SphinxDirective):
    """The address of the repository, where `_config.yml` names one."""

    def run(self) -> list[nodes.Node]:
        url = self.config.html_theme_options.get("repository_url")
        if not url:
            return []
        return [nodes.paragraph("", "", nodes.reference("", str(_("Repository")), refuri=url), translatable=False)]


def toolbar(app: Sphinx, docname: str) -> str:
    """Links to a chapter's notebook and sources."""
    name, folder = posixpath.basename(docname), posixpath.dirname(docname)
    notebook = posixpath.relpath(f"_downloads/{name}.ipynb", folder)
    text = posixpath.relpath(f"_downloads/{name}.py", folder)
    links = [anchor(notebook, _("Download the notebook"), " download"),
             anchor(text, _("Download as text"), " download")]
    family = by_stem().get(name)
    for file in sources(family) if family else []:
        if "/methods/" in file:
            links.append(anchor(address(docname, source_page(file)), file))
    if family:
        links.append(anchor(address(docname, families()[family].page), _("Models and results")))
    if url := app.config.html_theme_options.get("repository_url"):
        links.append(anchor(url, _("Repository")))
    return f'<p class="zoo-facts">{" · ".join(links)}</p>'


def anchor(target: str, text: str, attributes: str = "") -> str:
    return f'<a href="{target}"{attributes}>{escape(text)}</a>'


def by_stem() -> dict[str, str]:
    """The families by the names of their files."""
    return {stem(name): name for name in families()}


def complete_chapter(app: Sphinx, doctree: nodes.document) -> None:
    """Add the links below a chapter's title and the papers at its end."""
    docname = app.env.docname
    if app.builder.name == "gettext" or not docname.startswith("notebooks/"):
        return
    section = next(iter(doctree.findall(nodes.section)), None)
    if section is None:
        return
    section.insert(1, nodes.raw("", toolbar(app, docname), format="html"))
    family = by_stem().get(posixpath.basename(docname))
    has_papers = any("zoo-cite" in block["classes"] for block in doctree.findall(nodes.literal_block))
    if family and not has_papers:
        title = str(_("How to cite"))
        papers = nodes.section("", nodes.title(title, title), *citation(families()[family].papers),
                               ids=["how-to-cite"], names=["how to cite"])
        section += papers


def source_files() -> list[str]:
    """The files that have a source page."""
    return sorted({file for family in families() for file in sources(family)})


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each source file, as `sphinx.ext.viewcode` makes them."""
    for file in source_files():
        text = (ROOT / file).read_text("utf-8")
        code = app.builder.highlighter.highlight_block(text, "python", linenos=False)  # type: ignore[attr-defined]
        body = f'<h1>{escape(file)}</h1><div class="zoo-source-file">{code}</div>'
        yield source_page(file), {"title": file, "body": body, "parents": []}, "page.html"


def copy_notebooks(app: Sphinx, error: Exception | None) -> None:
    """Put the chapters' notebooks and texts beside the pages, to be downloaded."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "_downloads"
        folder.mkdir(exist_ok=True)
        for docname in app.env.found_docs:
            if docname.startswith("notebooks/"):
                for suffix in (".ipynb", ".py"):
                    shutil.copyfile(ROOT / f"{docname}{suffix}", folder / f"{posixpath.basename(docname)}{suffix}")


def setup(app: Sphinx) -> None:
    app.add_directive("project-file", ProjectFile)
    app.add_directive("repository-link", RepositoryLink)
    app.connect("doctree-read", complete_chapter)
    app.connect("html-collect-pages", source_pages)
    app.connect("build-finished", copy_notebooks)
