"""Docstrings as they are meant: what autodoc and napoleon would show twice, misread, or not check."""

from __future__ import annotations

import pkgutil
from collections import _tuplegetter

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

BEFORE_NAPOLEON = 400


def leave_out_fields(app: Sphinx, what: str, name: str, value: object, *_: object) -> bool | None:
    """Leave out the fields of named tuples one by one: the docstring of their class lists them."""
    return True if isinstance(value, _tuplegetter) else None


def keep_colons(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Keep napoleon from taking the words before a colon, as in "T: requests/s", for the type of an attribute."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment


def exists(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, shown: nodes.TextElement
) -> nodes.TextElement | None:
    """Accept a reference to what the book does not contain if the package does; others are warned about."""
    target = node["reftarget"]
    module, owner = node.get("py:module"), node.get("py:class")
    for place in ("", f"{module}.", f"{module}.{owner}."):
        try:
            pkgutil.resolve_name(f"{place}{target}")
        except (AttributeError, ImportError, ValueError):
            continue
        return shown
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to docstrings as they are read, and to references that are not found."""
    app.connect("autodoc-skip-member", leave_out_fields)
    app.connect("autodoc-process-docstring", keep_colons, BEFORE_NAPOLEON)
    app.connect("missing-reference", exists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
