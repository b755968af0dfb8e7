"""Several pipelines of a namespace under one controller: the device is never overbooked, and rights stay minimal."""

import os
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from deadlines import PATIENCE, eventually
from emulator.api_server import kubeconfig
from emulator.kubelet import Kubelet
from emulator.prometheus import Prometheus
from prometheus_client import generate_latest
from running_controllers import Running
from serving_models import push_variant
from tiny_cluster import INITIAL, OFTEN, QUICK, TIMES, TinyCluster, settings, tiny_pipeline

from opd.cluster.api import Cluster
from opd.cluster.charge import Controlled
from opd.cluster.connection import credentials
from opd.cluster.controller import Controller, ControllerSettings
from opd.cluster.errors import LedByAnotherError
from opd.cluster.lease import Lease
from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.names import DEPLOY_MANAGER
from opd.cluster.pods import is_ready
from opd.control.policies import SolverPolicy
from opd.control.sharing import Shared, division_of
from opd.live.generator import start_load
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.serving.monitoring.prometheus import PrometheusUrl
from opd.solvers.exact import solver_for
from opd.workload.forecast import RecentMaximum
from opd.workload.futures import RecentFutures

CORES = 6
NAMES = ("other", "tiny")
LITTLE, MUCH = 5.0, 300.0
"""Requests/s that the smallest configuration carries, and that need all cores of the device."""


class Pair:
    """Two pipelines that are deployed on six cores; whoever controls them has the rights of their Roles only."""

    def __init__(self, tiny, namespace_settings):
        self.api, self.kubelet, self.settings = tiny.api, tiny.kubelet, namespace_settings
        self.pipelines = {name: replace(tiny_pipeline(CORES), name=name) for name in NAMES}
        for pipeline in self.pipelines.values():
            for manifest in pipeline_objects(pipeline, INITIAL, self.settings):
                self.api.put(manifest, DEPLOY_MANAGER)
        eventually(lambda: len(found := self.api.all("pods")) == 6 and all(map(is_ready, found)), 3 * PATIENCE)
        self.prometheus = {name: Prometheus(each, LITTLE) for name, each in self.pipelines.items()}
        self.api.accounts["of-the-controller"] = self.settings.controller_account
        folder = tiny.config.parent / "limited"
        folder.mkdir()
        path = kubeconfig(self.api, folder, "of-the-controller")
        self.cluster = Cluster("space", lambda: credentials(str(path)), QUICK)

    def controller(self, names=NAMES, **options):
        """One controller of both, with a solver for each."""
        simulation, weights = SimulationParameters(), Weights()
        pipelines = [self.pipelines[name] for name in names]
        controlled = [
            Controlled(
                each,
                self.settings,
                PrometheusUrl(self.prometheus[each.name].url),
                SolverPolicy(each, solver_for(weights, simulation)),
                RecentMaximum().predict,
                weights,
            )
            for each in pipelines
        ]
        division = division_of([Shared(each, weights, simulation, RecentFutures()) for each in pipelines])
        chosen = {"interval_seconds": 0.5, "lease": OFTEN, "times": TIMES, "host": "127.0.0.1", "port": 0, **options}
        return Controller(self.cluster, controlled, division, ControllerSettings(**chosen))

    def cores(self, name):
        """Cores that a pipeline's workloads ask for."""
        labels = {"app_kubernetes_io__component": "model", "app_kubernetes_io__instance": name}
        cores = {v.name: v.cores for task in self.pipelines[name].tasks for v in task.variants}
        workloads = self.api.all("deployments", **labels)
        return sum(replicas_of(each) * cores[each["metadata"]["labels"]["opd.io/variant"]] for each in workloads)

    def load(self, name):
        """Much load for one of them, little for the other."""
        for each, prometheus in self.prometheus.items():
            prometheus.load = MUCH if each == name else LITTLE

    def close(self):
        for each in self.prometheus.values():
            each.close()


