"""The page of all claims, ``docs/claims.md``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from evidence.book import AnyClaim, pages_of, read
from evidence.claim import Claim, filled
from evidence.commands import INDEX, costs, first, index, tolerances
from evidence.coverage import Exempt
from evidence.paper import PAPER, Finding
from evidence.tables import Number, Tables

PAGE = "docs/claims.md"

LONGEST = 160
"""Characters of a stretch of a page that are shown."""

EXAMPLES = 3
"""Of what is on many pages."""

HEAD = """# Claims and evidence

<!-- Written by `python tools/claims.py --write`: change the lists in tools/evidence/, not this page. -->

Where does this number come from? Search this page for it. Measured numbers of the README and the pages below stand
here with the cell of the table that they are from, the command that makes the table, and how far your own run may be
off. The pages are written from the tables:

```console
python tools/claims.py            # compare pages and tables: what differs, where, and whether within the tolerance
python tools/claims.py --write    # bring all pages and this one up to date, and say what changed
python tools/claims.py 0.21       # where a number, or any words, come from
```

After a run of your own, such as `make bench`, the first command compares your tables with the pages. A test does so,
too, and fails on a number without a source.
"""

COMMANDS = """
## Commands

What each takes on two cores, from [`reports/README.md`](../reports/README.md), which also has the commit of each run.

| command | minutes | memory |
|---|---|---|
"""

PAPER_HEAD = """
## The paper's claims

*Adaptive Configuration Selection for Multi-Model Inference Pipelines in Edge Computing*, Sec. VI. Percentages are the
agent's value relative to the other policy's, in the mean of our six pipelines. The paper does not name its pipeline and
variants, and they differ from ours: signs can be compared, sizes hardly. Where it says "nearly identical", two figures
within 2 % agree. Its OPD was trained for one pipeline, as `agent-single` and `agent-frugal` are; `agent` is the one
agent for all.

| where | the paper | ours | from | agrees | why not |
|---|---|---|---|---|---|
"""

PAGE_HEAD = """
## Numbers of {page}

[{page}]({link})

| the page says | from | made by | your run may be off by |
|---|---|---|---|
"""

UNTABLED_HEAD = """
## Measured, but in no table

| page | what | why |
|---|---|---|
"""

EXEMPT_HEAD = """
## Numbers that are no measurements

| page | what | reason |
|---|---|---|
"""


def rendered(claims: Sequence[AnyClaim], untabled: Iterable[Exempt], exempt: Iterable[Exempt], tables: Tables) -> str:
    """The whole page."""
    parts = [HEAD, COMMANDS, *(f"| {' | '.join(cost)} |\n" for cost in costs(tables)), PAPER_HEAD]
    parts += [paper_line(finding, tables) for finding in PAPER]
    for page in pages_of(claims):
        link = f"../{page}" if "/" not in page else page.removeprefix("docs/")
        parts.append(PAGE_HEAD.format(page=page, link=link))
        parts += [line for claim in claims if claim.page == page for line in claim_lines(claim, tables)]
    for head, reasons in ((UNTABLED_HEAD, untabled), (EXEMPT_HEAD, exempt)):
        parts += [head, *(exempt_line(each, pages_of(claims), tables) for each in reasons)]
    return "".join(parts)


def exempt_line(exempt: Exempt, pages: Sequence[str], tables: Tables) -> str:
    """What is no number of a table, as its page writes it, and why; a few examples where it is on many pages."""
    texts = (read(tables.project, page) for page in ([exempt.page] if exempt.page else pages))
    found = dict.fromkeys(_plain(match[0]) for text in texts for match in re.finditer(exempt.expression, text))
    said = [text if len(text) <= LONGEST else f"{text[:LONGEST]} …" for text in found]
    shown = "; ".join(f"“{text}”" for text in said[: None if exempt.page else EXAMPLES])
    return f"| {exempt.page or 'all'} | {shown} | {exempt.reason} |\n"


def paper_line(finding: Finding, tables: Tables) -> str:
    """A finding of the paper beside ours."""
    numbers = finding.numbers(tables)
    ours = filled(finding.ours, numbers)[0]
    agrees = "yes" if finding.agrees(tables) else "no"
    return f"| {finding.place} | {finding.says} | {ours} | {_cells(numbers)} | {agrees} | {finding.why_not} |\n"


def claim_lines(claim: AnyClaim, tables: Tables) -> list[str]:
    """A claim with its source: a line, or one for each line of a table."""
    if isinstance(claim, Claim):
        numbers = claim.numbers(tables)
        source = _cells(numbers) if numbers else _link(claim.source)
        return [_line(filled(claim.text, numbers)[0], source, _tables(numbers) or [claim.source], tables)]
    lines = [f"| table “{_plain(claim.head)}”: | | | |\n"]
    for text, numbers in claim.rows(tables):
        said, whose = filled(text, numbers)[0], _tables(numbers)
        source = f"{', '.join(map(_link, whose))}: {_cell(claim.cells)}"
        lines.append(_line(said, source, whose, tables))
    return lines


def _line(said: str, source: str, whose: Sequence[str], tables: Tables) -> str:
    made, off = _made(whose, tables)
    return f"| “{_plain(said)}” | {source} | {made} | {off} |\n"


def _tables(numbers: Iterable[Number]) -> list[str]:
    return list(dict.fromkeys(number.table for number in numbers))


def _cells(numbers: Sequence[Number]) -> str:
    parts = []
    for table in _tables(numbers):
        cells = dict[str, list[str]]()
        for number in numbers:
            if number.table == table:
                what, _, whose = number.cell.partition(" of ")
                cells.setdefault(what, []).append(whose)
        words = (
            " of ".join([what, " / ".join(dict.fromkeys(filter(None, whose)))]).removesuffix(" of ")
            for what, whose in cells.items()
        )
        parts.append(f"{_link(table)}: {'; '.join(words)}")
    return _cell("; ".join(parts))


def _made(sources: Sequence[str], tables: Tables) -> tuple[str, str]:
    """Commands and tolerances of tables."""
    made, off = dict[str, None](), dict[str, None]()
    for table in sources:
        if table == INDEX:
            made["noted by hand"], off["measured once"] = None, None
        else:
            made[first(index(tables), table).command] = None
            off[first(tolerances(tables), table).words] = None
    return "; ".join(made), "; ".join(off)


def _link(table: str) -> str:
    return f"[`{table.removeprefix('reports/')}`](../{table})"


def _plain(text: str) -> str:
    """Words without links and line ends, for a cell of a table."""
    return _cell(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).strip("| "))


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
