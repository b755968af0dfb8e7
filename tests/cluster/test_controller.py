"""The controller as a service: its records, and its life."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from deadlines import PATIENCE, eventually, terminating, within
from prometheus_client import generate_latest
from running_controllers import Running, controller, events
from small_pipelines import stages
from tiny_cluster import INITIAL, LARGE, WANTED, FixedPolicy, lease_spec
from user_projects import user_project

from opd.cluster.controller import health_server
from opd.cluster.errors import LedByAnotherError, NotDeployedError
from opd.cluster.log import JsonFormatter
from opd.cluster.resources import ObjectChange
from opd.control.factory import build_policy
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Task, Variant
from opd.solvers import IpaParameters
from opd.view.page import served_page

ROOT = Path(__file__).parents[2]


# --- the controller ---------------------------------------------------------------------------------------------------


def test_a_limited_run_leads_decides_records_and_ends(world, caplog):
    caplog.set_level(logging.INFO, "opd.cluster.record")
    made = controller(world, decisions=2)
    with within():
        made.run()
    assert world.state("first") == {"variant": "large", "batch_size": "2"}
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if hasattr(record, "fields")]
    assert [line["outcome"] for line in lines] == ["applied", "kept"]
    assert lines[0]["forecast"] == 5.0 and lines[0]["state"]["incoming_load"] == pytest.approx(5)
    assert lines[0]["wanted"]["first"] == {"variant": "large", "replicas": 1, "batch_size": 2}
    assert lines[0]["calibration"]["first"]["factor"] == 1.0 and lines[0]["calibration"]["first"]["deviation"] > 0.0
    assert lines[0]["score"]["cost"] == 3.0 and lines[0]["reason"] == ""
    found = events(world)
    gateway = world.api.find("deployments", "tiny-gateway")["metadata"]
    about = {"name": "tiny-gateway", "uid": gateway["uid"], "kind": "Deployment", "apiVersion": "apps/v1"}
    assert found["Reconfigured"]["involvedObject"] == {**about, "namespace": "space"}
    assert "surge" in found["Reconfiguring"]["message"]
    text = generate_latest(made.metrics).decode()
    assert 'opd_decisions_total{outcome="applied",pipeline="tiny"} 1.0' in text
    assert 'opd_controller_leader{pipeline="tiny"} 0.0' in text
    assert 'opd_controller_device_factor{pipeline="tiny"} 1.0' in text
    assert 'opd_controller_service_factor{pipeline="tiny",task="first",variant=' in text
    assert lease_spec(world.api)["holderIdentity"] == ""


def test_every_state_and_every_decision_has_its_view_over_http(world):
    states = []
    with served_page(("127.0.0.1", 0)) as page:
        shows = (lambda view: states.append((view.state, view.decision and view.decision.outcome)), page.show)
        controller(world, decisions=2, shows=shows).run()
        known = requests.get(f"{page.url}view.json", timeout=PATIENCE).json()
    leading = [("leading", None), ("leading", "applied"), ("leading", "kept")]
    assert [state for state in states if state[0] != "standing by"] == [
        ("warming up", None),
        *leading,
        ("ended", "kept"),
    ]
    assert known["view"]["pipeline"] == "tiny" and known["view"]["state"] == "ended"
    assert known["view"]["stages"][0]["variant"] == "large" and known["view"]["stages"][0]["batch_size"] == 2
    assert known["course"]["forecast"] == [5.0, 5.0] and known["course"]["cores"] == [3.0, 3.0]
    assert known["course"]["load"][-1] == pytest.approx(5, abs=1)


def test_a_view_that_fails_ends_no_control(world, monkeypatch, caplog):
    monkeypatch.setattr("opd.view.model._interval", lambda step: 1 / 0)
    shown = []
    controller(world, decisions=2, shows=[shown.append]).run()
    assert world.state("first")["variant"] == "large" and "ZeroDivisionError" in caplog.text
    assert [view.interval for view in shown] == [None] * len(shown) and shown[-1].state == "ended"


def test_a_failed_forecast_is_an_event_and_decisions_go_on(world):
    controller(world, forecast=lambda history: float("nan"), decisions=1).run()
    assert events(world)["ForecastFailed"]["type"] == "Warning"
    assert "the forecast is nan" in events(world)["ForecastFailed"]["message"]
    assert "last 20 s" in events(world)["ForecastFailed"]["message"]
    assert world.state("first") == {"variant": "large", "batch_size": "2"}


def test_metrics_of_a_removed_variant_do_not_stop_the_controller(world, monkeypatch):
    monkeypatch.setattr("opd.cluster.controller.RETRY_SECONDS", 600.0)  # what fails does not begin again in time
    former = tuple(Variant("former", 0.5, 1, {1: 0.05, 4: 0.05}, 2.0) for _ in world.pipeline.tasks)
    tasks = tuple(Task(t.name, (v, *t.variants)) for t, v in zip(world.pipeline.tasks, former, strict=True))
    world.prometheus.pipeline = replace(world.pipeline, tasks=tasks)  # of whose first variants it shows replicas
    with Running(controller(world, decisions=2)) as made:
        eventually(lambda: made.state == "ended")
    assert world.state("first")["variant"] == "large"


def test_events_are_created_even_if_the_gateway_cannot_be_read(world):
    world.api.refuse("GET .*deployments/tiny-gateway", 403, 10**6)
    controller(world, decisions=1).run()
    assert "uid" not in events(world)["Reconfigured"]["involvedObject"]


def test_the_gateway_is_read_once_for_all_events(world):
    controller(world, decisions=1).run()
    assert len(events(world)) == 2
    assert len([target for _, target, _ in world.api.requests if target.endswith("deployments/tiny-gateway")]) == 1


def test_a_logged_error_is_one_line_with_its_stack_trace():
    try:
        raise ZeroDivisionError("a bug")
    except ZeroDivisionError:
        record = logging.LogRecord("opd", logging.ERROR, "", 0, "it %s\nbadly", ("failed",), sys.exc_info())
    text = JsonFormatter().format(record)
    line = json.loads(text)
    assert "\n" not in text and line["message"] == "it failed\nbadly" and line["level"] == "ERROR"
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ZeroDivisionError: a bug")
    record.created = 1.5
    assert json.loads(JsonFormatter().format(record))["time"] == "1970-01-01T00:00:01.500+00:00"


def test_a_refusal_is_an_event_and_a_metric(world):
    made = controller(world, FixedPolicy(stages((LARGE, 3, 1), (LARGE, 3, 1))), decisions=1)
    made.run()
    assert events(world)["Refused"]["type"] == "Warning"
    assert "12 cores, the device has 6" in events(world)["Refused"]["message"]
    assert 'opd_decisions_total{outcome="refused",pipeline="tiny"} 1.0' in generate_latest(made.metrics).decode()
    assert world.state("first")["variant"] == "small"


def test_a_failed_policy_is_recorded_and_asked_again(world):
    class Failing(FixedPolicy):
        fails = 1

        def decide(self, observation):
            self.fails, failing = self.fails - 1, self.fails > 0
            if failing:
                raise ZeroDivisionError("a bug")
            return super().decide(observation)

    controller(world, Failing(WANTED), decisions=2).run()
    assert "no decision: ZeroDivisionError: a bug" in events(world)["Refused"]["message"]
    assert "goes on" in events(world)["Refused"]["message"]
    assert world.state("first")["variant"] == "large"


def test_the_fallback_of_a_policy_of_a_user_is_recorded_with_the_reason(world, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "opd.cluster.record")
    with user_project(tmp_path / "project", monkeypatch):
        known = world.pipeline, Weights(), SimulationParameters(), IpaParameters()
        confused = build_policy("policies_of_the_project:Confused", *known)
        made = controller(world, confused, decisions=1)
        made.run()
    (line,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert (line["outcome"], line["by_expert"]) == ("refused", True)
    assert line["reason"].startswith("policy Confused: the decision None is not a configuration")
    assert line["wanted"] == line["configuration"] and line["score"]["cost"] > 0
    assert "is the decision of the fallback policy" in events(world)["Refused"]["message"]


def test_a_decision_beyond_all_limits_can_be_recorded(world, caplog):
    caplog.set_level(logging.INFO, "opd.cluster.record")
    controller(world, FixedPolicy([[99, -1, 10**30], [-1, 1, 1]]), decisions=1).run()
    (line,) = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert line["wanted"]["first"] == {"variant": 99, "replicas": -1, "batch_size": 10**30}
    assert line["outcome"] == "refused" and json.loads(json.dumps(line)) == line


def test_a_controller_warms_up_before_it_is_ready_or_leads(world):
    class Slow(FixedPolicy):
        def __init__(self):
            super().__init__(WANTED)
            self.warm, self.decided = threading.Event(), False

        def warm_up(self, observation):
            assert self.warm.wait(PATIENCE) and not self.decided

        def decide(self, observation):
            self.decided = True
            return super().decide(observation)

    policy = Slow()
    with Running(controller(world, policy)) as made, health_server(made, "127.0.0.1", 0) as port:
        answer = lambda path: requests.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE)  # noqa: E731
        eventually(lambda: made.state == "warming up")
        assert (answer("/readyz").status_code, answer("/healthz").status_code) == (503, 200)
        assert answer("/readyz").json() == {"state": "warming up", "pipelines": {"tiny": ""}}
        assert not world.api.find("leases", "tiny-controller").get("spec") and not policy.decided
        policy.warm.set()
        eventually(lambda: answer("/readyz").status_code == 200)
        eventually(lambda: policy.decided)
        eventually(lambda: "objective 95%" in answer("/healthz").json()["pipelines"]["tiny"])


def test_a_warm_up_that_fails_delays_nothing(world):
    class Cold(FixedPolicy):
        def warm_up(self, observation):
            raise ZeroDivisionError("a bug")

    controller(world, Cold(WANTED), decisions=1).run()
    assert world.state("first")["variant"] == "large"


def test_a_standby_controller_takes_over_from_the_leader(world):
    with Running(controller(world)) as first:
        eventually(lambda: first.state == "leading")
        with Running(controller(world)) as second:
            eventually(lambda: second.state == "standing by")
            assert first.ready and second.ready
            first.stop()
            eventually(lambda: second.state == "leading")
            assert lease_spec(world.api)["holderIdentity"] == second.holder


def test_a_controller_that_loses_its_lease_changes_nothing(world):
    with Running(controller(world, FixedPolicy(INITIAL))) as made:
        eventually(lambda: made.state == "leading")
        theirs = {"holderIdentity": "other", "leaseDurationSeconds": 60}
        world.api.edit("leases", "tiny-controller", lambda found: found["spec"].update(theirs))
        eventually(lambda: made.state == "standing by")
        world.api.requests.clear()
        time.sleep(0.5)
        assert {method for method, *_ in world.api.requests} <= {"GET"}


def test_an_unavailable_cluster_is_reported_and_waited_for(world, monkeypatch):
    monkeypatch.setattr("opd.cluster.controller.RETRY_SECONDS", 0.1)
    world.api.refuse("GET .*configmaps", 403, 10**6)
    with Running(controller(world)) as made, health_server(made, "127.0.0.1", 0) as port:
        answers = lambda path: requests.get(f"http://127.0.0.1:{port}{path}", timeout=2)  # noqa: E731
        eventually(lambda: made.state.startswith("failing"))
        assert answers("/readyz").status_code == 503 and "Role" in answers("/readyz").json()["state"]
        assert answers("/healthz").status_code == 200
        world.api.faults.clear()
        eventually(lambda: answers("/readyz").status_code == 200)
        assert "opd_decision_seconds_bucket" in answers("/metrics").text
        assert answers("/elsewhere").status_code == 404


def test_without_a_deployed_pipeline_a_limited_run_ends_and_the_service_waits(world, monkeypatch):
    monkeypatch.setattr("opd.cluster.controller.RETRY_SECONDS", 0.1)
    world.api.refuse("GET .*configmaps", 404, 10**6)
    for dry_run in (False, True):
        with within(), pytest.raises(NotDeployedError, match="'tiny' is not deployed.*namespace 'space'"):
            controller(world, decisions=1, dry_run=dry_run).run()
    assert lease_spec(world.api)["holderIdentity"] == ""
    with Running(controller(world)) as made:
        eventually(lambda: made.state.startswith("failing"))
        world.api.faults.clear()
        eventually(lambda: made.state == "leading")


def test_a_limited_run_does_not_stand_by_for_ever(world):
    with Running(controller(world)) as first:
        eventually(lambda: first.state == "leading")
        with within(), pytest.raises(LedByAnotherError, match="holds the Lease 'tiny-controller' of pipeline 'tiny'"):
            controller(world, decisions=1, lead_seconds=0.5).run()
        assert first.state == "leading"


def test_a_loop_that_hangs_is_unhealthy(world):
    made = controller(world, stuck_seconds=-2 * world.settings.apply_seconds - 0.2)
    assert not made.healthy
    assert controller(world).healthy


def test_a_dry_run_prints_the_difference_and_changes_nothing(world, capsys):
    with within():
        controller(world, dry_run=True, decisions=1).run()
    printed = capsys.readouterr().out
    assert "ConfigMap/tiny-first-stage now" in printed
    assert "-  variant: small" in printed and "+  variant: large" in printed
    assert "+++ Deployment/tiny-first-large then" in printed and "+  replicas: 1" in printed
    assert world.state("first")["variant"] == "small" and world.workloads() == {"tiny-first-small", "tiny-second-small"}
    assert not world.api.find("leases", "tiny-controller").get("spec") and not world.api.all("events")


def test_a_difference_leaves_out_fields_that_the_cluster_maintains():
    before = {"kind": "A", "metadata": {"name": "n", "resourceVersion": "1"}, "data": {"x": "1"}, "status": {"s": 1}}
    after = {"kind": "A", "metadata": {"name": "n", "resourceVersion": "2"}, "data": {"x": "2"}, "status": {"s": 2}}
    assert [line for line in ObjectChange(before, after).difference().splitlines() if line[0] in "+-"] == [
        "--- A/n now",
        "+++ A/n then",
        "-  x: '1'",
        "+  x: '2'",
    ]
    assert ObjectChange(before, {**before, "status": {}}).difference() == ""


# --- the process ------------------------------------------------------------------------------------------------------

PROCESS = """
import logging, sys
logging.basicConfig(level=logging.INFO)
sys.path.append({tests!r})
from tiny_cluster import OFTEN, TIMES, WANTED, FixedPolicy, settings, tiny_pipeline
from opd.cluster.api import Cluster
from opd.cluster.connection import credentials
from opd.cluster.charge import Controlled
from opd.cluster.controller import ControllerSettings, run_controller
from opd.control.sharing import StaticSplit
from opd.objective import Weights
from opd.serving.monitoring.prometheus import PrometheusUrl
options = ControllerSettings(interval_seconds=600, lease=OFTEN, times=TIMES, host="127.0.0.1", port=0)
monitor = PrometheusUrl({prometheus!r})
cluster, policy = Cluster(settings().namespace, lambda: credentials({config!r})), FixedPolicy(WANTED)
controlled = Controlled(tiny_pipeline(), settings(), monitor, policy, lambda h: 5.0, Weights())
sys.exit(run_controller(cluster, [controlled], StaticSplit((6,)), options))
"""


@pytest.mark.processes
def test_sigterm_during_a_change_ends_the_controller_soon_and_cleanly(world):
    world.kubelet.behave("tiny-first-large", broken="silent")
    script = PROCESS.format(tests=str(ROOT / "tests"), prometheus=world.prometheus.url, config=str(world.config))
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env=os.environ)
    with terminating(process):
        eventually(lambda: "tiny-first-large" in world.workloads())
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE)  # far less than an interval
    assert process.returncode == 0, log
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"}
    assert lease_spec(world.api)["holderIdentity"] == ""


def test_a_shadow_sees_what_something_else_scales_and_writes_nothing(world, tmp_path):
    world.api.edit("deployments", "tiny-first-small", lambda workload: workload["spec"].update(replicas=2))
    world.api.requests.clear()
    record, states = tmp_path / "shadow.jsonl", []
    made = controller(world, decisions=2, shadow=True, record=record, shows=[lambda view: states.append(view.state)])
    with within():
        made.run()
    assert [request for request in world.api.requests if request[0] != "GET"] == [] and "in shadow" in states
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert [entry["configuration"]["first"]["replicas"] for entry in entries] == [2, 2]  # not what was deployed
    assert [entry["wanted"]["first"]["variant"] for entry in entries] == ["large", "large"]
    assert {entry["reason"] for entry in entries} == {"in shadow: nothing was changed"}
    assert all(len(entry["state"]["history"]) > 0 and entry["measured"]["offered"] is not None for entry in entries)


def test_a_shadow_makes_no_decision_while_a_stage_is_scaled_to_zero(world, tmp_path):
    world.api.edit("deployments", "tiny-first-small", lambda workload: workload["spec"].update(replicas=0))
    record = tmp_path / "shadow.jsonl"
    with within():
        controller(world, decisions=1, shadow=True, record=record).run()
    (entry,) = [json.loads(line) for line in record.read_text().splitlines()]
    assert "what runs cannot be seen: task 'first': 0 replicas are not within 1..3" in entry["reason"]
