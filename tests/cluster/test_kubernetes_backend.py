"""The backend of a cluster against an emulated one: cores of nodes, changes, faults and recovery."""

import threading

import numpy as np
import pytest
from deadlines import eventually, within
from small_pipelines import stages
from tiny_cluster import INITIAL, LARGE, SMALL, THIRD, FixedPolicy, TinyDeployment, node, settings

from opd.cluster.backend import ChangeTimes
from opd.cluster.deployed_state import StageStateError
from opd.cluster.errors import ForbiddenError, NotFoundError
from opd.cluster.looking import PreviewBackend
from opd.cluster.names import CONTROLLER_MANAGER
from opd.cluster.overlay import Overlay
from opd.control.loop import ApplyError, ObservationError, run
from opd.objective import Weights

# --- cores of the nodes ----------------------------------------------------------------------------------------------


def test_the_cores_of_the_nodes_are_a_limit_if_they_are_read(world):
    world.api.put({"apiVersion": "v1", "kind": "Node", **node("node", "6500m")})
    backend = world.backend(read_nodes=True)
    assert backend.available_cores() == 5.5  # 6.5 less 1 of a gateway, the replicas being ours
    world.api.edit("nodes", "node", lambda found: found["status"]["allocatable"].update(cpu="64"))
    assert backend.available_cores() == 6.0
    world.api.refuse("GET /api/v1/nodes", 403, 9)
    with pytest.raises(ObservationError, match="Role"):
        backend.available_cores()


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
def test_a_tainted_node_counts_if_replicas_tolerate_it(tmp_path, flavour):
    with TinyDeployment(tmp_path, flavour) as world:
        taint = {"key": "edge", "effect": "NoSchedule"}
        world.api.put({"apiVersion": "v1", "kind": "Node", **node("node", "4", taints=[taint])})
        assert world.backend(read_nodes=True).available_cores() == 0
        overlay = Overlay(all={"spec": {"tolerations": [{"key": "edge", "operator": "Exists"}]}})
        tolerant = settings(flavour=flavour, overlay=overlay)
        assert world.backend(read_nodes=True, settings=tolerant).available_cores() == 3.0


# --- normal life -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
def test_variant_replicas_and_batch_change(tmp_path, flavour):
    with TinyDeployment(tmp_path, flavour) as world:
        backend = world.backend()
        assert backend.configuration == INITIAL
        wanted = stages((LARGE, 1, 2), (SMALL, 2, 4))
        with within():
            backend.apply(wanted)
        assert backend.configuration == wanted
        assert world.state("first") == {"variant": "large", "batch_size": "2"}
        eventually(lambda: (world.pods("first"), world.pods("second")) == ({"large": 1}, {"small": 2}))
        eventually(lambda: world.workloads() == {"tiny-first-large", "tiny-second-small"})
        assert world.backend().configuration == wanted
        assert "surge" in world.announced[0][1]
        with within():
            backend.apply(INITIAL)
        assert world.kubelet.most_cores <= 6


def test_nothing_is_written_if_the_configuration_runs_already(world):
    backend = world.backend()
    world.api.requests.clear()
    backend.apply(INITIAL)
    assert {method for method, *_ in world.api.requests} == {"GET"}


def test_old_replicas_serve_until_the_new_ones_do(world):
    world.kubelet.behave("tiny-first-large", start_seconds=0.5)
    seen = []
    world.api.fail("GET .*pods", lambda: seen.append(world.pods("first")), 999)
    world.backend().apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert {"small": 1} in seen and {} not in seen


def test_the_old_workload_stays_until_the_gateway_has_switched(world):
    world.api.refuse("GET .*proxy/stages/first", 503, 12, message="no endpoints")
    seen = []
    world.api.fail("GET .*proxy/stages/first", lambda: seen.append(world.workloads()), 1)
    world.backend().apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert seen and "tiny-first-small" in seen[0]
    assert world.workloads() == {"tiny-first-large", "tiny-second-small"}


def test_variants_are_replaced_in_place_if_both_do_not_fit(tmp_path):
    with TinyDeployment(tmp_path, capacity=3) as world:
        backend = world.backend()
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
        world.kubelet.most_cores = 0
        backend.apply(stages((THIRD, 1, 1), (SMALL, 1, 1)))
        assert world.kubelet.most_cores <= 3
        assert "first in place" in world.announced[-1][1]
        eventually(lambda: world.pods("first") == {"x": 1})


