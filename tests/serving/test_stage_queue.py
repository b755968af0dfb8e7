"""The stage queue on a virtual clock: known answers, then request for request against the simulator, then faults."""

import asyncio

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlserver.grpc.dataplane_pb2 import ModelInferResponse
from prometheus_client import REGISTRY
from virtual_time import run

from opd.measurement import SimulationParameters
from opd.pipeline import (
    Pipeline,
    ServiceLevel,
    StageConfiguration,
    Task,
    Variant,
    as_array,
)
from opd.serving.contents import PAYLOAD, payload_request, payloads_of
from opd.serving.protocol import MalformedRequestError, QueueFullError, ReplicaFailedError, ServingError, TooOldError
from opd.serving.replicas import ReplicaEndpoint
from opd.serving.settings import StageSettings
from opd.serving.stage_queue import StageQueue
from opd.serving.tensors import answer_of
from opd.simulator.simulator import Simulator

SERVICE = {1: 0.1, 2: 0.15, 4: 0.25}


def service_time(size):
    return float(np.interp(size, list(SERVICE), list(SERVICE.values())))


def failure(code, details="no details"):
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


class SlowServer:
    """Answers after the profile's time; can be down, refuse a payload, or break on one."""

    def __init__(self, address):
        self.address, self.up, self.hangs, self.garbage = address, True, False, False
        self.batches, self.closed = [], False

    async def infer(self, request, age, timeout):
        payloads = payloads_of(request)
        self.batches.append((asyncio.get_running_loop().time(), list(payloads)))
        if self.hangs:
            await asyncio.sleep(timeout)
            raise failure(grpc.StatusCode.DEADLINE_EXCEEDED)
        await asyncio.sleep(service_time(len(payloads)))
        if not self.up or b"deadly" in payloads:
            raise failure(grpc.StatusCode.UNAVAILABLE, f"{self.address} is gone")
        if b"bad" in payloads:
            raise failure(grpc.StatusCode.INVALID_ARGUMENT, "element 0 is no image")
        if b"bug" in payloads:
            raise failure(grpc.StatusCode.INTERNAL, "index out of range")
        if self.garbage or b"short" in payloads:
            return ModelInferResponse()
        return answer_of({PAYLOAD: [payload.upper() for payload in payloads]}, raw=False)

    async def ready(self, timeout):
        return self.up and not self.hangs

    async def close(self):
        self.closed = True


class Stage:
    """A queue and the servers it has connected to."""

    def __init__(self, replicas=1, batch_size=1, **queue_settings):
        self.servers = {}
        self.queue = StageQueue("p", "t", StageSettings(**queue_settings), self._connect)
        self.configure(batch_size, *[f"r{number}" for number in range(replicas)])

    def _connect(self, address):
        return self.servers.setdefault(address, SlowServer(address))

    def configure(self, batch_size, *names, variant="v"):
        self.queue.configure(batch_size, [ReplicaEndpoint(name, variant, name) for name in names])

    async def submit(self, payload=b"a", delay=0.0, age=0.0):
        """When the request ended, and with what."""
        await asyncio.sleep(delay)
        try:
            (answer,) = payloads_of(await self.queue.submit(payload_request([payload]), age))
        except ServingError as error:
            answer = error
        return asyncio.get_running_loop().time(), answer


def serve(requests, scenario=None, **settings_of_stage):
    """Submit requests (keyword arguments of ``submit``) together, while ``scenario(stage)`` runs."""

    async def main():
        stage = Stage(**settings_of_stage)
        extra = [scenario(stage)] if scenario else []
        results = await asyncio.gather(*(stage.submit(**request) for request in requests), *extra)
        return stage, results[: len(requests)]

    return run(main())


# --- known answers ---------------------------------------------------------------------------------------------------


def test_an_idle_replica_takes_a_request_at_once():
    _, [(ended, answer)] = serve([dict(payload=b"hello")])
    assert (ended, answer) == (pytest.approx(0.1), b"HELLO")


def test_requests_wait_in_order_for_the_only_replica():
    _, results = serve([dict(payload=p) for p in (b"a", b"b", b"c")])
    assert [answer for _, answer in results] == [b"A", b"B", b"C"]
    assert [ended for ended, _ in results] == pytest.approx([0.1, 0.2, 0.3])


