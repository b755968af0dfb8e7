"""Faults in the middle of a change: gateways always have a replica for every stage, and the next leader completes it.

The time from the end of the fault until the wanted configuration runs is recorded as a property of each test, and
nothing depends on it.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from deadlines import PATIENCE, eventually
from running_controllers import Running, controller
from small_pipelines import stages
from tiny_cluster import INITIAL, LARGE, SMALL, FixedPolicy, lease_spec, settings

from opd.cluster.discovery import Discovery
from opd.control.loop import ApplyError

WANTED = stages((LARGE, 1, 2), (SMALL, 2, 1))
PHASES = {
    "the new variant starts": "PATCH .*first-large/scale",
    "the gateways are told": "PATCH .*configmaps/tiny-first-stage",
    "the gateways are asked": "GET .*proxy/stages/first",
    "the old variant ends": "PATCH .*first-small/scale",
}


@pytest.fixture(autouse=True)
def gateway(world):
    """What a gateway knows of replicas meanwhile; a stage without any fails the test at its end."""
    found = []
    discovery = Discovery(world.cluster, "tiny", ["first", "second"], 8081, "g", found.append)
    try:
        eventually(lambda: {task for state in found for task, (_, replicas) in state.items() if replicas} >= {"second"})
        known = len(found)
        yield found
        assert all(replicas for state in found[known:] for _, replicas in state.values())
    finally:
        discovery.close()
        world.api.end_watches()


@pytest.fixture
def recovered(world, record_property):
    """Brings the pipeline to the wanted configuration as the next controller does, and records how long that takes."""

    def recover():
        begin = time.monotonic()
        backend = world.backend()
        backend.apply(backend.configuration)
        backend.apply(WANTED)
        record_property("recovery_seconds", round(time.monotonic() - begin, 2))
        eventually(lambda: (world.pods("first"), world.pods("second")) == ({"large": 1}, {"small": 2}))
        assert world.workloads() == {"tiny-first-large", "tiny-second-small"}
        assert world.state("first") == {"variant": "large", "batch_size": "2"}

    return recover


class Killed(BaseException):
    """The process of a controller is gone: nothing is caught, and nothing cleared away."""


def test_a_leader_is_killed_after_each_of_its_writes(world, recovered):
    for writes in count(1):
        before = len(world.api.requests)

        def may_act(before=before, writes=writes):
            if sum(method == "PATCH" for method, *_ in world.api.requests[before:]) >= writes:
                raise Killed
            return True

        try:
            world.backend(may_act=may_act).apply(WANTED)
        except Killed:
            recovered()
            world.backend().apply(INITIAL)
        else:
            break
    assert writes > 3  # it was killed after each


@pytest.mark.parametrize("phase", PHASES)
def test_the_api_server_is_away_from_each_phase_on_until_after_the_deadline(world, recovered, phase):
    world.api.fail(PHASES[phase], lambda: world.api.drop(".", 10**6))
    with pytest.raises(ApplyError, match="no answer|connection"):
        world.backend(settings=settings(apply_seconds=1)).apply(WANTED)
    world.api.faults.clear()
    recovered()


def test_every_answer_is_late(world, recovered):
    world.api.fail(".", lambda: time.sleep(0.1), 10**6)
    recovered()


@pytest.mark.parametrize("phase", ["the new variant starts", "the gateways are told", "the old variant ends"])
def test_a_write_is_made_after_its_answer_was_given_up(world, recovered, phase):
    world.api.fail(PHASES[phase], lambda: time.sleep(1.5))
    recovered()


def test_a_new_replica_is_evicted(world, recovered):
    world.kubelet.behave("tiny-first-large", start_seconds=0.5)
    with ThreadPoolExecutor(1) as thread:
        changing = thread.submit(recovered)
        victim = eventually(lambda: world.api.all("pods", opd_io__variant="large"))[0]["metadata"]["name"]
        world.kubelet.evicted.add(victim)
        changing.result(2 * PATIENCE)
    assert world.api.find("pods", victim)["status"]["reason"] == "Evicted"
    assert world.pods("first") == {"large": 1}


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "quota exceeded: cpu"])
def test_replicas_that_cannot_start_can_later(world, recovered, reason):
    world.kubelet.behave("tiny-first-large", broken=reason)
    with pytest.raises(ApplyError, match=f"{reason}.*last good configuration is restored"):
        world.backend().apply(WANTED)
    world.kubelet.behave("tiny-first-large")
    recovered()


def test_a_new_controller_replaces_one_in_the_middle_of_a_change(world, record_property):
    world.kubelet.behave("tiny-first-large", start_seconds=0.5)
    with Running(controller(world, FixedPolicy(WANTED))) as first:
        eventually(lambda: "tiny-first-large" in world.workloads())
        with Running(controller(world, FixedPolicy(WANTED))) as second:
            eventually(lambda: second.state == "standing by")
            begin = time.monotonic()
            first.stop()
            eventually(lambda: world.pods("first") == {"large": 1} and second.state == "leading")
            record_property("recovery_seconds", round(time.monotonic() - begin, 2))
            assert lease_spec(world.api)["holderIdentity"] == second.holder
            eventually(lambda: world.workloads() == {"tiny-first-large", "tiny-second-small"})
