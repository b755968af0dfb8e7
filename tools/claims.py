"""Compare every number of the pages with the table that it is from, or bring the pages up to date.

    python tools/claims.py [--write | WORDS]

Without arguments it prints what differs; with ``--write`` it puts numbers right and writes docs/claims.md; with a
number or other words it prints the lines of docs/claims.md that have them. What it cannot put right, such as a sentence
that is no longer true, it leaves to a person. Exit code: 0 when everything agrees, or agrees now, 1 otherwise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from evidence import book, page
from evidence.claims import CLAIMS, COVERED, EXEMPT, UNTABLED
from evidence.paper import findings_to_review
from evidence.tables import Tables

PROJECT = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Check, write or search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="a number, or other words to find")
    parser.add_argument("--write", action="store_true", help="bring the pages up to date")
    options = parser.parse_args(arguments)
    if options.words:
        return search(" ".join(options.words))
    return compare(options.write)


def search(words: str) -> int:
    """Print the lines of the page of claims that have some words."""
    lines = [line for line in book.read(PROJECT, page.PAGE).splitlines() if words in line and line.startswith("|")]
    print(
        "\n\n".join(lines) or f"{page.PAGE} has no {words!r}: it is no measured number, or its page has no claims yet"
    )
    return int(not lines)


def compare(write: bool) -> int:
    """Print what is wrong, and put right what can be."""
    tables = Tables(PROJECT)
    found = book.stale(CLAIMS, tables, write)
    found += book.without_source(CLAIMS, [*UNTABLED, *EXEMPT], COVERED, PROJECT) + findings_to_review(tables)
    found += own_page(tables, write)
    for finding in found:
        state = "mended: " if finding.mended and write else ""
        print(f"{finding.page}:{finding.line}: {state}{finding.text}")
    left = [finding for finding in found if not (finding.mended and write)]
    print(f"{len(CLAIMS)} claims on {len(book.pages_of(CLAIMS))} pages; {len(found)} findings, {len(left)} left")
    return int(bool(left))


def own_page(tables: Tables, write: bool) -> list[book.Finding]:
    """Whether the page of claims is what it should be."""
    path = PROJECT / page.PAGE
    try:
        text = page.rendered(CLAIMS, UNTABLED, EXEMPT, tables)
    except Exception as error:  # whatever a claim that cannot be computed raises
        return [book.Finding(page.PAGE, 0, f"is not written before these claims are put right: {error}", False)]
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return []
    if write:
        path.write_text(text, encoding="utf-8")
    return [book.Finding(page.PAGE, 1, "is not what the claims and tables say; --write writes it", True)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
