"""Every measured number of the pages is the table's; and the mechanism finds and mends one that is not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from opd.host.paths import project_path

ROOT = project_path()
sys.path.insert(0, str(ROOT / "tools"))

import claims as command  # noqa: E402
from evidence import book, claims, paper  # noqa: E402
from evidence.claim import Claim, Mistake, TableClaim, filled, shown  # noqa: E402
from evidence.commands import Tolerance, costs, first, index, tolerances  # noqa: E402
from evidence.coverage import Exempt, strays  # noqa: E402
from evidence.tables import Number, Tables  # noqa: E402

# ---------------------------------------------------------------------------------------------- the pages


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(ROOT)


def lines(findings: list[book.Finding]) -> str:
    return "\n".join(f"{each.page}:{each.line}: {each.text}" for each in findings)


def test_every_number_is_the_tables(tables: Tables):
    found = book.stale(claims.CLAIMS, tables)
    assert not found, f"python tools/claims.py --write mends most of these:\n{lines(found)}"


def test_every_number_has_a_source():
    found = book.without_source(claims.CLAIMS, [*claims.UNTABLED, *claims.EXEMPT], claims.COVERED, ROOT)
    assert not found, lines(found)


def test_the_page_of_claims_is_up_to_date(tables: Tables):
    assert not command.own_page(tables, write=False), "python tools/claims.py --write"


def test_disagreements_with_the_paper_have_a_sentence_and_nothing_else_has(tables: Tables):
    found = paper.findings_to_review(tables)
    assert not found, lines(found)


def test_every_percentage_of_the_paper_is_there():
    places = " ".join(finding.says for finding in paper.PAPER)
    for figure in ("120", "36", "16", "3.8", "37", "21", "32.5", "53.5", "111.6", "212.8"):
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?=[ ,])", places), figure


def test_every_table_of_results_has_a_command_and_a_tolerance(tables: Tables):
    for path in (ROOT / "reports").rglob("*.csv"):
        table = path.relative_to(ROOT).as_posix()
        assert first(index(tables), table).command and first(tolerances(tables), table).words
    assert {"`make repro`", "`make bench`", "`make live`"} <= {cost.command for cost in costs(tables)}


def test_words_are_found_on_the_page_of_claims(capsys):
    assert command.main(["two", "stages", "of", "five", "variants"]) == 0
    assert "median_ms" in capsys.readouterr().out
    assert command.main(["no such words"]) == 1


# ------------------------------------------------------------------------------------------ the mechanism

PAGE = "docs/times.md"
PROSE = """# Times

The agent takes **0.20 ms** and the
planner 9.0 ms, measured in 2024.

| policy | ms |
|---|---|
| agent | 0.20 |

Untouched 7.
"""
INDEX = """
| files | command | made by commit |
|---|---|---|
| `times.csv` | `make times` | `abc` |
| `*` | `make rest` | `abc` |