# --- replicas that do not come ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff", "Unschedulable", "quota exceeded"])
def test_replicas_that_cannot_start_are_rolled_back_early(world, reason):
    world.kubelet.behave("tiny-first-large", broken=reason)
    backend = world.backend()
    with within(), pytest.raises(ApplyError, match=f"{reason}.*last good configuration is restored"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 2, 1)))
    assert backend.configuration == INITIAL
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"}
    eventually(lambda: world.pods("second") == {"small": 1})


@pytest.mark.parametrize(("broken", "reason"), [("silent", ";"), ("ended", ", pod .* exit code 1: ValueError: the we")])
def test_replicas_that_never_become_ready_are_rolled_back_at_the_deadline(world, broken, reason):
    world.kubelet.behave("tiny-first-large", broken=broken)
    backend = world.backend(settings=settings(apply_seconds=1))
    with within(), pytest.raises(ApplyError, match=f"tiny-first-large has 0 of 1{reason}"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"}


def test_a_gateway_that_does_not_switch_keeps_the_old_replicas(world):
    world.api.refuse("GET .*proxy/stages/first", 403, 999, message="not through this proxy")
    backend = world.backend(settings=settings(apply_seconds=3), times=ChangeTimes(0.02, 0.5, 0.5))
    with within(), pytest.raises(ApplyError, match="gateways do not serve 'first'.*not through this proxy"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert world.pods("first")["small"] == 1


def test_a_failed_rollback_is_completed_by_the_next_change(world):
    backend = world.backend(settings=settings(apply_seconds=1))
    world.kubelet.behave("tiny-first-large", broken="CrashLoopBackOff")
    scaling = "PATCH .*tiny-first-large/scale"  # up, and then not down again
    world.api.fail(f"{scaling}.*force", lambda: world.api.refuse(scaling, 403, 99, message="hands off"))
    with within(), pytest.raises(ApplyError, match="not fully restored.*hands off"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    world.api.faults.clear()
    backend.apply(INITIAL)
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"}


# --- faults of the API server ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [401, 429, 500, 503])
def test_transient_faults_during_a_change_are_overcome(world, code):
    backend = world.backend()
    for pattern in ("PATCH .*first-large/scale", "GET .*pods", "PATCH .*configmaps", "PATCH .*first-small/scale"):
        world.api.refuse(pattern, code, 1 if code == 401 else 2, Retry_After="0")
    with within():
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 2)))
    eventually(lambda: world.pods("first") == {"large": 1})
    assert not [fault for fault in world.api.faults if fault.times]


def test_what_others_add_to_an_object_stays(world):
    backend, name = world.backend(), "tiny-second-small"
    world.api.edit("deployments", name, lambda found: found["metadata"].update(annotations={"a": "b"}), "kubectl")
    world.api.edit("configmaps", "tiny-second-stage", lambda found: found["data"].update(note="c"), "kubectl")
    backend.apply(stages((SMALL, 1, 1), (SMALL, 2, 2)))
    assert world.api.find("deployments", name)["metadata"]["annotations"] == {"a": "b"}
    assert world.state("second") == {"variant": "small", "batch_size": "2", "note": "c"}
    eventually(lambda: world.pods("second") == {"small": 2})


