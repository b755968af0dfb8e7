"""Discovery of replicas: known answers, then followed through an emulated cluster, then with real servers."""

import os
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import requests
from deadlines import PATIENCE, eventually
from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet
from emulator.prometheus import Prometheus
from serving_models import push_variant
from small_pipelines import stages

from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.connection import credentials
from opd.cluster.discovery import Discovery, desired_state, gateways_of
from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.pods import is_ready
from opd.cluster.resources import POD
from opd.cluster.settings import ClusterSettings
from opd.live.generator import start_load
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.serving.monitoring.prometheus import PrometheusUrl
from opd.serving.replicas import ReplicaEndpoint

OURS = {"app.kubernetes.io/name": "opd", "app.kubernetes.io/instance": "tiny"}


def pod(name, variant="small", ready=True, leaving=False, address="10.0.0.1", component="model"):
    labels = {**OURS, "app.kubernetes.io/component": component, "opd.io/task": "first", "opd.io/variant": variant}
    metadata = {"name": name, "namespace": "space", "labels": labels}
    if leaving:
        metadata["deletionTimestamp"] = "2030-01-01T00:00:00Z"
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    status = {"phase": "Running", "podIP": address, "conditions": [condition]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status}


def gateway(name, **state):
    return pod(name, "", component="gateway", **state)


def stage(variant="small", batch_size="2"):
    labels = {**OURS, "app.kubernetes.io/component": "stage", "opd.io/task": "first"}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "tiny-first-stage", "namespace": "space", "labels": labels},
        "data": {"variant": variant, "replicas": "1", "batch_size": batch_size},
    }


def by_name(*pods):
    return {each["metadata"]["name"]: each for each in pods}


def place(name, variant="small", address="10.0.0.1:8081"):
    return ReplicaEndpoint(name, variant, address)


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, pods, serving, chosen",
    [
        (stage(), [pod("a")], [], [place("a")]),
        (stage(), [pod("b"), pod("a"), pod("c", ready=False), pod("d", leaving=True)], [], [place("a"), place("b")]),
        (stage(), [pod("a"), pod("b", "large")], [], [place("a")]),
        # No pod of the wanted variant is ready: what serves goes on, but not what has gone meanwhile.
        (stage("large"), [pod("a"), pod("b", "large", ready=False)], [place("a")], [place("a")]),
        (stage("large"), [pod("a", leaving=True), pod("c")], [place("a"), place("c")], [place("c")]),
        (stage("large"), [pod("a"), pod("b", "large")], [place("a")], [place("b", "large")]),
        # A pod that was not serving is not taken for a variant that nobody wants.
        (stage("large"), [pod("a")], [], []),
        (stage(), [pod("a", address="")], [], []),
        # No pod is ready at all, as on a node that the cluster has lost sight of: what serves goes on.
        (stage(), [pod("a", ready=False), pod("b", ready=False, leaving=True)], [place("a"), place("b")], [place("a")]),
        (stage(), [pod("a", ready=False)], [], []),
    ],
)
def test_the_ready_pods_of_the_wanted_variant(config, pods, serving, chosen):
    assert desired_state(config, by_name(*pods), 8081, (1, serving)) == (2, chosen)


@pytest.mark.parametrize("config", [stage(batch_size="0"), stage(batch_size="x"), stage(variant=""), {"data": None}])
def test_a_malformed_configmap_changes_nothing(config):
    assert desired_state(config, by_name(pod("a")), 8081, (1, [])) is None


def test_the_gateways_are_those_that_are_ready_and_oneself():
    pods = by_name(pod("a"), gateway("g2"), gateway("g1", ready=False), gateway("g3", leaving=True), gateway("g0"))
    assert gateways_of(pods, "g1") == ["g0", "g1", "g2"]


# --- through the API -------------------------------------------------------------------------------------------------


