"""Start-up times on an emulated cluster: the stamps on pods, and what the profile keeps of them."""

import pytest
from deadlines import PATIENCE
from small_pipelines import stages
from tiny_cluster import LARGE, SMALL

from opd.cluster.errors import LedByAnotherError, NotDeployedError
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.operations import startup
from opd.cluster.resources import DEPLOYMENT
from opd.cluster.starts import Start, start_of, typical_start


def stamped(scheduled="10:00:02", taken="10:00:02", started="10:00:07", ready="10:00:11", **changes):
    """A pod that was created at 10:00:00."""
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": f"2026-01-01T{scheduled}Z"},
        {"type": "Ready", "status": "True", "lastTransitionTime": f"2026-01-01T{ready}Z"},
    ]
    sidecar = {"name": "proxy", "state": {"running": {"startedAt": "2026-01-01T09:00:00Z"}}}
    server = {"name": "server", "state": {"running": {"startedAt": f"2026-01-01T{started}Z"}}}
    status = {"podIP": "10.0.0.1", "startTime": f"2026-01-01T{taken}Z", "conditions": conditions}
    return {
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T10:00:00Z"},
        "spec": {"nodeName": "edge-1"},
        "status": {**status, "containerStatuses": [sidecar, server], **changes},
    }


def test_the_phases_of_a_start_are_those_of_the_stamps():
    start = start_of(stamped())
    assert start == Start("edge-1", scheduling=2.0, image=5.0, loading=4.0) and start.seconds == 11.0


def test_the_clock_of_the_node_may_be_wrong():
    """The node is an hour behind: its three stamps are, and those of the API server are not."""
    assert start_of(stamped(taken="09:00:02", started="09:00:07", ready="09:00:11")) == start_of(stamped())


def test_two_api_servers_may_differ_by_a_second():
    assert start_of(stamped(scheduled="09:59:59")).scheduling == 0.0


@pytest.mark.parametrize(
    "missing",
    [
        {"startTime": None},
        {"conditions": []},
        {"containerStatuses": []},
        {"containerStatuses": [{"name": "server", "state": {"waiting": {"reason": "ContainerCreating"}}}]},
        {"podIP": ""},
    ],
)
def test_a_pod_that_is_not_ready_or_not_stamped_has_no_start(missing):
    assert start_of(stamped(**missing)) is None


def test_a_single_pull_of_the_image_is_not_typical():
    starts = [Start("a", 0.0, 60.0, 4.0), Start("b", 1.0, 1.0, 5.0), Start("a", 0.0, 0.0, 7.0)]
    assert typical_start(starts) == Start("a, b", scheduling=0.0, image=1.0, loading=5.0)


# ------------------------------------------------------------------------------------------------- on a cluster

KEYS = [(task, variant) for task in ("first", "second") for variant in ("small", "large", "x")]


def measured(space, number=1, seconds=PATIENCE):
    """Starts by variant, and why others have none."""
    found = dict(startup(space.cluster, space.pipeline, number, seconds, lambda _: None))
    left_out = {key: each for key, each in found.items() if isinstance(each, str)}
    return {key: each for key, each in found.items() if key not in left_out}, left_out


def replicas(space):
    found = space.api.all("deployments", app_kubernetes_io__component="model")
    return {each["metadata"]["name"]: replicas_of(each) for each in found if replicas_of(each)}


def test_every_variant_is_started_and_what_runs_stays(space):
    space.deploy()
    space.kubelet.skew = 3600.0
    space.kubelet.behave("tiny-first-small", stamped=(0, 1, 2))
    space.kubelet.behave("tiny-second-large", stamped=(2, 5, 4))
    running, stage = replicas(space), space.api.find("configmaps", "tiny-second-stage")["data"]
    starts, left_out = measured(space, number=2)
    assert not left_out and list(starts) == KEYS
    assert starts["first", "small"] == 2 * [Start("node", 0.0, 1.0, 2.0)]
    assert starts["second", "large"] == 2 * [Start("node", 2.0, 5.0, 4.0)]
    assert starts["second", "x"] == 2 * [Start("node", 0.0, 0.0, 0.0)]
    assert replicas(space) == running and space.api.find("configmaps", "tiny-second-stage")["data"] == stage
    assert space.kubelet.most_cores <= space.pipeline.capacity
    assert space.api.find("leases", "tiny-controller")["spec"]["holderIdentity"] == ""


