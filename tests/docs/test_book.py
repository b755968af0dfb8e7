"""The book that `make docs` builds: complete, without warnings, with links that lead somewhere, for use offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from deadlines import PATIENCE

pytest.importorskip("sphinx", reason="needs the extra docs: pip install 'opd[docs]'")

pytestmark = [pytest.mark.slow, pytest.mark.processes]

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src"}
"""Elements for which a browser fetches something, and the attribute that says what."""


class Page(HTMLParser):
    """What a page links to, what it fetches, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.anchors |= {str(values[key]) for key in ("id", "name") if key in values}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        if values.get(LOADED.get(tag, "")):
            self.fetched.append(str(values[LOADED[tag]]))


def build(source: Path, book: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", str(ROOT / "docs"), *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(source), str(book)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=4 * PATIENCE, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    done = build(ROOT, folder, "-j", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(book: Path) -> dict[Path, Page]:
    found = [path for path in book.rglob("*.html") if "_static" not in path.parts]
    return {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in found}


def test_every_page_and_notebook_is_a_chapter(book: Path, pages: dict[Path, Page]):
    sources = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.ipynb")]
    assert len(sources) > 40
    for source in sources:
        assert (book / source.relative_to(ROOT).with_suffix(".html")).resolve() in pages
    assert "docs/index.html" in (book / "index.html").read_text(encoding="utf-8")


def test_links_lead_to_pages_and_anchors_that_there_are(pages: dict[Path, Page]):
    checked, broken = 0, []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link == "#":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].anchors if target in pages else None
            missing = known is not None and parts.fragment and unquote(parts.fragment) not in known
            if missing or not target.is_file():
                broken.append(f"{path.name}: {link}")
            checked += 1
    assert not broken and checked > 1000


def test_pages_fetch_nothing_from_a_network(pages: dict[Path, Page]):
    for path, page in pages.items():
        for source in page.fetched:
            assert urlsplit(source).scheme in ("", "data"), f"{path.name}: {source}"


def test_the_reference_has_every_command_and_every_key(book: Path):
    commands = (book / "docs/reference/command-line.html").read_text(encoding="utf-8")
    schema = (book / "docs/reference/pipeline-schema.html").read_text(encoding="utf-8")
    library = (book / "docs/reference/pipelines.html").read_text(encoding="utf-8")
    assert all(f'id="opd-{name}"' in commands for name in ("init", "profile", "deploy", "keda"))
    assert "--stage" in commands and "--percentile" not in commands
    assert all(f'id="schema-{name}"' in schema for name in ("device", "accuracy-objective", "variant"))
    assert "module:function" in schema and 'id="opd.objective.qos"' in library


def small(folder: Path, page: str) -> str:
    """What the build says about a book of one page."""
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "index.md").write_text(page, encoding="utf-8")
    done = build(folder, folder / "book")
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def test_what_is_wrong_on_a_page_is_found(tmp_path: Path):
    wrong = {
        "[page](gone.md)": "'gone.md'",
        "[heading](#gone)": "'gone'",
        "[heading](#small)": None,
        "$\\nonsense$": "nonsense",
        "$a_b$": None,
        "```{eval-rst}\n:func:`opd.objective.gone`\n```": "opd.objective.gone",
        "```{eval-rst}\n:func:`opd.objective.qos`\n```": None,
    }
    said = small(tmp_path, "\n\n".join(["# Small", *wrong])).splitlines()
    complaints = [complaint for complaint in wrong.values() if complaint]
    for complaint in complaints:
        assert sum(complaint in line for line in said) == 1, said
    assert sum("WARNING" in line for line in said) == len(complaints)


def test_figures_are_shown_as_vectors_where_there_are_any(tmp_path: Path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "reports").mkdir()
    for name in ("both.png", "both.svg", "one.png"):
        (tmp_path / "reports" / name).write_bytes(b"")
    assert small(tmp_path, "# Small\n\n![a](../reports/both.png) ![b](../reports/one.png)\n") == ""
    fetched = Page((tmp_path / "book/docs/index.html").read_text(encoding="utf-8")).fetched
    shown = {Path(urlsplit(source).path).name for source in fetched}
    assert {"both.svg", "one.png"} <= shown and "both.png" not in shown


def test_the_newest_executed_copy_of_a_notebook_is_shown(tmp_path: Path):
    """Also where it appears after a build."""

    def shown(place: str, time: float) -> str:
        path = tmp_path / place / "01_tried.ipynb"
        path.parent.mkdir(parents=True)
        cells = [{"id": "a", "cell_type": "markdown", "metadata": {}, "source": f"# From {place}"}]
        notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}
        path.write_text(json.dumps(notebook), encoding="utf-8")
        os.utime(path, (time, time))
        assert small(tmp_path, "# Small\n\n```{toctree}\n../notebooks/01_tried\n```\n") == ""
        return (tmp_path / "book/notebooks/01_tried.html").read_text(encoding="utf-8")

    text = shown("notebooks", 3e9)
    assert "<h1>From notebooks" in text and "Not executed" in text
    text = shown("reports/twitter/notebooks", 2e9)
    assert "<h1>From reports/twitter/notebooks" in text and "As executed" in text
    assert "<h1>From reports/twitter/notebooks" in shown("reports/notebooks", 1e9)