def test_a_batch_goes_when_it_is_full():
    stage, results = serve([dict(), dict(delay=0.05)], batch_size=2)
    assert stage.servers["r0"].batches == [(0.05, [b"a", b"a"])]
    assert [ended for ended, _ in results] == pytest.approx([0.2, 0.2])


def counted_batches(size):
    return REGISTRY.get_sample_value("opd_stage_batches_total", dict(pipeline="p", task="t", variant="v", size=size))


def test_calls_are_counted_by_variant_and_size():
    serve([dict()])
    before = counted_batches("1"), counted_batches("2") or 0.0
    serve([dict(), dict(), dict(delay=0.05)], batch_size=2)
    assert (counted_batches("1"), counted_batches("2")) == (before[0] + 1, before[1] + 1)


def test_a_partial_batch_goes_when_its_oldest_has_waited_the_timeout():
    stage, results = serve([dict(), dict(delay=0.1)], batch_size=4)
    assert [ended for ended, _ in results] == pytest.approx([0.4, 0.4])
    assert stage.servers["r0"].batches == [(0.25, [b"a", b"a"])]


def test_the_replica_idle_longest_is_next():
    stage, _ = serve([dict(delay=0.5 * number) for number in range(4)], replicas=2)
    assert [len(stage.servers[name].batches) for name in ("r0", "r1")] == [2, 2]


def test_the_batch_size_changes_live():
    async def grow(stage):
        await asyncio.sleep(0.05)
        stage.configure(4, "r0")

    stage, _ = serve([dict() for _ in range(5)], grow)
    assert [len(batch) for _, batch in stage.servers["r0"].batches] == [1, 4]


def test_a_full_queue_refuses_and_names_the_limit():
    _, results = serve([dict() for _ in range(4)], max_queue=2)
    assert isinstance(results[3][1], QueueFullError)
    assert "2 requests wait, the limit is 2" in str(results[3][1])
    assert [answer for _, answer in results[:3]] == [b"A"] * 3


def test_a_request_is_dropped_at_its_age_limit_without_any_replica():
    _, results = serve([dict(), dict()], replicas=0, drop_after=2.0)
    assert all(isinstance(answer, TooOldError) and ended == pytest.approx(2.0) for ended, answer in results)


def test_no_rounding_keeps_a_request_at_its_age_limit():
    """The virtual clock stands still at the end of a timer: what is too young then would be so forever."""
    joined, limit = 4.238, 0.3
    assert (joined + limit) - joined < limit
    [(ended, answer)] = serve([dict(delay=joined)], replicas=0, drop_after=limit)[1]
    assert isinstance(answer, TooOldError) and ended == joined + limit


def test_the_age_of_an_arriving_request_counts():
    _, results = serve([dict(age=1.5)], replicas=0, drop_after=2.0)
    assert results[0][0] == pytest.approx(0.5)


def test_requests_are_dropped_at_the_age_limit_wherever_they_wait():
    _, results = serve([dict(age=0.0), dict(age=0.9), dict(age=0.4)], replicas=0, drop_after=1.0)
    assert all(isinstance(answer, TooOldError) for _, answer in results)
    assert [ended for ended, _ in results] == pytest.approx([1.0, 0.1, 0.6])


def test_a_request_behind_younger_ones_is_not_served_beyond_its_age_limit():
    async def arrive(stage):
        await asyncio.sleep(0.5)
        stage.configure(1, "r0")

    stage, results = serve([dict(payload=b"a"), dict(payload=b"b", age=0.9)], arrive, replicas=0, drop_after=1.0)
    assert results[0] == (pytest.approx(0.6), b"A")
    assert isinstance(results[1][1], TooOldError) and results[1][0] == pytest.approx(0.1)
    assert stage.servers["r0"].batches == [(0.5, [b"a"])]


