"""A pipeline's objects as a whole, against an emulated cluster: made, made again, pruned, waited for, taken away."""

import threading

import pytest
from deadlines import PATIENCE, eventually
from tiny_cluster import LARGE, SMALL, TinyCluster, TinyDeployment, stages

from opd.cluster.deletion import delete_pipeline
from opd.cluster.errors import ForbiddenError, LeftoverError, NotOursError, NotServingError, ServerFailedError
from opd.cluster.lease import Lease, LeaseTimes
from opd.cluster.overlay import Overlay
from opd.cluster.ownership import find_owned
from opd.cluster.rollout import apply_objects, delete_objects, prune_objects, superseded_workloads
from opd.cluster.status import leader, queued_requests, wait_until_serving, workload_status, workload_statuses


@pytest.fixture(autouse=True)
def poll_often(monkeypatch):
    monkeypatch.setattr("opd.cluster.status.POLL_SECONDS", 0.02)
    monkeypatch.setattr("opd.cluster.deletion.POLL_SECONDS", 0.02)


EVERYTHING = dict(network_policy=True, istio_gateway="gate", pod_monitor=True, dashboard=True)


# --- making -----------------------------------------------------------------------------------------------------------


def test_everything_is_made_once(space):
    assert space.deploy(**EVERYTHING) == {"created"}
    assert space.deploy(**EVERYTHING) == {"unchanged"}
    assert len(space.api.all("deployments")) == 5


def test_what_a_manifest_no_longer_says_is_taken_out_and_what_others_added_stays(space):
    overlay = Overlay(all={"spec": {"nodeSelector": {"disk": "fast"}}})
    space.deploy(overlay=overlay)
    space.api.edit("deployments", "tiny-router", lambda found: found["metadata"].update(annotations={"team": "a"}))
    space.api.edit("services", "tiny-router", lambda found: found["spec"].update(clusterIP="10.0.0.9"))
    assert space.deploy() == {"changed", "unchanged"}
    router = space.api.find("deployments", "tiny-router")
    assert "nodeSelector" not in router["spec"]["template"]["spec"]
    assert router["metadata"]["annotations"] == {"team": "a"}
    assert space.api.find("services", "tiny-router")["spec"]["clusterIP"] == "10.0.0.9"


def test_an_object_that_changes_meanwhile_is_read_again(space):
    space.deploy()

    def meddle():
        space.api.edit("deployments", "tiny-router", lambda found: found["metadata"].update(annotations={"b": "c"}))

    space.api.fail("PUT .*tiny-router", meddle)
    space.deploy(image="opd:2")
    router = space.api.find("deployments", "tiny-router")
    assert router["metadata"]["annotations"] == {"b": "c"}
    assert router["spec"]["template"]["spec"]["containers"][0]["image"] == "opd:2"


@pytest.mark.parametrize("capacity, fewest", [(6, 1), (2, 0)])
def test_new_settings_reach_replicas_by_surge_if_the_cores_hold_that_and_else_in_place(tmp_path, capacity, fewest):
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


def test_an_answer_that_is_lost_does_no_harm(space):
    space.api.drop("POST .*deployments", 2)
    assert space.deploy() == {"created"}


def test_a_deployment_that_was_interrupted_goes_on(space):
    space.api.refuse("POST .*deployments", 500, 99)
    with pytest.raises(ServerFailedError):
        space.deploy()
    space.api.faults.clear()
    assert space.deploy() == {"created", "unchanged"}


@pytest.mark.parametrize("labels", [{}, {"app.kubernetes.io/instance": "other", "app.kubernetes.io/managed-by": "opd"}])
def test_nothing_is_written_if_one_object_is_of_somebody_else(space, labels):
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
    assert gone == {"VirtualService", "DestinationRule", "PodMonitor", "ConfigMap"}
    assert space.names("networkpolicies") and not space.names("podmonitors")
    assert list(prune_objects(space.cluster, "tiny", later)) == []


