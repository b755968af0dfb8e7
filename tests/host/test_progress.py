"""Progress of long work as lines of text."""

from __future__ import annotations

import io
import sys

import pytest

from opd.host import progress
from opd.host.progress import ProgressLines, progress_bar


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What was printed; every update is old enough to be shown."""
    monkeypatch.setattr(sys, "__stderr__", io.StringIO())
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    return sys.__stderr__


def lines(log: io.StringIO) -> list[str]:
    """The lines without their times."""
    return [line.split(", ")[0] for line in log.getvalue().splitlines()]


def test_a_loop_is_shown_up_to_its_end(log):
    assert list(ProgressLines("abc", desc="reading")) == ["a", "b", "c"]
    assert lines(log) == ["reading: 1 of 3", "reading: 2 of 3", "reading: 3 of 3"]


def test_an_empty_loop_and_one_of_unknown_length(log):
    assert list(ProgressLines([])) == [] and list(ProgressLines(iter([1]))) == [1]
    assert lines(log) == ["progress: 0 of 0", "progress: 1 of ?"]


def test_between_two_lines_is_time(log, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", float("inf"))
    assert list(ProgressLines(range(1000))) == list(range(1000))
    assert lines(log) == ["progress: 1000 of 1000"]


def test_counted_work_that_ends_early_says_how_far_it_came(log):
    with pytest.raises(KeyError), ProgressLines(total=4, desc="cells") as bar:
        bar.update(3)
        raise KeyError
    assert lines(log) == ["cells: 3 of 4"]


def test_the_item_in_work_stands_at_the_end(log):
    bar = ProgressLines(total=2)
    bar.set_postfix_str("resnet-18")
    bar.update()
    assert log.getvalue().endswith(", resnet-18\n")


def test_a_notebook_that_is_run_as_a_stage_shows_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not isinstance(progress_bar(range(3), disable=True), ProgressLines)
    monkeypatch.setenv(progress.STYLE_VARIABLE, "lines")
    assert isinstance(progress_bar(range(3)), ProgressLines)
