"""Numbers of a page that no claim has and no reason excuses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

NUMBER = re.compile(r"(?<![\w.])[+−-]?\d(?:[\d,]*\d)?(?:\.\d+)*")
"""Digits that do not belong to a name such as ``v5``."""

CODE = re.compile(r"^```.*?^```|`[^`\n]+`|\]\([^)]*\)|<[^>\n]*>|&#?\w+;", re.MULTILINE | re.DOTALL)
"""What is typed or linked to, but not said."""


class Exempt(NamedTuple):
    """Numbers that are no measurements: a regular expression with the reason, on one page or on all (``""``)."""

    page: str
    expression: str
    reason: str


class Stray(NamedTuple):
    """A number without a source: line of the page, and the words around it."""

    line: int
    text: str


def strays(name: str, page: str, spans: Sequence[tuple[int, int]], exempt: Iterable[Exempt]) -> Iterator[Stray]:
    """Numbers of a page outside of code, of the spans of claims, and of what is exempt."""
    excused = [match.span() for match in CODE.finditer(page)] + list(spans)
    for each in exempt:
        if each.page in ("", name):
            excused += [match.span() for match in re.finditer(each.expression, page)]
    for match in NUMBER.finditer(page):
        if not any(start <= match.start() and match.end() <= end for start, end in excused):
            around = page[max(0, match.start() - 40) : match.end() + 30].replace("\n", " ")
            yield Stray(page.count("\n", 0, match.start()) + 1, around)


def unused(pages: dict[str, str], exempt: Iterable[Exempt]) -> list[Exempt]:
    """Excuses that excuse nothing on these pages any more."""
    here = [each for each in exempt if each.page in ("", *pages)]
    texts = {each: [text for name, text in pages.items() if each.page in ("", name)] for each in here}
    return [each for each in here if not any(re.search(each.expression, text) for text in texts[each])]
