"""Faults of a cluster while requests come: no request is lost that a living replica could have served.

The pods are real gateways and real emulated replicas behind a Service, on an emulated cluster. The longest wait of a
request after the fault is printed and recorded as a property of the test, and nothing depends on it.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from deadlines import PATIENCE, eventually
from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet
from emulator.prometheus import Prometheus
from emulator.service import Service
from running_controllers import Running, controller
from small_pipelines import stages
from tiny_cluster import FixedPolicy

from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.connection import RetryPolicy, credentials
from opd.cluster.operations import deploy
from opd.cluster.settings import ClusterSettings
from opd.cluster.status import wait_until_serving, workload_statuses
from opd.control.loop import ApplyError
from opd.live import load
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.serving.contents import payload_request
from opd.serving.monitoring.scraper import Scraper
from opd.serving.settings import StageSettings

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs every address of 127.0.0.0/8"),
]

FAST, SLOW = 0, 1
SECONDS = {"fast": 0.01, "slow": 0.02}
TWO = stages((FAST, 2, 1))
RATE = 10
"""Requests/s of each of two callers, far below what one replica of either variant carries."""


def pipeline():
    variants = [Variant(name, 0.5, 1, dict.fromkeys((1, 2, 4), seconds), 0.1) for name, seconds in SECONDS.items()]
    task = Task("only", tuple(variants))
    return Pipeline("tiny", (task,), capacity=4, max_replicas=2, max_batch_size=4, service_level=ServiceLevel(1.0))


def settings(**changes):
    """Two gateways and emulated replicas; requests and changes are given up late, as machines may be busy."""
    patient = StageSettings(drop_after=PATIENCE, call_timeout=PATIENCE, max_queue=100_000)
    given = dict(namespace="space", image="opd:1", store="/unused", emulated=True, gateways=2)
    quick = dict(drain_seconds=1, gateway_drain_seconds=1, apply_seconds=PATIENCE)
    return ClusterSettings(**{**given, "stage": patient, **quick, **changes})


class Deciding(FixedPolicy):
    """Tells that it was asked."""

    def __init__(self, configuration):
        super().__init__(configuration)
        self.decided = threading.Event()

    def decide(self, observation):
        self.decided.set()
        return super().decide(observation)


class Site:
    """The deployed pipeline."""

    def __init__(self, folder):
        self.api, self.pipeline, self.settings = ApiServer(), pipeline(), settings()
        self.kubelet = Kubelet(self.api, folder)
        config = str(kubeconfig(self.api, folder))
        quick = RetryPolicy(connect_seconds=2.0, read_seconds=10.0, first_pause=0.05, longest_pause=0.5)
        self.cluster = Cluster("space", lambda: credentials(config), quick)
        os.environ["KUBECONFIG"] = config
        self.service, self.prometheus = Service(self.api, self.settings.grpc_port), Prometheus(self.pipeline)
        self.deploy()

    def close(self):
        self.service.close()
        self.prometheus.close()
        self.kubelet.close()
        self.api.stop()

    def deploy(self, **changes):
        self.settings = settings(**changes)
        deploy(self.cluster, self.pipeline, self.settings, {"only": TWO[0]}, PATIENCE, print)

    def backend(self, **changes):
        made = settings(**changes)
        return KubernetesBackend(self.cluster, self.pipeline, made, Scraper(), interval_seconds=1.0)

    @contextmanager
    def controlled(self):
        """A controller with the settings of the last deployment leads, and has decided, before the block."""
        policy = Deciding(TWO)
        with Running(controller(self, policy)):
            assert policy.decided.wait(PATIENCE)
            yield

    def pods(self, component):
        """Names of the pods that have not been told to end, oldest first."""
        found = self.api.all("pods", app_kubernetes_io__component=component)
        alive = [each for each in found if each["status"]["phase"] == "Running"]
        return sorted(each["metadata"]["name"] for each in alive if not each["metadata"].get("deletionTimestamp"))

    def serves(self):
        return all(each.serves for each in workload_statuses(self.cluster, "tiny"))

    def used(self, gateway):
        """Replicas that a gateway uses and that work, by name."""
        status = self.cluster.ask_pod(gateway, 8080, "/stages/only")
        return {each["name"]: each["variant"] for each in status["replicas"] if not each["retired"]}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", "")
        made = Site(tmp_path_factory.mktemp("pods"))
        yield made
        made.close()


@pytest.fixture
def site(deployed):
    """The pipeline as it was deployed: two gateways, two replicas of the fast variant."""
    deployed.kubelet.unseen.clear()
    eventually(deployed.serves)
    return deployed


class Traffic:
    """Requests of two callers, each with a connection of its own, during a block; its end waits for every answer.

    Args:
        site: where they go.
        record: what gets the longest wait after the fault, a fixture of pytest.
        retry: whether the callers send again what a killed gateway held.
    """

    def __init__(self, site, record, retry=False):
        self._address, self._record, self._retry = site.service.address, record, retry
        self._callers = threading.Barrier(3)
        self._stop, self.fault, self.records = threading.Event(), 0.0, []

    def __enter__(self):
        self._threads = [threading.Thread(target=self._call, args=(seed,), daemon=True) for seed in range(2)]
        for thread in self._threads:
            thread.start()
        self._callers.wait(PATIENCE)
        time.sleep(0.5)
        self.fault = time.time()
        return self

    def __exit__(self, *raised):
        time.sleep(1.0)
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
        if raised[0] is None:
            self._check()

    def _call(self, seed):
        async def send():
            stop = asyncio.Event()
            waiting = asyncio.create_task(asyncio.to_thread(self._stop.wait))
            waiting.add_done_callback(lambda _: stop.set())
            request = [payload_request([b"a"])]
            counts, begun = np.full(3600, RATE), lambda _: self._callers.wait(PATIENCE)
            return await load.offer(
                self._address, "tiny", counts, request, seed, 2 * PATIENCE, stop, self._retry, begun
            )

        found = asyncio.run(send())
        found["finished_at"], found["sent_at"] = (found[each] + found.attrs["started"] for each in ("finished", "sent"))
        self.records.append(found)

    def _check(self):
        assert len(self.records) == 2  # both callers have ended
        records = pd.concat(self.records)
        lost = records[records["outcome"] != "completed"]
        assert not len(lost), lost[["sent", "outcome", "code", "detail"]].to_dict("records")[:3]
        after = records[records["finished_at"] >= self.fault]
        waited = float((after["finished"] - after["sent"]).max())
        self._record("requests", len(records))
        self._record("longest_wait_seconds", round(waited, 2))
        print(f"{len(records)} requests, none lost; longest wait after the fault {waited:.2f} s")


@pytest.fixture
def traffic(site, record_property, monkeypatch):
    monkeypatch.setattr(load, "GRACE_SECONDS", 2 * PATIENCE)
    monkeypatch.setattr(load, "READY_SECONDS", PATIENCE)
    return lambda **options: Traffic(site, record_property, **options)


# --- gateways --------------------------------------------------------------------------------------------------------


def test_one_of_two_gateways_is_deleted_and_its_callers_send_again(site, traffic):
    victim = site.pods("gateway")[0]
    with traffic(retry=True):
        site.api.delete(("v1", "pods", "space", victim))
        eventually(lambda: victim not in site.pods("gateway") and len(site.pods("gateway")) == 2 and site.serves())


def test_one_of_two_gateways_is_killed_and_its_callers_send_again(site, traffic):
    victim = site.pods("gateway")[0]
    process = site.kubelet.pid(victim)
    with traffic(retry=True):
        os.kill(process, signal.SIGKILL)
        eventually(lambda: site.kubelet.pid(victim) not in (0, process) and site.serves())


def test_the_only_gateway_is_deleted_and_serves_until_its_successor_does(site, traffic):
    """Its callers send again what comes while their connections close; a slow start makes the longest wait longer."""
    site.deploy(gateways=1, gateway_drain_seconds=20)
    (victim,) = site.pods("gateway")
    with traffic(retry=True):
        site.api.delete(("v1", "pods", "space", victim))
        eventually(lambda: victim not in {each["metadata"]["name"] for each in site.api.all("pods")})
        eventually(lambda: len(site.pods("gateway")) == 1 and site.serves())
    site.deploy()


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_the_cluster_loses_sight_of_the_only_node(site, traffic):
    everything = site.pods("gateway") + site.pods("model")
    before = {name: site.kubelet.pid(name) for name in everything}
    with traffic():
        site.kubelet.unseen.update(everything)
        eventually(lambda: not site.service.endpoints() and not site.serves())
        time.sleep(1.0)
        site.kubelet.unseen.clear()
        eventually(site.serves)
    assert {name: site.kubelet.pid(name) for name in everything} == before


def test_a_node_dies_with_half_of_the_replicas(site, traffic):
    """Nothing answers there any more, and nothing closes a connection; the cluster notices later than the gateways."""
    victim, other = site.pods("model")
    with traffic():
        os.kill(site.kubelet.pid(victim), signal.SIGSTOP)
        time.sleep(2.0)
        site.kubelet.unseen.add(victim)
        eventually(lambda: all(victim not in site.used(each) for each in site.pods("gateway")))
        site.api.remove(("v1", "pods", "space", victim))  # what a cluster does to the pods of a dead node
        eventually(lambda: len(site.pods("model")) == 2 and site.serves())
    assert other in site.pods("model")


def test_a_replica_is_evicted(site, traffic):
    victim, other = site.pods("model")
    with traffic():
        site.kubelet.evicted.add(victim)
        eventually(lambda: victim not in site.pods("model"))
        eventually(lambda: len(site.pods("model")) == 2 and site.serves())


# --- changes ---------------------------------------------------------------------------------------------------------


def test_a_new_version_of_controller_gateways_and_replicas_whose_callers_send_again(site, traffic):
    before = set(site.pods("gateway") + site.pods("model"))
    with traffic(retry=True):
        with site.controlled():
            pass
        site.deploy(image="opd:2")
        with site.controlled():
            pass
    assert not before & set(site.pods("gateway") + site.pods("model"))


def test_the_api_server_is_away_in_the_middle_of_a_change_until_after_its_deadline(site, traffic):
    backend = site.backend(apply_seconds=2)
    with traffic():
        site.api.fail("PATCH .*only-slow/scale", lambda: threading.Thread(target=site.api.stop).start())
        with pytest.raises(ApplyError, match="not fully restored"):
            backend.apply(stages((SLOW, 2, 2)))
        time.sleep(1.0)
        site.api.start()
        again = site.backend()
        again.apply(stages((SLOW, 2, 2)))
        again.apply(TWO)
    wait_until_serving(site.cluster, "tiny", PATIENCE)
