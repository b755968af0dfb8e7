"""The policy for Ray Serve: alone, and in a Serve that really runs."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from deadlines import PATIENCE, eventually
from pipeline_folders import PROFILE, write_pipeline

from opd.scaling.decider import load_plan
from opd.scaling.ray_serve import ServePolicy
from opd.serving.monitoring.prometheus import PrometheusServer
from opd.study.benchmarks.ray_nodes import ray_nodes

RUNNING = {"first": ("small", 1), "second": ("small", 1)}
SLOW_STAGES = PROFILE.replace("0.05,0.06", "0.4,0.4").replace("0.05,0.05", "0.25,0.25")
"""One replica of each is the least; three and two carry the most, 7.5 requests/s."""

LEAST, MOST = {"first": 1, "second": 1}, {"first": 3, "second": 2}
NOWHERE = "http://127.0.0.1:9"
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus"
)


class Deployment(NamedTuple):
    """Has the fields of Ray's ``DeploymentID``."""

    name: str
    app_name: str = "shop"


FIRST, SECOND, OTHER = Deployment("first"), Deployment("Second"), Deployment("ingress")


@pytest.fixture
def shop(tmp_path: Path) -> str:
    return str(write_pipeline(tmp_path / "shop", profile=SLOW_STAGES))


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[PrometheusServer]:
    server = PrometheusServer(tmp_path / "prometheus")
    yield server
    server.close()


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the controller would log. Once Ray Serve is imported, its logger hands nothing on to others."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ray.serve")
    logger.addHandler(handler)
    yield told
    logger.removeHandler(handler)


def policy(shop: str, query: str, url: str, interval: float = 0.01) -> ServePolicy:
    """As the controller of Serve has it: pickled where the application was built."""
    made = ServePolicy(shop, RUNNING, query, url, deployments={"second": "Second"}, interval=interval)
    return pickle.loads(pickle.dumps(made))


def decided(asked: ServePolicy, *deployments: Deployment) -> dict[Deployment, int]:
    """Call until there is a decision."""
    return eventually(lambda: asked(dict.fromkeys(deployments))[0])


def test_plan_of_the_small_pipeline(shop: str):
    plan = load_plan(shop, RUNNING)
    assert (plan.at(0.0), plan.at(100.0)) == (LEAST, MOST)


@needs_prometheus
def test_all_stages_are_decided_and_other_deployments_left_alone(shop: str, prometheus: PrometheusServer):
    """The pipeline is read when the policy is made; nothing reads it afterwards."""
    asked = policy(shop, "vector(100)", prometheus.url)
    shutil.rmtree(shop)
    assert decided(asked, FIRST, SECOND, OTHER) == {FIRST: 3, SECOND: 2}


@needs_prometheus
def test_the_last_decision_is_kept_while_prometheus_is_away(
    shop: str, prometheus: PrometheusServer, warnings: list[str]
):
    asked = policy(shop, "vector(100)", prometheus.url)
    assert decided(asked, FIRST, SECOND) == {FIRST: 3, SECOND: 2}
    prometheus.close()

    def told() -> bool:
        assert asked(dict.fromkeys([FIRST, SECOND])) == ({FIRST: 3, SECOND: 2}, {})
        return any("no decision, replicas stay as they are: MonitoringError" in warning for warning in warnings)

    eventually(told)


@needs_prometheus
def test_no_data_is_no_load_of_zero(shop: str, prometheus: PrometheusServer, warnings: list[str]):
    asked = policy(shop, "sum(rate(nothing[10s]))", prometheus.url)
    eventually(lambda: asked({FIRST: None, SECOND: None}) == ({}, {}) and warnings)
    assert "has no data of the last 120 s for sum(rate(nothing[10s]))" in warnings[0]


def test_without_a_decision_a_call_decides_nothing_and_returns_at_once(shop: str, warnings: list[str]):
    """An attempt, and then none before the interval is over."""
    asked = policy(shop, "vector(1)", NOWHERE, interval=10 * PATIENCE)
    eventually(lambda: asked({FIRST: None, SECOND: None}) == ({}, {}) and warnings)
    for _ in range(100):
        assert asked({FIRST: None, SECOND: None}) == ({}, {})
    (warning,) = warnings
    assert NOWHERE in warning


def test_stages_that_cannot_be_scaled_are_named_once(shop: str, warnings: list[str]):
    asked = policy(shop, "vector(1)", NOWHERE, interval=10 * PATIENCE)
    for _ in range(3):
        asked({FIRST: None, OTHER: None})
    named = [warning for warning in warnings if "is not scaled" in warning]
    assert len(named) == 1 and "task 'second'" in named[0] and "no deployment 'Second'" in named[0]


