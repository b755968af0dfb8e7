"""Objects of a pipeline against an emulated cluster: created, brought to their manifests, pruned."""

import threading

import pytest
from small_pipelines import stages
from tiny_cluster import LARGE, SMALL, TinyCluster

from opd.cluster.errors import NotOursError, ServerFailedError
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.overlay import Overlay
from opd.cluster.owned_objects import prune_objects

EVERYTHING = dict(
    network_policy=True, istio_gateway="gate", pod_monitor=True, dashboard=True, admission=True, alerts=True
)


def test_everything_is_created_once(space):
    assert space.deploy(**EVERYTHING) == {"created"}
    assert space.deploy(**EVERYTHING) == {"unchanged"}
    assert len(space.api.all("deployments")) == 2 * 3 + 1


def test_fields_missing_from_a_manifest_are_removed_and_additions_by_others_stay(space):
    overlay = Overlay(all={"spec": {"nodeSelector": {"disk": "fast"}}})
    space.deploy(overlay=overlay)
    space.api.edit(
        "deployments", "tiny-gateway", lambda found: found["metadata"].update(annotations={"team": "a"}), "kubectl"
    )
    space.api.edit("services", "tiny-gateway", lambda found: found["spec"].update(clusterIP="10.0.0.9"))
    assert space.deploy() == {"changed", "unchanged"}
    gateway = space.api.find("deployments", "tiny-gateway")
    assert "nodeSelector" not in gateway["spec"]["template"]["spec"]
    assert gateway["metadata"]["annotations"] == {"team": "a"}
    assert space.api.find("services", "tiny-gateway")["spec"]["clusterIP"] == "10.0.0.9"


@pytest.mark.parametrize("capacity, fewest", [(6, 1), (2, 0)])
def test_new_settings_reach_replicas_by_surge_if_there_are_cores_for_it_else_in_place(tmp_path, capacity, fewest):
    with TinyCluster(tmp_path, capacity) as space:
        space.deploy()
        space.kubelet.behave("tiny-first-small", start_seconds=0.3)
        seen, done = [], threading.Event()

        def look():
            while not done.wait(0.01):
                seen.append(len(space.ready_replicas("first")))

        watcher = threading.Thread(target=look)
        watcher.start()
        space.deploy(image="opd:2")
        done.set()
        watcher.join()
        assert min(seen) == fewest
        assert [pod["spec"]["containers"][0]["image"] for pod in space.ready_replicas("first")] == ["opd:2"]


def test_a_lost_answer_does_no_harm(space):
    space.api.drop("PATCH .*deployments", 2)
    assert space.deploy() == {"created"}


def test_an_interrupted_deployment_can_be_completed(space):
    space.api.refuse("PATCH .*deployments", 500, 99)
    with pytest.raises(ServerFailedError):
        space.deploy()
    space.api.faults.clear()
    assert space.deploy() == {"created", "unchanged"}


@pytest.mark.parametrize("labels", [{}, {"app.kubernetes.io/instance": "other", "app.kubernetes.io/managed-by": "opd"}])
def test_nothing_is_written_if_an_object_belongs_to_somebody_else(space, labels):
    metadata = {"name": "tiny-first-stage", "namespace": "space", "labels": labels}
    space.api.put({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"theirs": "1"}})
    space.api.requests.clear()
    with pytest.raises(NotOursError, match="ConfigMap 'tiny-first-stage' exists and is not of pipeline"):
        space.deploy()
    assert {method for method, *_ in space.api.requests} == {"GET"}
    assert space.delete() == [] and space.api.find("configmaps", "tiny-first-stage")["data"] == {"theirs": "1"}


def test_what_is_no_longer_wanted_is_pruned(space):
    space.deploy(**EVERYTHING)
    later = space.manifests(network_policy=True)
    gone = {change.before["kind"] for change in prune_objects(space.cluster, "tiny", later)}
    assert gone == {
        *("VirtualService", "DestinationRule", "PodMonitor", "PrometheusRule", "ConfigMap"),
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
    }
    assert space.names("networkpolicies") and not space.names("podmonitors")
    assert list(prune_objects(space.cluster, "tiny", later)) == []


def test_replicas_are_not_pruned(space):
    space.deploy()
    assert list(prune_objects(space.cluster, "tiny", space.manifests(flavour="seldon"))) == []


def test_every_variant_is_there_and_only_those_that_run_have_replicas(space):
    space.deploy(stages((LARGE, 2, 1), (SMALL, 1, 1)))
    replicas = {each["metadata"]["name"]: replicas_of(each) for each in space.api.all("deployments")}
    assert {name: count for name, count in replicas.items() if count} == {
        **{"tiny-first-large": 2, "tiny-second-small": 1, "tiny-gateway": 1}
    }
    assert len(replicas) == 7