def test_a_variant_without_room_is_left_out(space):
    space.deploy(stages((LARGE, 2, 1), (SMALL, 1, 1)))  # five of six cores
    starts, left_out = measured(space)
    assert list(starts) == [("first", "small"), ("second", "small")]
    assert left_out["second", "large"].startswith(
        "there is no room for one replica more of second/large: it has 0 of 3"
    )
    assert "5 of 6 cores" in left_out["second", "large"] and len(left_out) == 4


def test_replicas_of_a_stage_are_at_most_what_the_pipeline_allows(space):
    space.deploy(stages((SMALL, 3, 1), (SMALL, 1, 1)), admission=True)
    starts, left_out = measured(space)
    assert list(left_out) == [("first", "small")] and len(starts) == 5


def test_a_variant_that_cannot_become_ready_is_left_out_and_ended(space):
    space.deploy()
    running = replicas(space)
    space.kubelet.behave("tiny-first-large", broken="ImagePullBackOff")
    starts, left_out = measured(space)
    assert list(left_out) == [("first", "large")] and "ImagePullBackOff" in left_out["first", "large"]
    assert len(starts) == 5 and replicas(space) == running


def test_a_variant_that_takes_too_long_is_left_out_and_ended(space):
    space.deploy()
    running = replicas(space)
    space.kubelet.behave("tiny-first-large", broken="silent")
    _, left_out = measured(space, seconds=0.5)
    assert left_out["first", "large"].startswith("no new replica is ready after 0.5 s: it is starting")
    assert replicas(space) == running


def test_a_variant_that_is_not_deployed_is_left_out(space):
    space.deploy()
    space.api.remove(("apps/v1", "deployments", "space", "tiny-first-x"))
    starts, left_out = measured(space)
    assert len(starts) == 5 and left_out == {
        ("first", "x"): "first/x is not deployed with the pipeline; deploy again, then measure"
    }


def test_what_was_measured_is_told_at_once_and_the_lease_is_returned_after_an_interruption(space):
    space.deploy()
    running = startup(space.cluster, space.pipeline, 1, PATIENCE, lambda _: None)
    assert next(running) == (("first", "small"), [Start("node", 0.0, 0.0, 0.0)])
    running.close()
    assert space.api.find("leases", "tiny-controller")["spec"]["holderIdentity"] == ""
    assert replicas(space) == {"tiny-first-small": 1, "tiny-second-small": 1}


def test_a_variant_that_was_scaled_by_hand_is_left_alone(space):
    space.deploy()
    space.cluster.scale(DEPLOYMENT, "tiny-first-x", 1, "kubectl", force=True)
    starts, left_out = measured(space)
    assert list(left_out) == [("first", "x")] and "'kubectl'" in left_out["first", "x"]
    assert len(starts) == 5 and replicas(space)["tiny-first-x"] == 1


def test_nothing_is_started_while_a_controller_leads_or_without_a_pipeline(space, monkeypatch):
    monkeypatch.setattr("opd.cluster.operations.LEASE_SECONDS", 0.5)
    with pytest.raises(NotDeployedError):
        measured(space)
    space.deploy()
    spec = {"holderIdentity": "other", "leaseDurationSeconds": 60, "renewTime": "2030-01-01T00:00:00.000000Z"}
    space.api.edit("leases", "tiny-controller", lambda lease: lease.update(spec=spec))
    running = replicas(space)
    with pytest.raises(LedByAnotherError):
        measured(space)
    assert replicas(space) == running