@pytest.mark.parametrize(
    ("deployments", "message"),
    [
        ({"third": "Third"}, "'third'.* its tasks are first, second"),
        ({"first": "second"}, "two tasks share a deployment"),
    ],
)
def test_deployments_that_do_not_fit_are_refused(shop: str, deployments: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        ServePolicy(shop, RUNNING, "vector(1)", NOWHERE, deployments=deployments)


# --- in Ray Serve ----------------------------------------------------------------------------------------------------

APPLICATION = """
    from pathlib import Path

    from ray import serve

    from opd.scaling.ray_serve import ServePolicy


    @serve.deployment
    class First:
        def __init__(self, second):
            self.second = second

        async def __call__(self, text: str) -> str:
            return await self.second.remote(text)


    @serve.deployment
    class Second:
        def __call__(self, text: str) -> str:
            return text[::-1]


    app = First.bind(Second.bind())

    policy = ServePolicy(
        str(Path(__file__).parent / "shop"),
        running={"first": ("small", 1), "second": ("small", 1)},
        query='sum(rate(ray_serve_num_router_requests_total{application="shop", deployment="First"}[30s]))',
        prometheus="URL",
        deployments={"first": "First", "second": "Second"},
        interval=2.0,
    )
"""


@pytest.fixture
def ray_prometheus(tmp_path: Path, monkeypatch) -> Iterator[PrometheusServer]:
    """Ray's page of metrics is large, and on a busy machine takes longer than the pages of our own processes."""
    for name in ("SCRAPE_SECONDS", "SCRAPE_TIMEOUT"):
        monkeypatch.setattr(f"opd.serving.monitoring.prometheus.{name}", 5.0)
    server = PrometheusServer(tmp_path / "ray-prometheus")
    yield server
    server.close()


class Caller:
    """Sends some twenty requests a second to the application, however long they take, in a process of its own."""

    def __init__(self) -> None:
        from ray import serve

        self.handle, self.pending, self.ended = serve.get_app_handle("shop"), [], threading.Event()
        self.sender = threading.Thread(target=self.send, daemon=True)
        self.sender.start()

    def send(self) -> None:
        while not self.ended.wait(0.05):
            self.pending.append(self.handle.remote("opd"))

    def end(self) -> set[str]:
        """Send no more; return the answers."""
        self.ended.set()
        self.sender.join(PATIENCE)
        return {response.result(timeout_s=PATIENCE) for response in self.pending}


@pytest.mark.slow
@pytest.mark.processes
@needs_prometheus
def test_ray_serve_runs_what_is_decided(ray_prometheus: PrometheusServer, shop: str, tmp_path: Path, monkeypatch):
    """Twenty requests/s are more than the limits carry, so those decide how many replicas run; afterwards the least."""
    serve = pytest.importorskip("ray.serve", reason="needs Ray Serve: pip install 'ray[serve]'")
    import ray
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    (tmp_path / "shop_app.py").write_text(textwrap.dedent(APPLICATION).replace("URL", ray_prometheus.url))
    options = {
        "autoscaling_config": {"min_replicas": 1, "max_replicas": 10},
        "ray_actor_options": {"num_cpus": 0},
        "health_check_timeout_s": 2 * PATIENCE,
    }
    application = {
        "name": "shop",
        "import_path": "shop_app:app",
        "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}},
        "autoscaling_policy": {"policy_function": "shop_app:policy"},
        "deployments": [{"name": name, **options} for name in ("First", "Second")],
    }
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")  # of every process, to its node

    def replicas() -> dict[str, int]:
        found = serve.status().applications["shop"].deployments
        return {name.lower(): found[name].replica_states.get("RUNNING", 0) for name in found}

    with ray_nodes(0):
        ray_prometheus.set_targets({node["NodeID"]: f"127.0.0.1:{node['MetricsExportPort']}" for node in ray.nodes()})
        # A process that starts long before Ray's page of metrics is up never reports any.
        eventually(lambda: (ray_prometheus.rates("sum(up)", 1) > 0).any(), 2 * PATIENCE, 0.5)
        serve.start(proxy_location="Disabled")
        try:
            # What `serve run` does with a file.
            _get_global_client().deploy_apps(ServeDeploySchema.parse_obj({"applications": [application]}))
            eventually(lambda: serve.status().applications["shop"].status == "RUNNING", 2 * PATIENCE, 0.5)
            assert replicas() == LEAST
            caller = ray.remote(num_cpus=0)(Caller).remote()
            eventually(lambda: replicas() == MOST, 2 * PATIENCE, 0.5)
            assert ray.get(caller.end.remote(), timeout=2 * PATIENCE) == {"dpo"}
            eventually(lambda: replicas() == LEAST, 2 * PATIENCE, 0.5)
        finally:
            serve.shutdown()
