"""The view as a page: its JSON over HTTP from a real loop, its limits, and the page in a browser."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from deadlines import PATIENCE
from viewed_steps import known_step, loop_views, view_after

from opd.view.model import number
from opd.view.page import INTERVALS, WARNINGS, ViewPage, served_page

FREE = ("127.0.0.1", 0)


def get(page, path=""):
    return requests.get(page.url + path, timeout=PATIENCE)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_a_loop_in_the_simulator_is_seen_over_http_while_it_runs():
    with served_page(FREE) as page:
        assert get(page, "view.json").json()["view"] is None
        for count, view in enumerate(loop_views(4), 1):
            page.show(view)
            known = get(page, "view.json").json()
            assert known["view"] == view.as_json() and len(known["course"]["end"]) == count
        assert known["course"]["end"] == [10.0, 20.0, 30.0, 40.0]
        assert known["course"]["load"] == [4.0] * 4 and known["course"]["forecast"] == [5.0] * 4
        assert known["view"]["stages"][0]["variant"] == "large" and known["view"]["decision"]["outcome"] == "kept"
        assert all(capacity > 0 for capacity in known["course"]["capacity"])
    with pytest.raises(requests.ConnectionError):
        get(page)


def test_a_new_state_adds_no_interval_and_unknown_figures_are_null():
    page, view = ViewPage(), view_after(known_step())
    page.show(view)
    page.show(replace(view, state="failing: no answer"))
    unknown = replace(view.interval, load=float("nan"))
    page.show(replace(view, interval=unknown))
    page.show(replace(view, interval=unknown, state="failing: no answer"))
    assert page.document()["course"]["load"] == [4.0, None]
    assert page.document()["view"]["state"] == "failing: no answer"


def test_the_course_and_the_warnings_have_an_end():
    page, view = ViewPage(), view_after(known_step())
    with served_page(None) as served:
        for number in range(WARNINGS + 3):
            logging.getLogger("opd.anything").warning("warning %d", number)
    texts = [each["text"] for each in served.document()["warnings"]]
    assert texts == [f"warning {number}" for number in range(3, WARNINGS + 3)] and served.url == ""
    for end in range(INTERVALS + 5):
        page.show(replace(view, interval=replace(view.interval, end=float(end))))
    assert page.document()["course"]["end"] == [float(end) for end in range(5, INTERVALS + 5)]


def test_the_document_is_written_once_for_a_view_and_its_warnings():
    page, view = ViewPage(), view_after(known_step())
    page.show(view)
    first = page.answer("/view.json")
    assert page.answer("/view.json") is first
    page.handle(logging.LogRecord("opd.anything", logging.WARNING, "", 0, "a replica ended", (), None))
    second = page.answer("/view.json")
    assert json.loads(second.content)["warnings"][0]["text"] == "a replica ended"
    page.show(replace(view, state="ended"))
    assert json.loads(page.answer("/view.json").content)["view"]["state"] == "ended" and second is not first


# --- the server ------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere():
    with served_page(FREE) as page:
        for path, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
            answer = get(page, path)
            assert answer.status_code == 200 and answer.headers["Content-Type"].startswith(kind)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'self'" in policy and "unsafe" not in policy
            assert set(re.findall(r"https?://[^\"' ]+", answer.text)) <= {
                "http://www.w3.org/1999/xhtml",
                "http://www.w3.org/2000/svg",
            }, "names of XML only"
        assert get(page, "../model.py").status_code == get(page, "model.py").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
def test_the_page_takes_nothing_but_get(method):
    with served_page(FREE) as page:
        for path in ("", "view.json"):
            answer = requests.request(method, page.url + path, data=b"x", timeout=PATIENCE)
            assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


def test_a_page_of_another_site_that_was_rebound_to_this_address_reads_nothing():
    with served_page(FREE) as page:
        page.show(view_after(known_step()))
        port = page.url.split(":")[2]
        for path in ("", "view.json"):
            answer = requests.get(page.url + path, headers={"Host": f"rebound.example:{port}"}, timeout=PATIENCE)
            assert answer.status_code == 403
            assert answer.text == "this server answers requests to localhost or 127.0.0.1, not to another host\n"
        port_forward = requests.get(f"{page.url}view.json", headers={"Host": f"localhost:{port}"}, timeout=PATIENCE)
        assert port_forward.json()["view"]["pipeline"] == "ocr"


def test_a_port_in_use_is_logged_and_ends_nothing(caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = taken.getsockname()
        with served_page(address) as page:
            page.show(view_after(known_step()))
    assert page.url == "" and page.document()["view"]["pipeline"] == "ocr"
    assert f"the page is not served at 127.0.0.1:{address[1]}" in caplog.text and "--view" in caplog.text


def test_a_view_that_the_page_cannot_show_ends_nothing(caplog):
    with served_page(FREE) as page:
        page.show(replace(view_after(known_step()), interval=object()))
        assert get(page, "view.json").status_code == 500
        assert "GET /view.json failed" in caplog.text
        page._course = ()
        page.show(view_after(known_step()))
        assert get(page, "view.json").status_code == 200


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browsed = pytest.mark.skipif(
    not CHROMIUM, reason="needs Chromium: apt-get install chromium; the JSON is tested without"
)


def content(url: str, folder: Path) -> str:
    """The page as Chromium has it after some seconds of its own time, which passes at once."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--virtual-time-budget=5000"]
    command = [str(CHROMIUM), *options, "--dump-dom", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout


def texts(html: str, name: str) -> list[str]:
    return re.findall(rf"<{name}\b[^>]*>([^<]*)</{name}>", html)


@browsed
@pytest.mark.processes
def test_a_browser_shows_the_figures_of_a_loop(tmp_path):
    with served_page(FREE) as page:
        logging.getLogger("opd.anything").warning("replica <b>first-0</b> died")
        for view in loop_views(4):
            page.show(view)
        html = content(page.url, tmp_path)
    values = dict(re.findall(r'<dd id="(\w+)"[^>]*>([^<]*)</dd>', html))
    assert (values["load"], values["forecast"]) == ("4 requests/s", "5 requests/s")
    assert values["capacity"] == f"{number(view.interval.capacity)} requests/s"
    assert values["latency_p99"] == f"{number(1e3 * view.interval.latency_p99)} ms"
    assert values["within"].startswith(f"{100 * view.interval.within:.1f} %, m") and values["cores"] == "8 of 8"
    assert "detection" in texts(html, "th") and texts(html, "td")[:2] == ["large", "2"]
    assert "replica &lt;b&gt;first-0&lt;/b&gt; died" in html and "<title>ocr: " in html
    drawn = dict(re.findall(r'<path class="(\w+)" d="([^"]*)"', html))
    assert set(drawn) == {"load", "forecast", "capacity", "mean", "p99", "objective"}
    assert all(path.count("H") == 4 for path in drawn.values()), "a step for every interval"
    assert 'aria-label="Load, forecast and capacity. Now 4 requests/s, forecast maximum 5 requests/s' in html
    assert 'id="lost" role="alert" hidden' in html


@browsed
@pytest.mark.processes
def test_a_browser_shows_unknown_figures_refusals_and_failures(tmp_path):
    view = view_after(known_step(), state="failing: no answer")
    unknown = replace(view.interval, load=float("nan"), within=0.5, failed=7.0)
    refused = replace(view.decision, outcome="refused", remarks=("needs 12 cores",))
    with served_page(FREE) as page:
        page.show(view)
        page.show(replace(view, interval=unknown, decision=refused))
        html = content(page.url, tmp_path)
    assert '<dd id="load" class="bad">? requests/s; 7 without answer</dd>' in html
    assert '<dd id="within" class="bad">50.0 %, missed</dd>' in html
    assert '<p class="bad">needs 12 cores</p>' in html and ">failing: no answer<" in html
    assert "needs 12 cores; objective missed</p>" in html, "screen readers say it"
    path = dict(re.findall(r'<path class="(\w+)" d="([^"]*)"', html))["load"]
    assert path.count("H") == 1, "the line ends where nothing is known"


@browsed
@pytest.mark.processes
def test_a_browser_says_when_figures_cannot_be_had(tmp_path):
    with served_page(FREE) as page:
        page.show(replace(view_after(known_step()), interval=object()))
        html = content(page.url, tmp_path)
    assert re.search(r'<p id="lost" role="alert"( class="")?>opd does not answer \(status 500\)</p>', html)
