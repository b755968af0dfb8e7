"""Settings of the book that `make docs` makes of the documentation.

The sources are the pages where they stand in the clone, so every link between them works on GitHub as well:
sphinx-build takes the top of the clone as its source folder and its settings from this one. ``docs/index.md`` is the
first page and has the table of contents.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

import opd

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "opd"
project_copyright = "the authors of opd, Apache-2.0"
release = opd.__version__

root_doc = "docs/index"
include_patterns = ["docs/**.md", "reports/**.md", "notebooks/*.ipynb", "examples/README.md"]
include_patterns += ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"]
exclude_patterns = [".*", "**/.*"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    *("command_line", "docstrings", "mathml", "notebooks", "pipeline_schema", "vector_figures"),
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_render_markdown_format = "gfm"  # tables in outputs
nb_ipywidgets_js = {}  # what notebooks show as widgets has text beside it

autodoc_default_options = {"members": True, "member-order": "bysource"}
napoleon_use_ivar = True  # attributes as one list, as in the docstring
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

# Every name that a docstring refers to has to exist; types are those of annotations, also of other packages.
nitpicky = True
nitpick_ignore_regex = [("py:class", r"(?!opd\.).*")]

html_theme = "sphinx_book_theme"
html_title = f"opd {release}"
html_theme_options = {"navbar_persistent": []}  # the search stands in the sidebar
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["book.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Show CSV, for which there is no lexer, as plain text."""
    app.add_lexer("csv", TextLexer)
