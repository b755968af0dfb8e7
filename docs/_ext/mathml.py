"""Equations as MathML, which browsers show by themselves: no script, no font and no network."""

from __future__ import annotations

import html

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def mathml(node: nodes.math | nodes.math_block) -> str:
    """Convert an equation; one that cannot be is shown as it is written, with a warning."""
    text = node.astext()
    try:
        return tex2mathml(text, as_block=isinstance(node, nodes.math_block))
    except MathError as error:
        logger.warning("equation %r: %s", text, error, location=node)
        return f"<code>{html.escape(text)}</code>"


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write an equation within a line."""
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write an equation that stands alone."""
    translator.body.append(f"{translator.starttag(node, 'div', CLASS='equation')}{mathml(node)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
