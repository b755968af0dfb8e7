"""Parts of a page, made by code: paragraphs, tables and sections as nodes of docutils."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from docutils import nodes

Cell = str | nodes.Node


def paragraph(*parts: Cell) -> nodes.paragraph:
    """Create a paragraph of texts and inline nodes."""
    return nodes.paragraph("", "", *(nodes.Text(part) if isinstance(part, str) else part for part in parts))


def code(text: str) -> nodes.literal:
    """Create code within a line."""
    return nodes.literal(text, text)


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> nodes.table:
    """Create a table; a cell is text or an inline node."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    for part, lines in ((nodes.thead(), [head]), (nodes.tbody(), rows)):
        part += [nodes.row("", *(nodes.entry("", paragraph(cell)) for cell in line)) for line in lines]
        group += part
    return nodes.table("", group)


def section(title: Cell, anchor: str, *content: nodes.Node) -> nodes.section:
    """Create a section with an anchor."""
    heading = nodes.title("", "", *paragraph(title).children)
    return nodes.section("", heading, *content, ids=[anchor], names=[anchor])
