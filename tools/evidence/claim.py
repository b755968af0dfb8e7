"""Claims: text of a page whose numbers are rendered from tables.

A text is written with format fields, ``"the agent {:.2f} ms"``. With numbers as wildcards it finds its place in the
page; spaces match line breaks, so a page may wrap it as it likes, and only the numbers are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import NamedTuple

from evidence.tables import Number, Tables

WORDS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
"""Counts in words, for the format ``{:word}``."""

ANY_NUMBER = r"(?<![\d.,])([+−-]?\d(?:[\d,]*\d)?(?:\.\d+)?)(?!\d)"
ANY_WORD = r"(\w+)"
ANY_TEXT = r"(\S(?:.*?\S)?)"

Numbers = Callable[[Tables], Sequence[Number]]
Row = tuple[str, Sequence[Number]]
"""A line of a Markdown table as a text with fields, and its numbers."""


class Mistake(Exception):
    """A claim that is not where, or not what, it should be; a person has to look at it."""


class Change(NamedTuple):
    """Text of a page that is not what the tables say, at an offset, and what it should be."""

    start: int
    said: str
    says: str
    number: Number | None


def shown(number: Number, spec: str) -> str:
    """A number as the pages write it: a minus sign that is no hyphen, and no sign before zero."""
    if spec == "word":
        return WORDS[int(number.value)]
    text = format(number.value, spec)
    if isinstance(number.value, str):
        return text
    if not float(text.replace(",", "")):
        text = text.lstrip("+-")
    return text.replace("-", "−")


def filled(text: str, numbers: Sequence[Number]) -> tuple[str, list[str]]:
    """A text with its fields filled in, and the fields alone.

    Raises:
        Mistake: if there are more or fewer fields than numbers.
    """
    specs = [spec for _, name, spec, _ in Formatter().parse(text) if name is not None]
    if len(specs) != len(numbers):
        raise Mistake(f"{len(specs)} fields but {len(numbers)} numbers in {text!r}; give one for each")
    fields = [shown(number, spec or "") for number, spec in zip(numbers, specs, strict=True)]
    rest = iter(fields)
    parts = [literal + (next(rest) if name is not None else "") for literal, name, _, _ in Formatter().parse(text)]
    return "".join(parts), fields


def pattern(text: str) -> str:
    """A regular expression that finds a text whatever its numbers and line breaks are."""
    parts = []
    for literal, name, spec, _ in Formatter().parse(text):
        parts.append(re.sub(r"(?:\\ |\\\n)+", r"\\s+", re.escape(literal)))
        if name is not None:
            parts.append(ANY_WORD if spec == "word" else ANY_NUMBER if spec else ANY_TEXT)
    return "".join(parts)


@dataclass(frozen=True)
class Claim:
    """A stretch of prose.

    Attributes:
        page: path below the project.
        text: with format fields; ``{:word}`` writes a count in words, ``{}`` any text.
        numbers: of the fields, in their order.
        holds: whether what the words say is still true; a person has to rewrite them where it is not.
        source: of words without numbers: the table and what to look for in it.
    """

    page: str
    text: str
    numbers: Numbers = lambda tables: ()
    holds: Callable[[Tables], bool] | None = None
    source: str = ""

    def place(self, page: str) -> tuple[int, int]:
        """Start and end in the text of the page.

        Raises:
            Mistake: if it is not there, or more than once.
        """
        match = _only(pattern(self.text), page, self.text)
        return match.start(), match.end()

    def changes(self, page: str, tables: Tables) -> list[Change]:
        """What the page has to change, number by number.

        Raises:
            Mistake: if the text is not found, or its words are no longer true.
        """
        match, numbers = _only(pattern(self.text), page, self.text), self.numbers(tables)
        fields = filled(self.text, numbers)[1]
        if self.holds is not None and not self.holds(tables):
            raise Mistake(f"no longer true, rewrite it: {self.text!r}")
        found = [
            Change(match.start(place), match[place], field, number)
            for place, field, number in zip(range(1, len(fields) + 1), fields, numbers, strict=True)
        ]
        return [change for change in found if change.said != change.says]


@dataclass(frozen=True)
class TableClaim:
    """A whole table in Markdown.

    Attributes:
        page: path below the project.
        head: its first line, which finds it.
        rows: of the lines below head and rule.
        cells: in words, where they are from.
    """

    page: str
    head: str
    rows: Callable[[Tables], Sequence[Row]]
    cells: str

    def _match(self, page: str) -> re.Match[str]:
        return _only(re.escape(self.head) + r"\n\|[-:| ]+\|\n((?:\|.*(?:\n|$))*)", page, self.head)

    def place(self, page: str) -> tuple[int, int]:
        """Start and end in the text of the page.

        Raises:
            Mistake: if it is not there, or more than once.
        """
        match = self._match(page)
        return match.start(), match.end()

    def numbers(self, tables: Tables) -> list[Number]:
        """All of them, line by line."""
        return [number for _, numbers in self.rows(tables) for number in numbers]

    def changes(self, page: str, tables: Tables) -> list[Change]:
        """The lines that are not what they should be; the whole body if there are more or fewer of them.

        Raises:
            Mistake: if the table is not found.
        """
        match, lines = self._match(page), [filled(text, numbers)[0] for text, numbers in self.rows(tables)]
        said, start = match[1].splitlines(), match.start(1)
        if len(said) != len(lines):
            return [Change(start, match[1], "".join(f"{line}\n" for line in lines), None)]
        changes = []
        for old, new in zip(said, lines, strict=True):
            changes += [Change(start, old, new, None)] if old != new else []
            start += len(old) + 1
        return changes


def _only(expression: str, page: str, text: str) -> re.Match[str]:
    matches = list(re.finditer(expression, page))
    if len(matches) != 1:
        raise Mistake(f"{'not found' if not matches else f'found {len(matches)} times'}: {text!r}; correct the claim")
    return matches[0]
