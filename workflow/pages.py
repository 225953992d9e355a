"""Build the book's pages in one language: `python -m workflow.pages ja`. A warning is an error.

A chapter's page has the text of `notebooks/NAME.py` as it is now, and the outputs of this machine's run where there is
one that is up to date, else those of the committed notebook.
"""
from __future__ import annotations

import argparse
import io
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from docutils.nodes import document
from jupyter_book.config import get_final_config
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils
from sphinx.util.i18n import CatalogRepository
from tqdm import tqdm

from workflow import fingerprint, text
from workflow.faults import sentences
from workflow.fingerprint import BUILD, ROOT

START = """<!doctype html>
<html><head><meta charset="utf-8"><title>detcore</title><link rel="icon" href="en/_static/icon.svg">
<script>
location.replace(((navigator.language || "en").startsWith("ja") ? "ja" : "en") + "/book/index.html");
</script>
<meta http-equiv="refresh" content="1; url=en/book/index.html"></head>
<body><a href="en/book/index.html">English</a> <a href="ja/book/index.html">日本語</a></body></html>
"""


def notebook(name: str, profile: str) -> Path:
    """The executed notebook that a chapter's page shows."""
    state = fingerprint.states(profile).get(name)
    folder = fingerprint.build_folder(profile, name) if state and state.here else ROOT / "notebooks"
    return folder / f"{name}.ipynb"


def sphinx(builder: str, language: str, output: Path, profile: str = "pocket") -> int:
    """Run Sphinx with the configuration of `_config.yml`; the number of warnings, which are shown."""
    sys.path.insert(0, str(ROOT / "book/_ext"))
    config, _ = get_final_config(user_yaml=ROOT / "_config.yml", sourcedir=ROOT,
                                 cli_config={"latex_individualpages": False})
    config["language"] = language
    config["extensions"].remove("sphinx_thebe")  # runs code on a server, with scripts from elsewhere
    # Sphinx compiles catalogues after the extensions have asked for their texts; on a fresh clone that is too late.
    for catalogue in CatalogRepository(ROOT, config["locale_dirs"], language, "utf-8").catalogs:
        if catalogue.is_outdated():
            catalogue.write_mo(language)
    with patch_docutils(str(ROOT)), docutils_namespace():
        app = Sphinx(str(ROOT), None, str(output), str(BUILD / "doctrees" / f"{builder}-{language}"), builder, config,
                     status=io.StringIO(), warning=sys.stderr, freshenv=True)
        with tqdm(desc=f"pages, {language}", unit="page", mininterval=0.3 if sys.stderr.isatty() else 20,
                  bar_format="{desc} |{bar:20}| {n_fmt}/{total_fmt} pages, {elapsed} {postfix}") as bar:
            follow(app, bar)
            app.connect("source-read", partial(read, profile=profile))
            app.build()
            bar.set_postfix_str("")
    return app._warncount or app.statuscode


def read(app: Sphinx, page: str, source: list[str], profile: str) -> None:
    """Give Sphinx a chapter's notebook in place of the file that it found."""
    folder, _, name = page.rpartition("/")
    if folder == "notebooks":
        source[0] = nbformat.writes(text.load(name, notebook(name, profile)))


def follow(app: Sphinx, bar: tqdm) -> None:
    """Show on a bar how many pages are read, and then how many written."""

    def begin(app: Sphinx, env: Any, names: list[str]) -> None:
        bar.reset(total=len(names))

    def read(app: Sphinx, name: str, source: list[str]) -> None:
        bar.set_postfix_str(f"reading {name}", refresh=False)
        bar.update()

    def written(app: Sphinx, env: Any) -> None:
        bar.reset(total=len(env.found_docs))

    def write(app: Sphinx, name: str, template: str, context: Any, tree: document | None) -> None:
        if tree:
            bar.set_postfix_str(f"writing {name}", refresh=False)
            bar.update()

    app.connect("env-before-read-docs", begin)
    app.connect("source-read", read)
    app.connect("env-updated", written)
    app.connect("html-page-context", write)


@sentences()
def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workflow.pages", description="Build the pages in one language.")
    parser.add_argument("language")
    parser.add_argument("--profile", default="pocket", help="whose runs on this machine are shown")
    options = parser.parse_args()
    language = options.language
    # In a folder of its own: the pictures of notebooks go beside the pages, and languages are built side by side.
    output, target = BUILD / "pages" / language / "html", BUILD / "book" / language
    shutil.rmtree(output, ignore_errors=True)
    if warnings := sphinx("html", language, output, options.profile):
        sys.exit(f"The pages ({language}) have {warnings} warnings; they are errors.")
    shutil.rmtree(output / "_sources", ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    output.rename(target)
    (BUILD / "book/index.html").write_text(START, "utf-8")


if __name__ == "__main__":
    main()