def test_replicas_that_manifests_lack_are_not_pruned_but_released(space):
    space.deploy()
    for manifests, gone in (
        (space.manifests(stages((LARGE, 1, 1), (SMALL, 1, 1))), {"tiny-first-small"}),
        (space.manifests(flavour="seldon"), {"tiny-first-small", "tiny-second-small"}),
    ):
        assert list(prune_objects(space.cluster, "tiny", manifests)) == []
        former = superseded_workloads(space.cluster, "tiny", manifests)
        changes = list(delete_objects(space.cluster, former, dry_run=True))
        assert {change.before["metadata"]["name"] for change in changes} == gone
    assert {change.outcome for change in delete_objects(space.cluster, former)} == {"deleted"}
    assert not space.names("deployments") & {"tiny-first-small", "tiny-second-small"}


# --- looking and waiting ----------------------------------------------------------------------------------------------


def deployment(name, image_generation=1, **status):
    its_labels = {"app.kubernetes.io/component": "router"}
    metadata = {"name": name, "labels": its_labels, "generation": image_generation}
    kind = {"apiVersion": "apps/v1", "kind": "Deployment"}
    return {**kind, "metadata": metadata, "spec": {"replicas": 1}, "status": status}


READY = {
    "metadata": {"name": "p"},
    "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
}


@pytest.mark.parametrize(
    "status, generation, ready",
    [
        (dict(observedGeneration=1, replicas=1, updatedReplicas=1), 1, 1),
        (dict(observedGeneration=1, replicas=1, updatedReplicas=1), 2, 0),  # the cluster has not looked yet
        (dict(observedGeneration=2, replicas=1), 2, 0),  # the pod is of the state before
        (dict(observedGeneration=2, replicas=2, updatedReplicas=1), 2, 0),  # the old pod is still there
    ],
)
def test_a_pod_of_the_state_before_does_not_count(status, generation, ready):
    assert workload_status(deployment("d", generation, **status), [READY]).ready == ready


@pytest.mark.parametrize("state, ready", [("Available", 1), ("Creating", 0)])
def test_seldon_says_when_its_deployment_is_there(state, ready):
    found = {
        "apiVersion": "machinelearning.seldon.io/v1",
        "kind": "SeldonDeployment",
        "metadata": {"name": "d", "labels": {}},
        "spec": {"predictors": [{"replicas": 1, "componentSpecs": [{"spec": {}}]}]},
        "status": {"state": state},
    }
    assert workload_status(found, [READY]).ready == ready


def test_seldon_pods_of_the_state_before_do_not_count_though_the_operator_has_not_looked_yet(space):
    space.deploy(flavour="seldon")
    space.kubelet.close()
    overlay = Overlay(model={"spec": {"nodeSelector": {"disk": "fast"}}})
    list(apply_objects(space.cluster, space.manifests(flavour="seldon", overlay=overlay)))
    assert {each["status"]["state"] for each in space.api.all("seldondeployments")} == {"Available"}
    with pytest.raises(NotServingError, match="tiny-first-small 0 of 1, tiny-second-small 0 of 1"):
        wait_until_serving(space.cluster, "tiny", 0.1)


@pytest.mark.parametrize("reason", ["ErrImageNeverPull", "quota exceeded: cpu"])
def test_what_is_missing_and_why_is_told(space, reason):
    space.kubelet.behave("tiny-second-small", broken=reason)
    told = []
    list(apply_objects(space.cluster, space.manifests()))
    eventually(lambda: sum(each.serves for each in workload_statuses(space.cluster, "tiny")) == 4)
    with pytest.raises(NotServingError, match=f"tiny-second-small 0 of 1.*{reason}"):
        wait_until_serving(space.cluster, "tiny", 0.5, told.append)
    assert told == ["tiny-second-small 0 of 1"]


def test_looking_and_waiting_need_no_rights_beyond_those_of_the_role_view(space):
    space.deploy()
    space.api.refuse("GET .*(roles|rolebindings|secrets|leases|proxy)", 403, 99)
    space.api.refuse("GET .*(seldon|istio|monitoring)", 403, 99)
    wait_until_serving(space.cluster, "tiny", PATIENCE)
    assert len(workload_statuses(space.cluster, "tiny")) == 5
    assert (queued_requests(space.cluster, "tiny", "first"), leader(space.cluster, "tiny")) == ("?", "?")


def test_what_waits_is_asked_of_the_queue_and_unknown_if_it_does_not_say(space):
    space.deploy()
    assert queued_requests(space.cluster, "tiny", "first") == "0"
    space.api.refuse("GET .*proxy/stage", 403)
    assert queued_requests(space.cluster, "tiny", "first") == "?"