class ConfiguredGateway:
    """Records how a gateway would be configured."""

    def __init__(self):
        self.states = []

    def __call__(self, stages):
        batch_size, replicas = stages["first"]
        self.states.append((batch_size, [each.name for each in replicas], [each.share for each in replicas]))

    def ends_with(self, batch_size, *names, shares=None):
        eventually(lambda: self.states[-1:] == [(batch_size, list(names), shares or [1.0] * len(names))])


@pytest.fixture
def told(server, cluster):
    server.put(stage())
    server.put(pod("a"))
    told = ConfiguredGateway()
    discovery = Discovery(cluster, "tiny", ["first"], 8081, "g1", told)
    told.ends_with(2, "a")
    eventually(lambda: server.watches() == 2)
    yield told
    discovery.close()
    server.end_watches()


def test_a_gateway_of_a_pipeline_without_replicas_is_told_so(server, cluster):
    told = []
    discovery = Discovery(cluster, "tiny", ["first"], 8081, "g1", told.append)
    eventually(lambda: told == [{}])
    discovery.close()
    server.end_watches()


def test_replicas_are_divided_again_when_a_gateway_comes_or_goes(server, told):
    server.put(pod("b"))
    server.put(pod("c"))
    told.ends_with(2, "a", "b", "c")
    server.put(gateway("g0"))
    told.ends_with(2, "b", "c", shares=[0.5, 1.0])
    server.edit("pods", "g0", lambda found: found["metadata"].update(deletionTimestamp="2030-01-01T00:00:00Z"))
    told.ends_with(2, "a", "b", "c")


def test_pods_and_configuration_are_followed(server, told):
    server.put(pod("b", "large"))
    server.edit("configmaps", "tiny-first-stage", lambda found: found["data"].update(variant="large", batch_size="4"))
    told.ends_with(4, "b")
    server.put(pod("c", "large"))
    told.ends_with(4, "b", "c")
    server.edit("pods", "b", lambda found: found["metadata"].update(deletionTimestamp="2030-01-01T00:00:00Z"))
    told.ends_with(4, "c")


def test_replicas_of_which_none_is_ready_serve_on_and_that_is_logged_once(server, told, caplog):
    before = len(told.states)
    for note in ("a", "b"):
        server.edit("pods", "a", lambda found: found["metadata"].update(annotations={"note": note}))  # noqa: B023
        server.edit("pods", "a", lambda found: found["status"]["conditions"][0].update(status="False"))
    eventually(lambda: "no replica of first is ready; those known serve on: a" in caplog.text)
    server.put(pod("b"))
    told.ends_with(2, "b")
    assert len(told.states) == before + 1 and caplog.text.count("no replica of first") == 1


def test_a_deleted_or_malformed_configuration_changes_nothing(server, told):
    before = len(told.states)
    server.edit("configmaps", "tiny-first-stage", lambda found: found["data"].update(batch_size="many"))
    server.remove(("v1", "configmaps", "space", "tiny-first-stage"))
    time.sleep(0.3)
    assert len(told.states) == before
    server.put(stage(batch_size="1"))
    told.ends_with(1, "a")


def test_without_the_api_server_the_known_state_stays_and_later_changes_are_seen(server, told):
    before = len(told.states)
    server.stop()
    server.put(pod("b"))
    time.sleep(0.5)
    assert len(told.states) == before
    server.start()
    told.ends_with(2, "a", "b")


@pytest.mark.parametrize("fault", ["gone", "ended", "expired token", "500"])
def test_faults_of_watches_are_overcome(server, told, fault):
    if fault == "gone":
        server.forget_history()
    elif fault == "ended":
        server.end_watches()
    else:
        server.refuse("GET", 401 if fault == "expired token" else 500, 4)
        server.end_watches()
    server.put(pod("b"))
    told.ends_with(2, "a", "b")


# --- for real --------------------------------------------------------------------------------------------------------

TESTS = Path(__file__).parents[1]
SECONDS = {"fast": 0.005, "slow": 0.03}


