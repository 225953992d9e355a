"""English and Japanese: captions of the table of contents, the switch between languages, search in both.

Texts of this extension itself are in the catalogue `zoobook`, those of the pages in a catalogue a page.
"""
from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.locale import get_translation
from sphinx.search import SearchLanguage
from sphinx.transforms import SphinxTransform
from sphinx.util.i18n import docname_to_domain

CATALOGUE = "zoobook"
LOCALE = Path(__file__).resolve().parents[2] / "locale"
LANGUAGES = {"en": "English", "ja": "日本語"}

_ = get_translation(CATALOGUE)


class TranslateCaptions(SphinxTransform):
    """Captions and titles of `_toc.yml`. sphinx-external-toc inserts them when Sphinx has already translated."""

    default_priority = 101

    def apply(self, **kwargs: Any) -> None:
        domain = docname_to_domain(self.env.docname, self.config.gettext_compact)
        catalogue = get_translation(domain)
        for toctree in self.document.findall(addnodes.toctree):
            toctree.preserve_original_messages()
            if self.app.builder.name == "gettext":
                continue
            for message in toctree.extract_original_messages():
                toctree.apply_translated_message(message, str(catalogue(message)))


class Bigrams(SearchLanguage):
    """Japanese text cut into pairs of neighbouring characters, in the index and in the query alike.

    A word list cannot do it: the browser does not know the list, and so misses compound words.
    """

    lang = "ja"
    language_name = "Japanese"
    _runs = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f々ー]+|[\w.+-]*\w")
    js_splitter_code = r"""
function splitQuery(query) {
  const runs = query.match(/[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f々ー]+|[\p{L}\p{N}_.+-]*[\p{L}\p{N}_]/gu) || [];
  return runs.flatMap((run) => {
    if (!/^[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f々ー]/.test(run) || run.length < 3) return [run];
    return Array.from({length: run.length - 1}, (_, i) => run.slice(i, i + 2));
  });
}
"""

    def split(self, input: str) -> list[str]:
        words = []
        for run in self._runs.findall(input):
            if len(run) < 3 or not self._runs.match(run[0]) or run[0] < "\u3040":
                words.append(run)
            else:
                words += [run[i:i + 2] for i in range(len(run) - 1)]
        return words

    def word_filter(self, word: str) -> bool:
        return len(word) > 1


def configure(app: Sphinx, config: Config) -> None:
    """What Sphinx, jupyter-book and the theme do not translate by themselves."""
    app.add_message_catalog(CATALOGUE, str(LOCALE))
    config.html_title = str(_("detcore: a zoo of object detectors"))
    config.html_theme_options["search_bar_text"] = str(_("Search this book"))
    config.html_theme_options["toc_title"] = str(_("On this page"))
    config.nb_code_prompt_show = str(_("Show code"))
    config.nb_code_prompt_hide = str(_("Hide code"))
    config.numfig = False  # which jupyter-book's LaTeX part turns on; numbers would run through the whole book
    config.copybutton_selector = "div.highlight pre"


def add_languages(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: nodes.document) -> None:
    """Give a page the addresses of the same page in every language; the languages are folders side by side."""
    up = posixpath.relpath(".", posixpath.dirname(pagename) or ".")
    context["languages"] = [(code, name, posixpath.normpath(f"{up}/../{code}/{pagename}.html"))
                            for code, name in LANGUAGES.items()]
    context["language_label"] = str(_("Language"))
    context["table_labels"] = {
        "filter": str(_("Filter the rows")), "count": str(_("{shown} of {all} rows")),
        "nothing": str(_("No row has all these words.")), "csv": str(_("Download this table as CSV")),
        "sort": str(_("Sort by this column")), "more": str(_("← → The table scrolls sideways."))}


def setup(app: Sphinx) -> None:
    app.add_transform(TranslateCaptions)
    app.add_search_language(Bigrams)
    app.connect("config-inited", configure, priority=900)
    app.connect("html-page-context", add_languages)