# --- taking away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
def test_nothing_is_left(space, flavour):
    space.deploy(flavour=flavour, **EVERYTHING)
    Lease(space.cluster, "tiny", "me").attempt()
    space.api.edit("leases", "tiny-controller", lambda lease: lease["spec"].update(holderIdentity=""))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": "space"}}
    space.api.put(other)
    gone = space.delete()
    assert {each.outcome for each in gone} == {"deleted"}
    assert [key[3] for key in space.api.objects] == ["theirs"]
    assert space.delete() == []


def test_a_lease_of_somebody_else_stays(space):
    metadata = {"name": "tiny-controller", "namespace": "space"}
    space.api.put({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}})
    assert space.delete() == [] and space.names("leases") == {"tiny-controller"}


def test_a_lease_that_stayed_behind_is_deleted_later(space, monkeypatch):
    monkeypatch.setattr("opd.cluster.deletion.RENEWED_SECONDS", 0.3)
    Lease(space.cluster, "tiny", "me").attempt()
    seen = delete_pipeline(space.cluster, "tiny", PATIENCE, dry_run=True)
    assert [change.before["kind"] for change in seen] == ["Lease"]
    assert [change.before["kind"] for change in space.delete()] == ["Lease"] and not space.api.objects


def test_a_controller_that_still_runs_is_named_and_its_lease_goes_once_it_has_ended(space):
    space.deploy()
    with Lease(space.cluster, "tiny", "me", LeaseTimes(retry=0.1)) as lease:
        with pytest.raises(LeftoverError, match="Lease tiny-controller, which me .*a controller still runs"):
            space.delete(0.5)
        threading.Timer(0.5, lease.close).start()
        assert [change.before["kind"] for change in space.delete()] == ["Lease"] and not space.api.objects


def test_the_router_goes_before_what_it_needs(space):
    space.deploy()
    space.kubelet.behave("tiny-router", stop_seconds=0.5)
    seen = []

    def look():
        if space.names("pods") and "tiny-router" not in space.names("deployments"):
            routers = space.api.all("pods", app_kubernetes_io__component="router")
            queues = [each for each in space.names("deployments") if each.endswith("-queue")]
            seen.append((len(routers), len(queues)))

    space.api.fail("GET .*pods", look, 999)
    space.delete()
    assert (1, 2) in seen and all(queues == 2 for routers, queues in seen if routers)


def test_a_controller_makes_nothing_anew_once_the_state_of_stages_is_gone(tmp_path):
    with TinyDeployment(tmp_path) as world:
        backend = world.backend()
        going = delete_pipeline(world.cluster, "tiny", PATIENCE)
        assert {next(going).before["metadata"]["name"] for _ in range(2)} == {"tiny-first-stage", "tiny-second-stage"}
        before = world.workloads()
        with pytest.raises(Exception, match="tiny-first-stage"):
            backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
        assert world.workloads() == before
        list(going)
        assert not world.api.all("deployments")


def test_pods_that_do_not_end_are_named(space):
    space.deploy()
    space.kubelet.behave("tiny-first-small", stop_seconds=600)
    with pytest.raises(LeftoverError, match="Pod tiny-first-small-.*finalizers"):
        space.delete(0.3)
    space.kubelet.behave("tiny-first-small", stop_seconds=0)
    assert space.delete() and not space.api.objects


def test_kinds_that_the_cluster_lacks_or_does_not_show_are_no_obstacle(space):
    space.deploy()
    space.api.refuse("GET .*(istio|monitoring)", 404, 99)
    space.api.refuse("GET .*(seldon|leases)", 403, 99)
    unseen = find_owned(space.cluster, "tiny")[1]
    assert [resource.kind for resource in unseen] == ["SeldonDeployment"]
    assert space.delete() and not space.api.objects


def test_kinds_that_every_cluster_has_must_be_shown(space):
    space.deploy()
    space.api.refuse("GET .*roles", 403, 99)
    with pytest.raises(ForbiddenError):
        space.delete()


def test_what_an_operator_made_of_an_object_goes_with_it(space):
    space.deploy()
    owner = [{"apiVersion": "v1", "kind": "SeldonDeployment", "name": "x", "uid": "1"}]
    space.api.edit("services", "tiny-router", lambda found: found["metadata"].update(ownerReferences=owner))
    space.delete()
    assert space.names("services") == {"tiny-router"}
