"""Pages against their claims: what is stale, what has no source, and mending the first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from evidence.claim import Change, Claim, Mistake, TableClaim
from evidence.commands import Tolerance, first, tolerances
from evidence.coverage import Exempt, strays, unused
from evidence.tables import Tables

AnyClaim = Claim | TableClaim


class Finding(NamedTuple):
    """Something wrong at a line of a page (0 if unknown); ``mended`` if writing the page puts it right."""

    page: str
    line: int
    text: str
    mended: bool


def read(project: Path, page: str) -> str:
    """Text of a page."""
    return (project / page).read_text(encoding="utf-8")


def pages_of(claims: Iterable[AnyClaim]) -> list[str]:
    """Pages that have claims, in their order."""
    return list(dict.fromkeys(claim.page for claim in claims))


def stale(claims: Sequence[AnyClaim], tables: Tables, write: bool = False) -> list[Finding]:
    """Compare pages with the tables.

    Args:
        claims: of all pages.
        tables: of the project whose pages they are.
        write: whether to put the pages right.

    Returns:
        A finding for every number that is not the table's, and for every claim that a person has to look at.
    """
    found, limits = [], tolerances(tables)
    for page in pages_of(claims):
        text, changes = read(tables.project, page), list[Change]()
        for claim in (claim for claim in claims if claim.page == page):
            try:
                changes += claim.changes(text, tables)
            except Exception as error:  # a table that lacks something must not hide other findings
                reason = (
                    str(error) if isinstance(error, Mistake) else f"{type(error).__name__}: {error}: {_words(claim)!r}"
                )
                found.append(Finding(page, _line(text, _start(claim, text)), reason, False))
        changes.sort(key=lambda change: change.start)
        found += [Finding(page, _line(text, change.start), _sentence(change, limits), True) for change in changes]
        if write and changes:
            (tables.project / page).write_text(_mended(text, changes), encoding="utf-8")
    return found


def _words(claim: AnyClaim) -> str:
    return claim.text if isinstance(claim, Claim) else claim.head


def _start(claim: AnyClaim, page: str) -> int:
    """Where a claim stands on its page; at the top if it is not there."""
    return next((start for start, _ in _span(claim, page)), 0)


def _line(page: str, place: int) -> int:
    return page.count("\n", 0, place) + 1


def _sentence(change: Change, limits: list[Tolerance]) -> str:
    said, says = change.said.strip(), change.says.strip()
    if change.number is None:
        return f"says\n    {said}\n  the table says\n    {says}".replace("\n|", "\n    |")
    return f"says {said}, the table says {says}{_how_far(change, limits)} ({change.number.table}: {change.number.cell})"


def _how_far(change: Change, limits: list[Tolerance]) -> str:
    assert change.number is not None
    try:
        agrees = first(limits, change.number.table).allows(change.said, change.says)
    except ValueError:  # words, or a table without a tolerance
        return ""
    return ", within the tolerance" if agrees else ", beyond the tolerance"


def _mended(page: str, changes: Iterable[Change]) -> str:
    for change in sorted(changes, key=lambda change: -change.start):
        page = page[: change.start] + change.says + page[change.start + len(change.said) :]
    return page


def without_source(
    claims: Sequence[AnyClaim], exempt: Sequence[Exempt], pages: Iterable[str], project: Path
) -> list[Finding]:
    """Numbers of pages that neither a claim nor a reason covers, and reasons that cover nothing."""
    texts = {page: read(project, page) for page in pages}
    found = []
    for page, text in texts.items():
        spans = [span for claim in claims if claim.page == page for span in _span(claim, text)]
        found += [
            Finding(page, stray.line, f"no claim and no reason covers: …{stray.text}…", False)
            for stray in strays(page, text, spans, exempt)
        ]
    found += [
        Finding(each.page, 0, f"covers nothing any more: {each.expression}", False) for each in unused(texts, exempt)
    ]
    return found


def _span(claim: AnyClaim, page: str) -> list[tuple[int, int]]:
    try:
        return [claim.place(page)]
    except Mistake:  # reported as stale
        return []