def test_a_request_that_a_replica_failed_with_is_dropped_at_its_age_limit():
    async def hang(stage):
        stage.servers["r0"].hangs = True
        await asyncio.sleep(0.1)  # the other request is in the replica's hands
        await stage.submit(age=1.0)  # at its limit: with it, what the queue knew of ages has gone
        await asyncio.sleep(0.9)
        stage.servers["r0"].hangs = False

    _, results = serve([dict(age=0.4)], hang, drop_after=1.0, call_timeout=0.3)
    assert isinstance(results[0][1], TooOldError) and results[0][0] == pytest.approx(0.6)


# --- against the simulator -------------------------------------------------------------------------------------------


def stage_pipeline():
    variant = Variant("v", 0.5, 1, SERVICE, 1.0)
    return Pipeline(
        "p", (Task("t", (variant,)),), capacity=4, max_replicas=4, max_batch_size=4, service_level=ServiceLevel(1.0)
    )


# Multiples of irrational numbers of seconds never tie with a timer, the end of a service or one another.
GAP, AGE = np.pi * 1e-4, np.sqrt(2) * 1e-3


@settings(deadline=None, max_examples=120)
@given(
    requests=st.lists(st.tuples(st.integers(1, 1300), st.just(0) | st.integers(1, 400)), min_size=1, max_size=60),
    replicas=st.integers(1, 3),
    batch_size=st.sampled_from([1, 2, 4]),
    drop_after=st.sampled_from([0.3, 0.6, 10.0]),
)
def test_the_queue_serves_like_the_simulator(requests, replicas, batch_size, drop_after):
    gaps, ages = np.array(requests).T * [[GAP], [AGE]]
    times = np.cumsum(gaps)
    results = serve(
        [dict(delay=time, age=age) for time, age in zip(times, ages, strict=True)],
        replicas=replicas,
        batch_size=batch_size,
        drop_after=drop_after,
    )[1]
    served = np.array([answer == b"A" for _, answer in results])
    latencies = np.sort((np.array([ended for ended, _ in results]) - times + ages)[served])
    parameters = SimulationParameters(interval=60, drop_after=drop_after, service_noise=0.0)
    simulator = Simulator(stage_pipeline(), parameters, record_latencies=True)
    configuration = (StageConfiguration(0, replicas, batch_size),)
    simulator.reset(configuration)
    put(simulator, times, ages)
    interval = simulator.step_arrivals(as_array(configuration), np.empty(0))
    assert interval.completed[0] == len(latencies) and interval.dropped[0] == len(requests) - len(latencies)
    assert np.sort(interval.latencies[0, : len(latencies)]) == pytest.approx(latencies, abs=1e-6)


def put(simulator, times, ages):
    """Let requests join the first queue at ``times`` in s, already ``ages`` s old."""
    state = simulator._state
    state.queue_length[0, 0] = len(times)
    state.queue_time[0, 0, : len(times)], state.queue_birth[0, 0, : len(times)] = times, times - ages


# --- replicas come and go --------------------------------------------------------------------------------------------


def test_a_retired_replica_finishes_its_batch_and_is_removed():
    async def switch(stage):
        await asyncio.sleep(0.05)
        stage.configure(1, "r1")
        assert [replica["retired"] for replica in stage.queue.status()["replicas"]] == [True, False]

    stage, results = serve([dict(), dict()], switch)
    assert [ended for ended, _ in results] == pytest.approx([0.1, 0.15])
    assert stage.servers["r0"].closed and not stage.servers["r1"].closed
    assert [replica["name"] for replica in stage.queue.status()["replicas"]] == ["r1"]


def test_the_requests_of_a_dead_replica_are_answered_by_another():
    async def die(stage):
        stage.servers["r0"].up = False

    stage, results = serve([dict(payload=b"a"), dict(payload=b"b")], die, replicas=2, batch_size=2)
    assert [answer for _, answer in results] == [b"A", b"B"]
    assert [replica["failed"] for replica in stage.queue.status()["replicas"]] == [True, False]


def test_a_hanging_replica_gets_no_requests_after_the_call_timeout():
    async def hang(stage):
        stage.servers["r0"].hangs = True

    _, results = serve([dict()], hang, replicas=2, call_timeout=1.0)
    assert results[0] == (pytest.approx(1.1), b"A")


