"""One emulated replica: its times, answers and failures, over gRPC in this process."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from small_pipelines import ocr_pipeline

from opd.host.waiting import wait_until
from opd.serving.batching import join, split
from opd.serving.client import Client
from opd.serving.contents import TensorError, check_tensors, payload_request, payloads_of
from opd.serving.emulation.names import emulated_pipeline, is_emulated, original_name
from opd.serving.emulation.replica import VERSION, EmulatedReplica, stated_seconds
from opd.serving.emulation.requests import emulated_samples
from opd.serving.emulation.server import EmulatedReplicas, precise_event_loop
from opd.serving.emulation.settings import EmulationSettings, ReplicaSettings, replica_settings
from opd.serving.processes import hold_port
from opd.serving.samples import read_samples
from opd.serving.tensors import message_of


class Owner:
    """Holds a port."""


def settings_of(**changes) -> ReplicaSettings:
    owner = Owner()
    known = dict(pipeline="test-emulated", task="detect", variant="small", grpc_port=hold_port(owner))
    return ReplicaSettings(**{**known, "latency": {1: 0.02, 2: 0.03, 4: 0.06}, **changes})


def in_loop(scenario, **changes):
    """Run a scenario with a replica and a client of it, in the event loop of the emulation."""

    @asynccontextmanager
    async def opened():
        settings = settings_of(**changes)
        replica = EmulatedReplica(settings, "127.0.0.1")
        await replica.start()
        client = Client(f"127.0.0.1:{settings.grpc_port}", "detect")
        try:
            yield replica, client
        finally:
            await client.close()
            await replica.stop(None)

    async def run():
        async with opened() as (replica, client):
            return await scenario(replica, client)

    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        return runner.run(run())


# Known answers


def test_the_mean_time_is_the_profile_interpolated_and_proportional_beyond_it():
    settings = settings_of()
    assert [settings.mean_seconds(rows) for rows in (1, 2, 3, 4, 8)] == pytest.approx([0.02, 0.03, 0.045, 0.06, 0.12])


def test_noise_has_mean_one_and_its_sigma():
    async def scenario(replica, client):
        return np.array([replica._draw(1) for _ in range(20_000)]) / 0.02

    factors = in_loop(scenario, noise=0.3, seed=5)
    assert factors.mean() == pytest.approx(1.0, abs=0.01)
    assert np.log(factors).std() == pytest.approx(0.3, abs=0.01)


def test_a_replica_takes_the_profile_of_a_variant():
    task = ocr_pipeline().tasks[1]
    settings = replica_settings("ocr-emulated", task, task.variants[2], 5000, 0.1)
    assert settings.latency == {1: 0.25, 2: 0.4} and settings.startup_seconds == 4.0
    assert (settings.task, settings.variant, settings.noise) == ("recognition", "large", 0.1)


def test_settings_survive_the_document_that_the_process_reads():
    settings = EmulationSettings(name="emulated", replicas={"a": settings_of(noise=0.1)})
    assert EmulationSettings.model_validate_json(settings.document) == settings


# Answers


def test_an_answer_is_what_was_sent_and_states_its_time():
    async def scenario(replica, client):
        begin = time.perf_counter()
        answer = await client.infer(payload_request([b"one", b"two"]), 0.0, 10.0)
        return answer, time.perf_counter() - begin

    answer, called = in_loop(scenario)
    assert payloads_of(answer) == [b"one", b"two"] and answer.model_version == VERSION == "emulated"
    predicted, late = stated_seconds(answer)
    assert predicted == pytest.approx(0.03) and called >= predicted + late > 0.0 and late >= 0.0


@pytest.mark.parametrize("raw", [True, False])
def test_tensors_of_every_kind_can_be_joined_and_split_again(raw):
    tensors = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "label": np.array([b"a", b"b"], dtype=object)}
    requests = [message_of(tensors, raw=raw), message_of({name: each[:1] for name, each in tensors.items()}, raw=raw)]

    async def scenario(replica, client):
        return await client.infer(join(requests), 0.0, 10.0)

    parts = split(in_loop(scenario), [2, 1], "detect")
    assert [part.outputs[0].shape[0] for part in parts] == [2, 1]
    assert all(part.outputs[1].name == "label" for part in parts)


def test_batches_are_served_one_after_the_other():
    async def scenario(replica, client):
        begin = time.perf_counter()
        calls = (client.infer(payload_request([text]), 0.0, 10.0) for text in (b"a", b"b", b"c"))
        answers = await asyncio.gather(*calls)
        return [payloads_of(answer) for answer in answers], time.perf_counter() - begin

    answers, seconds = in_loop(scenario)
    assert answers == [[b"a"], [b"b"], [b"c"]] and seconds >= 3 * 0.02


def test_it_is_ready_after_its_start_up_time_and_no_sooner():
    async def scenario(replica, client):
        begin = time.perf_counter()
        while not await client.ready(5.0):
            try:
                await client.infer(payload_request([b"early"]), 0.0, 5.0)
            except grpc.aio.AioRpcError as refused:
                if refused.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            else:
                break  # it became ready between the two calls
            await asyncio.sleep(0.02)
        return time.perf_counter() - begin

    assert in_loop(scenario, startup_seconds=0.5) >= 0.4  # the replica was created a little before


def test_wrong_requests_are_refused_by_name():
    async def scenario(replica, client):
        codes = []
        for model, request in (("detect", payload_request([])), ("other", payload_request([b"x"]))):
            client.model = model
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.infer(request, 0.0, 5.0)
            codes.append(refused.value.code())
        return codes

    assert in_loop(scenario) == [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND]


# Failures


def test_a_replica_that_hangs_answers_neither_requests_nor_probes():
    async def scenario(replica, client):
        replica.failure = "hang"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await client.infer(payload_request([b"x"]), 0.0, 0.3)
        hanging = error.value.code(), await client.ready(0.3), replica.ready
        replica.failure = "none"
        return hanging, await client.ready(5.0)

    assert in_loop(scenario) == ((grpc.StatusCode.DEADLINE_EXCEEDED, False, False), True)


def test_garbage_is_malformed():
    async def scenario(replica, client):
        replica.failure = "garbage"
        return await client.infer(payload_request([b"x"]), 0.0, 5.0)

    with pytest.raises(TensorError):
        check_tensors(in_loop(scenario))


def test_a_crash_ends_running_requests_and_frees_the_name():
    async def scenario():
        replicas, settings = EmulatedReplicas("127.0.0.1"), settings_of(latency={1: 30.0})
        await replicas.open("a", settings)
        with pytest.raises(ValueError, match="there is a replica 'a' already"):
            await replicas.open("a", settings)
        client = Client(f"127.0.0.1:{settings.grpc_port}", "detect")
        running = asyncio.ensure_future(client.infer(payload_request([b"x"]), 0.0, 60.0))
        while not replicas._replicas["a"]._idle_at:
            await asyncio.sleep(0.01)
        replicas.fail("a", "crash")
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await running
        while replicas.states():
            await asyncio.sleep(0.01)
        await client.close()
        return error.value.code()

    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        assert runner.run(scenario()) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


# The process of emulated replicas over HTTP


def test_errors_of_the_process_are_told_in_json():
    """A wrong document is 400, what does not fit what runs is 409, an unknown name 404."""

    async def ask():
        replicas, wanted = EmulatedReplicas("127.0.0.1"), settings_of().model_dump()
        async with TestClient(TestServer(replicas.application())) as client:
            found = []
            for method, path, body in (
                ("PUT", "/replicas/r", wanted),
                ("PUT", "/replicas/r", wanted),
                ("PUT", "/replicas/s", {**wanted, "latency": "fast"}),
                ("PUT", "/replicas/t/failure", {"kind": "hang"}),
                ("PUT", "/replicas/r/failure", {"kind": "luck"}),
            ):
                answer = await client.request(method, path, json=body)
                found.append((answer.status, (await answer.json()).get("error", "")))
        await replicas.close_all()
        return found

    with asyncio.Runner(loop_factory=precise_event_loop) as runner:
        found = runner.run(ask())
    assert [status for status, _ in found] == [200, 409, 400, 404, 400]
    words = ("", "there is a replica 'r' already", "latency", "there is no replica 't'; there are r", "kind")
    assert all(each in error for each, (_, error) in zip(words, found, strict=True))


# Names


def test_an_emulated_pipeline_says_so_and_keeps_everything_else():
    known = ocr_pipeline()
    served = emulated_pipeline(known)
    assert served.name == "ocr-emulated" and is_emulated(served.name) and original_name(served.name) == known.name
    assert [task.variants for task in served.tasks] == [task.variants for task in known.tasks]
    assert emulated_pipeline(served) is served and not is_emulated(known.name)


def test_the_samples_are_requests(tmp_path):
    samples = read_samples(emulated_samples(tmp_path / "new"))
    assert len({payloads_of(each)[0] for each in samples}) == 16


def test_timers_wake_up_in_fractions_of_a_millisecond():
    """Sleeps of 0.3 ms: with an event loop that counts in milliseconds, none could take less than 1 ms."""

    async def sleeps():
        loop, found = asyncio.get_running_loop(), []
        for _ in range(50):
            deadline = loop.time() + 0.0003
            woken = loop.create_future()
            loop.call_at(deadline, woken.set_result, None)
            await woken
            found.append(loop.time() - deadline)
        return found

    def shortest():
        with asyncio.Runner(loop_factory=precise_event_loop) as runner:
            return min(runner.run(sleeps()))

    assert wait_until(lambda: shortest() < 0.0005, 60.0)  # on a busy machine most take longer, never all of them