@contextmanager
def pair_in(folder, **changes):
    with TinyCluster(folder) as tiny:
        if "store" in changes:
            tiny.kubelet.close()
            (folder / "pods").mkdir()
            tiny.kubelet = Kubelet(tiny.api, folder / "pods")
        pair = Pair(tiny, settings(**changes))
        try:
            yield pair
        finally:
            pair.close()


@pytest.fixture
def pair(tmp_path):
    with pair_in(tmp_path) as found:
        yield found


def test_cores_go_to_the_pipeline_with_the_load_and_are_free_before_they_are_taken(pair, caplog):
    for name in NAMES:
        pair.kubelet.behave(f"{name}-first-small", stop_seconds=1.0)
        pair.kubelet.behave(f"{name}-second-small", stop_seconds=1.0)
    with Running(pair.controller()) as made:
        for name, other in (NAMES, NAMES[::-1], NAMES):
            pair.load(name)
            eventually(lambda name=name, other=other: pair.cores(name) == 4 and pair.cores(other) == 2)
        assert made.state == "leading"
        assert set(made.within) == set(NAMES)
        page = generate_latest(made.metrics).decode()
    assert pair.kubelet.most_cores == CORES
    assert not [record.message for record in caplog.records if "403" in record.message]
    assert page.count("# TYPE opd_decisions_total counter") == 1
    assert all(f'opd_controller_cost{{pipeline="{name}"}}' in page for name in NAMES)
    holders = [pair.api.find("leases", f"{name}-controller")["spec"]["holderIdentity"] for name in NAMES]
    assert holders == ["", ""]


def test_it_leads_while_it_holds_the_leases_of_all(pair):
    another, limited = Lease(pair.cluster, "tiny", times=OFTEN), pair.controller(decisions=1, lead_seconds=5.0)
    with another.hold(PATIENCE), pytest.raises(LedByAnotherError, match="'tiny-controller'"):
        limited.run()
    pair.controller(decisions=1).run()


def test_of_two_controllers_in_either_order_one_leads(pair):
    with Running(pair.controller()) as first, Running(pair.controller(NAMES[::-1])) as second:
        leading = eventually(lambda: [each for each in (first, second) if each.state == "leading"])
        (standing_by,) = {first, second} - set(leading)
        eventually(lambda: standing_by.state == "standing by")
        theirs = {"holderIdentity": "somebody", "leaseDurationSeconds": 1}
        pair.api.edit("leases", "other-controller", lambda found: found["spec"].update(theirs))
        eventually(lambda: leading[0].state != "leading")  # it lost one of two, and gives the other one back
        eventually(lambda: "leading" in (first.state, second.state))


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs every address of 127.0.0.0/8")
def test_both_answer_every_request_while_cores_move_between_them(tmp_path, monkeypatch):
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    store = tmp_path / "store"
    store.mkdir()
    for task in tiny_pipeline().tasks:
        for variant in task.variants:
            push_variant(store, task.name, variant.name, seconds=0.01)
    payloads = tmp_path / "payloads.parquet"
    pd.DataFrame({"payload": [b"hello"]}).to_parquet(payloads)
    with pair_in(tmp_path, store=str(store), drain_seconds=1) as pair, Running(pair.controller()):
        running = [
            start_load(gateway(pair, name), name, [5] * 40, payloads, 0, tmp_path / f"{name}.parquet", timeout=PATIENCE)
            for name in NAMES
        ]
        time.sleep(2)
        for name, other in (NAMES, NAMES[::-1]):
            pair.load(name)
            eventually(lambda name=name, other=other: pair.cores(name) == 4 and pair.cores(other) == 2, 3 * PATIENCE)
        records = [each.finish(PATIENCE) for each in running]
    for found in records:
        assert found["outcome"].value_counts().to_dict() == {"completed": 5 * 40}
    assert pair.kubelet.most_cores == CORES


def gateway(pair, name):
    """Address of a pipeline's gateway."""
    labels = {"app_kubernetes_io__component": "gateway", "app_kubernetes_io__instance": name}
    return f"{pair.api.all('pods', **labels)[0]['status']['podIP']}:8081"