def test_a_replica_that_answers_again_gets_requests_again():
    async def restart(stage):
        stage.servers["r0"].up = False
        await asyncio.sleep(1.2)
        stage.servers["r0"].up = True

    _, results = serve([dict()], restart)
    assert results[0][1] == b"A" and 1.2 < results[0][0] < 2.2


def test_a_replica_that_is_retired_during_a_probe_gets_no_requests():
    async def retire(stage):
        server = stage.servers["r0"]
        server.up = False
        await asyncio.sleep(0.2)
        server.up, server.ready = True, slow_to_say_so
        await asyncio.sleep(0.5)  # it is being asked
        stage.configure(1, "r1")

    async def slow_to_say_so(timeout):
        await asyncio.sleep(0.4)
        return True

    stage, results = serve([dict(), dict(delay=2.0), dict(delay=2.0)], retire)
    assert [answer for _, answer in results] == [b"A"] * 3
    assert [len(stage.servers[name].batches) for name in ("r0", "r1")] == [1, 3]


def test_a_request_that_killed_two_replicas_fails_alone():
    stage, results = serve([dict(payload=p) for p in (b"a", b"deadly", b"b")], replicas=3, batch_size=3)
    assert [answer for _, answer in (results[0], results[2])] == [b"A", b"B"]
    assert isinstance(results[1][1], ReplicaFailedError)
    assert sum(len(server.batches) for server in stage.servers.values()) == 4  # once together, once each alone


@pytest.mark.parametrize(("payload", "error"), [(b"bad", MalformedRequestError), (b"bug", ServingError)])
def test_a_bad_request_fails_alone(payload, error):
    stage, results = serve([dict(payload=p) for p in (b"a", payload, b"b")], batch_size=4)
    assert [answer for _, answer in (results[0], results[2])] == [b"A", b"B"]
    assert type(results[1][1]) is error
    assert not stage.queue.status()["replicas"][0]["failed"]


def test_an_answer_without_tensors_is_an_error():
    _, results = serve([dict(payload=b"short")])
    assert "model 't' gave a malformed answer: the message has no tensor" in str(results[0][1])


def test_a_replica_that_answers_garbage_costs_no_request():
    async def spoil(stage):
        stage.servers["r0"].garbage = True

    stage, results = serve([dict(payload=b"a"), dict(payload=b"b"), dict(delay=0.3)], spoil, replicas=2, batch_size=2)
    assert [answer for _, answer in results] == [b"A", b"B", b"A"]
    assert len(stage.servers["r0"].batches) == 1
    assert not any(replica["failed"] for replica in stage.queue.status()["replicas"])  # it need not be replaced


def test_a_cancelled_request_affects_no_other():
    async def main():
        stage = Stage(batch_size=3)
        tasks = [asyncio.create_task(stage.submit()) for _ in range(2)]
        await asyncio.sleep(0.1)
        tasks[0].cancel()
        assert (await tasks[1])[1] == b"A"
        assert stage.servers["r0"].batches == [(0.25, [b"a"])]

    run(main())


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.sampled_from([b"a", b"bad", b"bug"])), min_size=1, max_size=40),
    st.lists(st.tuples(st.floats(0.01, 1), st.integers(0, 3), st.sampled_from([1, 2, 4])), max_size=8),
)
def test_every_request_is_answered_once_under_reconfiguration(requests, changes):
    async def reconfigure(stage):
        for number, (pause, replicas, batch_size) in enumerate(changes):
            await asyncio.sleep(pause)
            stage.configure(batch_size, *[f"change{number}-{replica}" for replica in range(replicas)])
        stage.configure(1, "last")

    stage, results = serve([dict(payload=payload, delay=delay) for delay, payload in requests], reconfigure)
    for (_, payload), (_, answer) in zip(requests, results, strict=True):
        assert isinstance(answer, ServingError) if payload != b"a" else answer == b"A"
    assert [replica["name"] for replica in stage.queue.status()["replicas"]] == ["last"]
    assert stage.queue.status()["waiting"] == 0


@pytest.mark.parametrize(
    "wrong", [dict(batch_size=0), dict(max_queue=0), dict(drop_after=-1), dict(call_timeout=1e999)]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StageSettings(**wrong)