def real_pipeline():
    profile = dict.fromkeys((1, 2, 4), 0.05)
    variants = tuple(Variant(name, 0.5, 1, profile, 2.0) for name in SECONDS)
    tasks = (Task("first", variants), Task("second", variants))
    return Pipeline("tiny", tasks, capacity=8, max_replicas=3, max_batch_size=4, service_level=ServiceLevel(1.0))


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for task in ("first", "second"):
        for variant, seconds in SECONDS.items():
            push_variant(folder, task, variant, seconds=seconds)
    return str(folder)


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="needs every address of 127.0.0.0/8")
def test_a_deployed_pipeline_is_reconfigured_under_load_without_losing_a_request(tmp_path, store, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    pipeline, api = real_pipeline(), ApiServer()
    path = kubeconfig(api, tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(path))
    settings = ClusterSettings(
        namespace="space",
        image="opd:1",
        store=store,
        drain_seconds=1,
        gateway_drain_seconds=1,
        apply_seconds=3 * PATIENCE,
    )
    initial = stages((0, 1, 1), (0, 1, 1))
    for manifest in pipeline_objects(pipeline, initial, settings):
        api.put(manifest)
    prometheus = Prometheus(pipeline)
    (tmp_path / "pods").mkdir()
    kubelet = Kubelet(api, tmp_path / "pods")
    try:
        cluster = Cluster("space", lambda: credentials(str(path)))
        backend = KubernetesBackend(cluster, pipeline, settings, PrometheusUrl(prometheus.url), 1.0)
        address = eventually(lambda: ready_address(api), 3 * PATIENCE)
        assert_refuses_configuration(api)
        payloads = tmp_path / "payloads.parquet"
        pd.DataFrame({"payload": [b"hello"]}).to_parquet(payloads)
        traffic = start_load(address, "tiny", [15] * 16, payloads, 0, tmp_path / "requests.parquet", timeout=PATIENCE)
        done = []
        threading.Thread(target=lambda: done.append(traffic.finish(PATIENCE)), daemon=True).start()
        time.sleep(2)
        backend.apply(stages((1, 1, 2), (0, 2, 1)))
        assert serving(cluster, api, "first") == (2, ["slow"]) and serving(cluster, api, "second") == (1, ["fast"] * 2)
        api.stop()  # the data plane does not need it
        time.sleep(1)
        api.start()
        backend.apply(stages((1, 1, 4), (1, 1, 4)))
        assert serving(cluster, api, "first") == (4, ["slow"]) and serving(cluster, api, "second") == (4, ["slow"])
        victim = api.all("pods", opd_io__task="first", app_kubernetes_io__component="model")[0]["metadata"]["name"]
        cluster.delete(POD, victim)
        eventually(lambda: done)
        assert done[0]["outcome"].value_counts().to_dict() == {"completed": 15 * 16}
        assert set(done[0]["answer"]) == {"HELLO"}
        assert kubelet.most_cores <= pipeline.capacity
    finally:
        kubelet.close()
        prometheus.close()
        api.stop()


def ready_address(api):
    """Of the gateway, once everything is ready; nothing before."""
    pods = api.all("pods")
    if len(pods) < 3 or not all(map(is_ready, pods)):
        return None
    return f"{gateway_pod(api)['status']['podIP']}:8081"


def gateway_pod(api):
    return api.all("pods", app_kubernetes_io__component="gateway")[0]


def assert_refuses_configuration(api):
    """The ConfigMap alone says what a stage runs."""
    url = f"http://{gateway_pod(api)['status']['podIP']}:8080/stages/first"
    answer = requests.put(url, json={"batch_size": 4, "replicas": []}, timeout=PATIENCE)
    assert answer.status_code == 409 and "follows the ConfigMap of each stage" in answer.json()["error"]


def serving(cluster, api, task):
    status = cluster.ask_pod(gateway_pod(api)["metadata"]["name"], 8080, f"/stages/{task}")
    return status["batch_size"], [each["variant"] for each in status["replicas"] if not each["retired"]]