| files | off by | why |
|---|---|---|
| `times.csv` | 50 % | times |
"""


def milliseconds(tables: Tables, policy: str) -> Number:
    return tables.cell("times.csv", "ms", policy=policy)


SENTENCE = Claim(
    PAGE,
    "The agent takes **{:.2f} ms** and the planner {:.1f} ms",
    lambda tables: [milliseconds(tables, "agent"), milliseconds(tables, "planner")],
)
TABLE = TableClaim(
    PAGE, "| policy | ms |", lambda tables: [("| agent | {:.2f} |", [milliseconds(tables, "agent")])], "ms"
)
SMALL = [SENTENCE, TABLE]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a page, its table and an index."""
    for path, text in {
        PAGE: PROSE,
        "reports/times.csv": "policy,ms\nagent,0.2\nplanner,9.04\n",
        "reports/README.md": INDEX,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_a_page_that_says_what_the_table_says_is_left_alone(project: Path):
    assert book.stale(SMALL, Tables(project), write=True) == []
    assert (project / PAGE).read_text() == PROSE


def test_a_changed_number_is_found_with_line_and_cell(project: Path):
    (project / PAGE).write_text(PROSE.replace("planner 9.0", "planner 9.9"))
    (found,) = book.stale(SMALL, Tables(project))
    assert (found.page, found.line, found.mended) == (PAGE, 4, True)
    assert found.text == (
        "says 9.9, the table says 9.0, within the tolerance (reports/times.csv: `ms` of policy planner)"
    )


def test_a_changed_table_is_written_to_prose_and_table_and_nowhere_else(project: Path):
    (project / "reports/times.csv").write_text("policy,ms\nagent,0.5\nplanner,9.04\n")
    found = book.stale(SMALL, Tables(project), write=True)
    assert [each.line for each in found] == [3, 8] and "beyond the tolerance" in found[0].text
    assert (project / PAGE).read_text() == PROSE.replace("0.20", "0.50")
    assert book.stale(SMALL, Tables(project)) == []


def test_a_new_line_of_a_table_is_written(project: Path):
    longer = TableClaim(
        PAGE, TABLE.head, lambda tables: [*TABLE.rows(tables), ("| all | {} |", [Number("x", "", "")])], ""
    )
    assert len(book.stale([longer], Tables(project), write=True)) == 1
    assert (project / PAGE).read_text() == PROSE.replace("| agent | 0.20 |\n", "| agent | 0.20 |\n| all | x |\n")


def test_words_that_changed_or_are_no_longer_true_are_left_to_a_person(project: Path):
    (project / PAGE).write_text(PROSE.replace("takes", "needs"))
    untrue = Claim(PAGE, "Untouched 7.", holds=lambda tables: False)
    missing = Claim(PAGE, "Untouched {:.0f}.", lambda tables: [milliseconds(tables, "nobody")])
    found = book.stale([SENTENCE, untrue, missing], Tables(project), write=True)
    assert [(each.line, each.mended) for each in found] == [(1, False), (10, False), (10, False)]
    for text, each in zip(["not found", "no longer true", "no row"], found, strict=True):
        assert text in each.text
    assert "needs" in (project / PAGE).read_text()


def test_a_number_outside_of_claims_is_reported(project: Path):
    found = book.without_source(SMALL, [], [PAGE], project)
    assert [(each.line, each.text.count("2024") or each.text.count("7.")) for each in found] == [(4, 1), (10, 1)]
    year = [Exempt(PAGE, r"in 2024", "a year"), Exempt("", r"Untouched \d", "a test")]
    assert book.without_source(SMALL, year, [PAGE], project) == []
    (useless,) = book.without_source(SMALL, [*year, Exempt("", "1999", "nothing")], [PAGE], project)
    assert "covers nothing" in useless.text


def test_code_links_and_names_are_no_numbers():
    page = "`x = 3` [four](4.md) v5 &#8718;\n```\n6\n```\nbut 7.5 is\n"
    assert [stray.line for stray in strays("", page, [], [])] == [5]


def test_two_places_are_one_too_many(project: Path):
    (project / PAGE).write_text(PROSE + PROSE)
    with pytest.raises(Mistake, match="found 2 times"):
        SENTENCE.place((project / PAGE).read_text())


@pytest.mark.parametrize(
    ("value", "spec", "text"),
    [
        (-0.04, ".1f", "0.0"),
        (-1.26, "+.1f", "−1.3"),
        (1699.42, ",.0f", "1,699"),
        (4, "word", "four"),
        ("ocr", "", "ocr"),
    ],
)
def test_numbers_as_the_pages_write_them(value, spec, text):
    assert shown(Number(value, "", ""), spec) == text


def test_fields_and_numbers_must_be_as_many():
    with pytest.raises(Mistake, match="2 fields but 1 numbers"):
        filled("{:.1f} of {:.1f}", [Number(1.0, "", "")])


def test_a_tolerance_is_a_share_or_a_distance_whichever_is_more():
    limit = Tolerance((), 0.1, 0.5, "")
    assert limit.allows("1.0", "1.5") and not limit.allows("1.0", "1.6")
    assert limit.allows("1,000", "1,100") and not limit.allows("1,000", "1,101") and limit.allows("−1.0", "−0.5")