def test_a_forbidden_change_is_rolled_back_and_the_remedy_is_named(world):
    backend = world.backend()
    world.api.refuse("PATCH .*tiny-first-large/scale", 403, 1)
    with within(), pytest.raises(ApplyError, match="Role"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    eventually(lambda: world.pods("first") == {"small": 1})


def test_a_forbidden_namespace_is_named_at_once(world):
    world.api.refuse("GET", 403, 99)
    with within(), pytest.raises(ForbiddenError, match="'space'"):
        world.backend()


def test_without_the_api_server_a_change_ends_in_bounded_time_and_a_later_one_succeeds(world):
    backend = world.backend(settings=settings(apply_seconds=1))
    world.api.drop(".", 999)
    with within(), pytest.raises(ApplyError, match="no answer"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    world.api.faults.clear()
    backend.apply(INITIAL)
    backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    eventually(lambda: world.pods("first") == {"large": 1})


# --- state in the cluster --------------------------------------------------------------------------------------------


def test_a_pipeline_that_is_not_deployed_is_named(world):
    world.api.remove(("v1", "configmaps", "space", "tiny-first-stage"))
    with pytest.raises(NotFoundError, match="'tiny-first-stage'.*deploy it"):
        world.backend()


@pytest.mark.parametrize("data", [{"variant": "unknown"}, {"batch_size": "3"}, {"batch_size": "many"}])
def test_a_malformed_configmap_is_an_error_at_the_start_and_repaired_later(world, data):
    backend = world.backend()
    world.api.edit("configmaps", "tiny-first-stage", lambda found: found["data"].update(data))
    with pytest.raises(StageStateError, match="tiny-first-stage"):
        world.backend()
    backend.apply(INITIAL)
    assert world.state("first") == {"variant": "small", "batch_size": "1"}


def scaled(world, name, replicas, manager=CONTROLLER_MANAGER):
    world.api.edit("deployments", name, lambda found: found["spec"].update(replicas=replicas), manager)


def test_an_interrupted_change_is_cleared_away_before_the_gateway_switched(world):
    scaled(world, "tiny-first-large", 1)
    backend = world.backend()
    assert backend.configuration == INITIAL
    backend.apply(backend.configuration)
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"}
    eventually(lambda: world.pods("first") == {"small": 1})


def test_an_interrupted_change_is_completed_after_the_gateway_switched(world):
    scaled(world, "tiny-first-large", 1)
    world.api.edit("configmaps", "tiny-first-stage", lambda found: found["data"].update(variant="large"))
    backend = world.backend()
    assert backend.configuration == stages((LARGE, 1, 1), (SMALL, 1, 1))
    backend.apply(backend.configuration)
    assert world.workloads() == {"tiny-first-large", "tiny-second-small"}


@pytest.mark.parametrize("replicas, counted", [(0, 1), (2, 2), (9, 3)])
def test_replicas_are_those_of_the_workload_within_the_limits(world, replicas, counted):
    scaled(world, "tiny-second-small", replicas)
    backend = world.backend()
    assert backend.configuration == stages((SMALL, 1, 1), (SMALL, counted, 1))
    backend.apply(backend.configuration)
    eventually(lambda: world.pods("second") == {"small": counted})


def test_a_workload_that_is_missing_is_named_and_the_change_rolled_back(world):
    world.api.remove(("apps/v1", "deployments", "space", "tiny-first-large"))
    backend = world.backend()
    with within(), pytest.raises(ApplyError, match="'tiny-first-large'.*deploy it.*configuration is restored"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 2)))
    assert world.state("second")["batch_size"] == "1"


