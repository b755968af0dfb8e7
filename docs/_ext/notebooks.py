"""Notebooks as chapters: the executed copy where a stage has left one. Nothing is executed for the book."""

from __future__ import annotations

from pathlib import Path

import nbformat
from sphinx.application import Sphinx


def executed_copy(root: Path, name: str) -> Path | None:
    """The newest executed copy of a notebook below ``reports``; None if there is none."""
    copies = [*root.glob(f"reports/notebooks/{name}.ipynb"), *root.glob(f"reports/*/notebooks/{name}.ipynb")]
    return max(copies, key=lambda path: path.stat().st_mtime, default=None)


def show_executed(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the executed copy in the place of a notebook, and say below its title which one is shown."""
    folder, _, name = docname.rpartition("/")
    if folder != "notebooks":
        return
    app.env.note_reread()  # a copy may appear
    root = Path(app.srcdir)
    copy = executed_copy(root, name)
    note = "*Not executed where this book was built; `make repro` or `make study` writes executed copies.*"
    if copy is not None:
        source[0] = copy.read_text(encoding="utf-8")
        note = f"*As executed: `{copy.relative_to(root).as_posix()}`.*"
    notebook = nbformat.reads(source[0], as_version=4)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note))
    source[0] = nbformat.writes(notebook)


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen to documents as they are read."""
    app.connect("source-read", show_executed)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
