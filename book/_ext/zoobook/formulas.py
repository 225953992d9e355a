"""Formulas as MathML, which browsers draw themselves: no script, nothing to fetch."""
from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def _mathml(node: nodes.Element, block: bool) -> str:
    try:
        # docutils knows \\ldots alone, not what amsmath chooses between by context.
        return tex2mathml(re.sub(r"\\dots\b", r"\\ldots", node.astext()), as_block=block)
    except MathError as error:
        logger.warning("formula cannot be set: %s", error, location=node)
        return ""


def visit_math(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(f'<span class="math notranslate">{_mathml(node, False)}</span>')
    raise nodes.SkipNode


def visit_math_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    self.body.append(f"{_mathml(node, True)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> Any:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