def test_a_backend_that_does_not_lead_changes_nothing(world):
    backend = world.backend(may_act=lambda: False)
    world.api.requests.clear()
    with pytest.raises(ApplyError, match="another controller leads"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert {method for method, *_ in world.api.requests} <= {"GET"}


def test_closing_during_a_change_ends_it_at_once_and_leaves_nothing_behind(world):
    world.kubelet.behave("tiny-first-large", broken="silent")
    backend = world.backend()
    threading.Timer(0.5, backend.close).start()
    with within(), pytest.raises(ApplyError, match="being stopped"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"}


def test_a_stopped_change_in_place_restores_the_removed_replicas(tmp_path):
    with TinyDeployment(tmp_path, capacity=3) as world:
        backend = world.backend()
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
        world.kubelet.behave("tiny-first-x", broken="silent")
        threading.Timer(0.5, backend.close).start()
        with within(), pytest.raises(ApplyError, match="being stopped"):
            backend.apply(stages((THIRD, 1, 1), (SMALL, 1, 1)))
        assert world.workloads() == {"tiny-first-large", "tiny-second-small"}
        eventually(lambda: world.pods("first") == {"large": 1})


def test_a_failed_call_is_not_repeated_after_leadership_is_lost(world):
    leads = [True]
    backend = world.backend(may_act=lambda: leads[0])
    world.api.fail("PATCH", lambda: leads.clear() or leads.append(False))
    world.api.refuse("PATCH", 500, 99)
    with pytest.raises(ApplyError, match="another controller leads"):
        backend.apply(stages((LARGE, 1, 1), (SMALL, 1, 1)))
    assert sum(method == "PATCH" for method, *_ in world.api.requests) == 1


def test_a_change_that_needs_more_cores_waits_until_others_have_given_them_back(world):
    left = iter([2.0, 2.0])
    backend = world.backend(limit=lambda: next(left, 6.0))
    backend.apply(more := stages((SMALL, 2, 1), (SMALL, 1, 1)))
    assert next(left, None) is None and backend.configuration == more
    assert backend.cores_in_use() == 3


def test_a_change_fails_while_others_hold_the_cores_but_one_that_gives_some_back_does_not(world):
    backend = world.backend(limit=lambda: 1.0, settings=settings(apply_seconds=1))
    with pytest.raises(
        ApplyError, match=r"others on the device still hold its cores .* 3 cores are needed, .* leave 1"
    ):
        backend.apply(stages((SMALL, 2, 1), (SMALL, 1, 1)))
    assert backend.configuration == INITIAL
    world.backend().apply(stages((SMALL, 2, 1), (SMALL, 1, 1)))
    world.backend(limit=lambda: 1.0).apply(INITIAL)


def test_a_preview_changes_nothing(world):
    changes = world.backend(PreviewBackend).preview(stages((LARGE, 1, 1), (SMALL, 2, 1)))
    named = {(after["kind"], after["metadata"]["name"]) for _, after in changes}
    assert named == {
        ("Deployment", "tiny-first-large"),
        ("Deployment", "tiny-first-small"),
        ("Deployment", "tiny-second-small"),
        ("ConfigMap", "tiny-first-stage"),
    }
    assert world.workloads() == {"tiny-first-small", "tiny-second-small"} and world.state("first")["variant"] == "small"


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_metrics_are_observed(world):
    observation = world.backend().observe()
    assert observation.history.shape == (120,) and observation.incoming_load == pytest.approx(5)
    assert observation.available_cores == 6 and observation.configuration == INITIAL


@pytest.mark.parametrize("state", ["empty", "stale", "nan", "late", "failing", "absent"])
def test_without_metrics_the_last_good_configuration_goes_on(world, state):
    wanted = stages((SMALL, 1, 2), (SMALL, 1, 1))
    steps = run(world.backend(), world.pipeline, FixedPolicy(wanted), lambda history: 5.0, Weights(), 3)
    world.prometheus.state = state
    if state == "absent":
        world.prometheus.close()
    with within():
        step = next(steps)
    assert "no decision" in step.refused and step.configuration == INITIAL
    assert np.isnan(step.predicted_load)
    if state == "absent":
        world.prometheus.reopen()
    world.prometheus.state = "good"
    assert next(steps).refused == "" and world.state("first")["batch_size"] == "2"


def test_a_run_goes_on_while_prometheus_is_away_and_decides_again_once_it_is_back(world):
    policy = FixedPolicy(stages((SMALL, 1, 2), (SMALL, 1, 1)))
    steps = run(world.backend(), world.pipeline, policy, lambda history: 5.0, Weights(), 4)
    first = next(steps)
    assert first.refused == "" and np.isfinite(first.score.reward).all()
    applied, policy.configuration = policy.configuration, INITIAL
    world.prometheus.close()
    for _ in range(2):
        step = next(steps)
        assert f"no decision: Prometheus server at {world.prometheus.url} cannot be read" in step.refused
        assert "check that it runs" in step.refused
        assert step.configuration == applied and np.isnan(step.score.reward).all()
        assert world.state("first")["batch_size"] == "2"
    world.prometheus.reopen()
    last = next(steps)
    assert last.refused == "" and last.configuration == INITIAL and np.isfinite(last.score.reward).all()
    assert world.state("first")["batch_size"] == "1"


def test_an_action_above_the_capacity_is_refused_before_any_call(world):
    backend = world.backend()
    world.api.requests.clear()
    wanted = stages((LARGE, 3, 1), (LARGE, 3, 1))
    step = next(run(backend, world.pipeline, FixedPolicy(wanted), lambda history: 5.0, Weights(), 1))
    assert "12 cores, the device has 6" in step.refused
    assert {method for method, *_ in world.api.requests} <= {"GET"}
