"""Deletion of a pipeline, against an emulated cluster."""

import pytest
from deadlines import PATIENCE, eventually
from small_pipelines import stages
from tiny_cluster import LARGE, SMALL, TinyDeployment

from opd.cluster.deletion import delete_pipeline
from opd.cluster.errors import ForbiddenError, LeftoverError, NotFoundError
from opd.cluster.lease import Lease, LeaseTimes
from opd.cluster.owned_objects import find_owned

EVERYTHING = dict(
    network_policy=True,
    istio_gateway="gate",
    pod_monitor=True,
    dashboard=True,
    admission=True,
    alerts=True,
    prefetch=True,
)


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
def test_a_deletion_leaves_nothing(space, flavour):
    space.deploy(flavour=flavour, **EVERYTHING)
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs", "namespace": "space"}}
    space.api.put(other)
    gone = space.delete()
    assert {each.outcome for each in gone} == {"deleted"}
    assert [key[3] for key in space.api.objects] == ["theirs"]
    assert space.delete() == []


def test_a_foreign_lease_stays(space):
    metadata = {"name": "tiny-controller", "namespace": "space"}
    space.api.put({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}})
    assert space.delete() == [] and space.names("leases") == {"tiny-controller"}


def test_a_running_controller_does_not_bring_its_lease_back(space):
    space.deploy()
    with Lease(space.cluster, "tiny", "me", LeaseTimes(retry=0.1)) as lease:
        eventually(lambda: lease.held)
        assert space.delete() and not space.api.objects
        with pytest.raises(NotFoundError):
            lease.attempt()
    assert not space.api.objects


def test_the_gateway_is_deleted_before_what_it_needs(space):
    space.deploy()
    space.kubelet.behave("tiny-gateway", stop_seconds=0.5)
    seen = []

    def look():
        if space.names("pods") and "tiny-gateway" not in space.names("deployments"):
            gateways = space.api.all("pods", app_kubernetes_io__component="gateway")
            models = [each for each in space.names("deployments") if each.endswith("-small")]
            seen.append((len(gateways), len(models)))

    space.api.fail("GET .*pods", look, 999)
    space.delete()
    assert (1, 2) in seen and all(models == 2 for gateways, models in seen if gateways)


def test_a_controller_changes_nothing_once_the_state_of_stages_is_deleted(tmp_path):
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


def test_missing_and_forbidden_optional_kinds_do_not_prevent_a_deletion(space):
    space.deploy()
    space.api.refuse("GET .*(istio|monitoring)", 404, 99)
    space.api.refuse("GET .*seldon", 403, 99)
    unseen = find_owned(space.cluster, "tiny")[1]
    assert [resource.kind for resource in unseen] == ["SeldonDeployment"]
    assert space.delete() and not space.api.objects


def test_built_in_kinds_must_be_readable(space):
    space.deploy()
    space.api.refuse("GET .*roles", 403, 99)
    with pytest.raises(ForbiddenError):
        space.delete()


def test_objects_owned_by_other_objects_are_left_to_garbage_collection(space):
    space.deploy()
    owner = [{"apiVersion": "v1", "kind": "SeldonDeployment", "name": "x", "uid": "1"}]
    space.api.edit("services", "tiny-gateway", lambda found: found["metadata"].update(ownerReferences=owner))
    space.delete()
    assert space.names("services") == {"tiny-gateway"}
