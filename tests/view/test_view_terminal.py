"""The view in the terminal: its figures, its width, and that nobody waits for a terminal."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from deadlines import PATIENCE, eventually
from rich.console import Console
from small_pipelines import ocr_pipeline
from viewed_steps import known_step, loop_views, view_after

from opd.measurement import Calibration, unmeasured
from opd.view.model import View, number, view_of
from opd.view.terminal import Terminal, line, render

# --- figures ---------------------------------------------------------------------------------------------------------


def drawn(view, page="", width=80):
    console = Console(file=StringIO(), width=width, record=True)
    console.print(render(view, page))
    return console.export_text()


def squeezed(text):
    """Without the padding of the layout and the breaks of lines."""
    return " ".join(text.split())


def test_the_display_shows_load_latency_decision_and_stages():
    view = view_after(known_step())
    text = drawn(view, "http://127.0.0.1:8090/")
    assert text.startswith("ocr at 127.0.0.1:9\npage      http://127.0.0.1:8090/")
    capacity = number(view.interval.capacity)
    assert f"load      4 requests/s, forecast maximum 4, capacity {capacity} " in text
    level = ocr_pipeline().service_level
    assert f"mean 250 ms, p99 500 ms; 97.5% within {level.seconds:g} s, objective {level.percentile:g}%" in text
    assert "cores     8 of 8 " in text
    words = squeezed(text)
    assert "decision applied after 12 ms (load 4, forecast 4 requests/s, 0 waiting); " in words
    assert "detection small to large, 1 to 2 replicas, batch size 1 to 2; recognition tiny to large" in words
    rows = [row.split()[:5] for row in text.splitlines() if row.startswith(("detection  ", "recognition  "))]
    assert rows == [["detection", "large", "2", "2", "3"], ["recognition", "large", "1", "1", "0"]]


def test_the_display_shows_how_service_times_compare_with_the_profiles():
    step, none = known_step(), np.zeros((2, 3))
    known = Calibration(np.array([[1.0, 1.25, 1.0], [1.0, 1.0, 0.8]]), none, np.full((2, 3), 0.1), 1.0)
    text = drawn(view_after(replace(step, observation=replace(step.observation, calibration=known))))
    assert "1.25 ± 0.12" in text and "0.80 ± 0.08" in text


def test_the_display_names_failures_refusals_and_fallbacks():
    step = known_step()
    failed = step.interval._replace(failed=np.array([7.0]))
    lost = replace(step, interval=failed, refused="needs 12 cores", fallback=True, fallback_reason="late")
    words = squeezed(drawn(view_after(lost, state="failing: no answer")))
    assert "7 of 40 requests got no answer" in words and "state failing: no answer" in words
    assert "decision refused after 12 ms" in words
    assert "needs 12 cores; the fallback policy decided: late" in words


def test_before_the_first_request_the_display_is_calm():
    step = known_step()
    idle = replace(step, idle=True, observation=None, decided=None)
    text = drawn(view_after(replace(idle, interval=step.interval._replace(offered=np.array([0.0])))))
    assert "no requests yet; the configuration stays until the first one arrives" in text
    assert "latency" not in text and "decision" not in text and "refused" not in text
    came = drawn(view_after(idle))
    assert "load      4 requests/s" in came and "decision  none before the first request" in came


def test_before_the_first_decision_and_without_measurements_nothing_is_invented():
    step = known_step()
    first = drawn(view_of(ocr_pipeline(), step.configuration, state="warming up", agent="trained for every pipeline"))
    assert "agent  trained for every pipeline" in first and "state  warming up" in first and "?" in first
    blind = replace(step, interval=unmeasured(ocr_pipeline()), predicted_load=np.nan)
    blind = replace(blind, score=step.score._replace(**dict.fromkeys(("within", "throughput"), np.full(1, np.nan))))
    text = drawn(view_after(blind))
    assert "load      ? requests/s, forecast maximum ?, capacity ?" in text and "unknown share" in text
    assert "nan" not in text
    assert drawn(View("ocr", "standing by")).split() == ["ocr", "state", "standing", "by"]


def test_long_names_and_reasons_fit_80_columns_and_are_complete():
    view = view_after(known_step(), address="127.0.0.1:40819", agent="trained for every pipeline " * 4)
    name, reason = "a-variant-with-a-name-of-more-than-forty-characters", "policy Mine: no configuration " * 8
    stages = tuple(replace(stage, task=f"{stage.task}-of-documents", variant=name) for stage in view.stages)
    decision = replace(view.decision, remarks=(reason.strip(),))
    text = drawn(replace(view, stages=stages, decision=decision), "http://127.0.0.1:8090/")
    assert max(map(len, text.splitlines())) <= 80
    assert squeezed(reason) in squeezed(text)
    assert "1.00 ± 0.11" in text and "…" not in text
    heading, *rows = text[text.index("stage  ") :].splitlines()
    begin, end = heading.index("variant"), heading.index("replicas")
    assert "".join(row[begin:end].strip() for row in rows) == 2 * name


@pytest.mark.parametrize(
    "value, text", [(0.0, "0"), (5.214, "5.21"), (999.4, "999"), (12345.6, "12346"), (np.nan, "?")]
)
def test_numbers_are_short_and_never_in_powers_of_ten(value, text):
    assert number(value) == text


def test_a_line_has_the_same_figures():
    text = line(view_after(known_step()))
    assert "\n" not in text and " ocr at 127.0.0.1:9: serving; load 4 requests/s, forecast maximum 4" in text
    assert "latency mean 250 ms, p99 500 ms; 97.5% within 1 s, objective 95%; decision applied after 12 ms" in text
    assert text.endswith("detection 2 x large batch 2, 3 waiting; recognition 1 x large batch 1, 0 waiting")
    first = line(view_of(ocr_pipeline(), known_step().configuration, state="serving", agent="trained once"))
    assert "serving; agent trained once; detection 2 x large batch 2, ? waiting" in first


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_without_a_terminal_every_view_is_a_line_and_warnings_come_between():
    console = Console(file=StringIO(), width=80)
    views = list(loop_views(3))
    with Terminal("http://127.0.0.1:9/", console) as terminal:
        terminal.show(views[0])
        logging.getLogger("opd.anything").warning("replica %s died", "first-0")
        terminal.show(views[1])
        terminal.show(views[2])
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "page at http://127.0.0.1:9/"
    assert [lines[1], *lines[3:]] == [line(view) for view in views], "none is lost, and none is wrapped"
    assert lines[2].endswith(" replica first-0 died")


def test_on_a_terminal_the_display_is_replaced_and_the_last_one_stays():
    console = Console(file=StringIO(), width=80, height=24, force_terminal=True)
    *before, last = loop_views(3)
    with Terminal(console=console) as terminal:
        for view in before:
            terminal.show(view)
        logging.getLogger("opd.anything").warning("replica died")
        terminal.show(last)
    written = console.file.getvalue()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1, "the cursor is hidden, and shown in the end"
    assert written.rindex("\x1b[?25l") < written.index("\x1b[?25h") > written.index("replica died")
    end = written[written.rindex("ocr") :]
    assert "large" in end and "\x1b[1A" not in end, "nothing erases the last display"


def test_lines_of_the_log_that_would_break_the_display_are_drawn_above_it(monkeypatch):
    class Tty(StringIO):
        def isatty(self):
            return True

    stream, root = Tty(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    try:
        with Terminal(console=Console(file=StringIO(), width=80)) as terminal:
            logging.getLogger("opd.anything").warning("while it lasts")
        logging.getLogger("opd.anything").warning("afterwards")
        assert stream.getvalue() == "afterwards\n"
        assert "while it lasts" in terminal._console.file.getvalue()
    finally:
        root.removeHandler(handler)


class Stuck(StringIO):
    """A terminal that stands still until it is let go."""

    def __init__(self):
        super().__init__()
        self.reached, self.go = threading.Event(), threading.Event()

    def write(self, text):
        self.reached.set()
        assert self.go.wait(PATIENCE)
        return super().write(text)


def test_nobody_waits_for_a_terminal_that_stands_still(monkeypatch):
    monkeypatch.setattr("opd.view.terminal.CLOSE_SECONDS", 0.1)
    stuck = Stuck()
    with Terminal(console=Console(file=stuck, width=80)) as terminal:
        views = []
        for view in loop_views(4):  # goes on
            terminal.show(view)
            views.append(view)
        assert stuck.reached.wait(PATIENCE)
    assert stuck.getvalue() == ""
    stuck.go.set()
    eventually(lambda: stuck.getvalue().splitlines() == [line(view) for view in views])


def test_an_error_in_drawing_is_logged_and_the_next_view_is_drawn(caplog):
    console = Console(file=StringIO(), width=80)
    good = view_after(known_step())
    with Terminal(console=console) as terminal:
        terminal.show(replace(good, stages=None))
        terminal.show(good)
    assert console.file.getvalue().splitlines() == [line(good)]
    assert "the view is not drawn; control goes on" in caplog.text


def test_the_display_shows_the_newest_view_of_every_pipeline():
    console, view = Console(file=StringIO(), force_terminal=True, width=80), view_after(known_step())
    with Terminal("", console) as terminal:
        terminal.show(view)
        terminal.show(replace(view, pipeline="video"))
    text = console.file.getvalue()
    assert text.count("ocr at 127.0.0.1:9") == text.count("video at 127.0.0.1:9") + 1 > 1
