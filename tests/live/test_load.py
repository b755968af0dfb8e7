from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pandas as pd
import pytest
from deadlines import PATIENCE, eventually
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc import dataplane_pb2_grpc as services

from opd.live import load
from opd.live.load import NO_ANSWER, LoadError, arrival_times, offer, summary

CODES = {
    b"full": grpc.StatusCode.RESOURCE_EXHAUSTED,
    b"old": grpc.StatusCode.DEADLINE_EXCEEDED,
    b"wrong": grpc.StatusCode.INVALID_ARGUMENT,
    b"gone": grpc.StatusCode.UNAVAILABLE,
}


class Service(services.GRPCInferenceServiceServicer):
    """Answers a payload with itself in capitals, or does what the payload says."""

    def __init__(self) -> None:
        self.asked = 0
        self.stalled_until = 0.0

    async def ModelReady(self, request, context):  # noqa: N802
        return messages.ModelReadyResponse(ready=request.name == "pipeline")

    async def ModelInfer(self, request, context):  # noqa: N802
        self.asked += 1
        (payload,) = request.inputs[0].contents.bytes_contents
        await asyncio.sleep(max(self.stalled_until - time.monotonic(), 0.0))
        if payload == b"hang":
            await asyncio.sleep(60.0)
        if payload == b"empty":
            return messages.ModelInferResponse()
        if payload in CODES:
            await context.abort(CODES[payload], f"refused: {payload.decode()}")
        answer = messages.ModelInferResponse.InferOutputTensor(name="payload", datatype="BYTES", shape=[1])
        answer.contents.bytes_contents.append(payload.upper())
        return messages.ModelInferResponse(outputs=[answer])


@contextlib.asynccontextmanager
async def serving(service):
    server = grpc.aio.server()
    services.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def offered(counts, payloads, service=None, **options):
    async def run():
        async with serving(service or Service()) as address:
            return await offer(address, "pipeline", np.array(counts), payloads, 0, **options)

    return asyncio.run(asyncio.wait_for(run(), PATIENCE))


# Arrivals


def test_every_second_gets_its_count_of_arrivals_in_ascending_order():
    counts = np.array([3, 0, 50, 1])
    times = arrival_times(counts, 7)
    assert (np.diff(times) >= 0).all()
    np.testing.assert_array_equal(np.bincount(times.astype(int), minlength=4), counts)


def test_arrivals_are_uniform_within_the_second_and_follow_the_seed():
    times = arrival_times(np.array([20_000]), 3)
    np.testing.assert_allclose(np.quantile(times, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
    np.testing.assert_array_equal(times, arrival_times(np.array([20_000]), 3))
    assert (times != arrival_times(np.array([20_000]), 4)).any()


def test_no_requests_means_no_arrivals():
    assert arrival_times(np.array([0, 0]), 0).shape == (0,)


@pytest.mark.parametrize("wrong", [-1, 2.5, np.nan, np.inf])
def test_a_count_that_is_no_number_of_requests_is_named(wrong):
    with pytest.raises(ValueError, match=f"count {wrong} of second 1"):
        arrival_times(np.array([4, wrong]), 0)


@pytest.mark.parametrize("text", ["3\n0\n12\n", "requests\n3\n0\n12\n"])
def test_counts_are_read_with_and_without_a_heading(tmp_path, text):
    path = tmp_path / "counts.csv"
    path.write_text(text)
    np.testing.assert_array_equal(load.read_counts(path), [3, 0, 12])


# Summary


def test_the_summary_of_known_records():
    rows = [
        # scheduled, sent, finished, outcome, code
        (0.0, 0.0, 1.0, "completed", "OK"),
        (1.0, 1.5, 4.0, "completed", "OK"),
        (2.0, 2.0, 2.1, "rejected", "RESOURCE_EXHAUSTED"),
        (3.0, 3.0, 3.1, "dropped", "DEADLINE_EXCEEDED"),
        (4.0, 4.0, 4.1, "failed", "INTERNAL"),
        (4.0, 4.0, 9.0, "failed", NO_ANSWER),
    ]
    records = pd.DataFrame(rows, columns=["scheduled", "sent", "finished", "outcome", "code"])
    records.attrs = {"started": 1.7e9, "seconds": 4.0}
    counted = summary(records)
    ends = ("offered", "completed", "rejected", "dropped", "failed", "lost")
    assert [counted[name] for name in ends] == [6, 2, 1, 1, 2, 1]
    assert (counted["duration"], counted["offered_rate"], counted["completed_rate"]) == (4.0, 1.5, 0.5)
    # From the scheduled time: 1 s and 3 s, although the second was sent half a second late.
    assert counted["latency_mean"] == 2.0 and counted["latency_p50"] == 2.0
    assert counted["latency_p95"] == pytest.approx(2.9) and counted["latency_p99"] == pytest.approx(2.98)
    assert counted["lateness_max"] == 0.5 and counted["lateness_p99"] == pytest.approx(0.475)
    json.dumps(counted)


def test_the_summary_of_nothing_has_no_latency():
    records = offered([0], [b"a"])
    counted = summary(records)
    assert counted["offered"] == 0 and counted["latency_mean"] is None and counted["lateness_max"] is None
    assert counted["duration"] == 1.0


# Sending


def test_every_request_is_recorded_with_its_answer():
    before = time.time()
    service = Service()
    records = offered([30, 20], [b"one", b"two", b"three"], service)
    assert len(records) == service.asked == 50
    assert (records["outcome"] == "completed").all() and (records["code"] == "OK").all()
    assert records["answer"].tolist() == [["ONE", "TWO", "THREE"][row] for row in records["payload"]]
    assert set(records["payload"]) == {0, 1, 2}
    np.testing.assert_array_equal(records["scheduled"], arrival_times(np.array([30, 20]), 0))
    assert (records["sent"] >= records["scheduled"]).all() and (records["finished"] > records["sent"]).all()
    assert before <= records.attrs["started"] <= time.time() and records.attrs["seconds"] == 2.0


def test_what_a_status_stands_for_is_the_outcome():
    payloads = [b"fine", b"empty", *CODES]
    records = offered([60], payloads)
    wanted = ["completed", "failed", "rejected", "dropped", "failed", "failed"]
    codes = ["OK", "UNKNOWN", *(code.name for code in CODES.values())]
    assert set(records["payload"]) == set(range(6))
    assert records["outcome"].tolist() == [wanted[row] for row in records["payload"]]
    assert records["code"].tolist() == [codes[row] for row in records["payload"]]
    assert set(records.loc[records["payload"] == 2, "detail"]) == {"refused: full"}
    assert summary(records)["lost"] == 0


def test_a_server_that_stalls_does_not_delay_the_sending():
    service = Service()
    service.stalled_until = time.monotonic() + 4.0
    records = offered([40], [b"a"], service)
    assert service.asked == 40 and (records["outcome"] == "completed").all()
    # Sent before the first answer could come, and counted as slow as they were for those who waited.
    assert records["sent"].max() < records["finished"].min()
    assert summary(records)["latency_mean"] > 1.0


def test_a_request_without_an_answer_in_time_is_lost():
    records = offered([10], [b"fine", b"hang"], timeout=0.5)
    hung = records["payload"] == 1
    assert 0 < hung.sum() < 10
    assert (records.loc[hung, "code"] == NO_ANSWER).all() and (records.loc[hung, "outcome"] == "failed").all()
    assert (records.loc[~hung, "outcome"] == "completed").all()
    assert summary(records)["lost"] == hung.sum()


def test_a_run_that_is_stopped_keeps_every_request_it_sent(monkeypatch):
    monkeypatch.setattr(load, "GRACE_SECONDS", 0.3)
    service = Service()

    async def run():
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(1.0, stop.set)
        async with serving(service) as address:
            return await offer(address, "pipeline", np.full(60, 20), [b"fine", b"hang"], 0, stop=stop)

    records = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert len(records) == service.asked > 0
    assert records["code"].tolist() == [["OK", NO_ANSWER][row] for row in records["payload"]]
    assert 0.5 <= records.attrs["seconds"] < 60.0 and records["finished"].notna().all()


def test_a_server_that_goes_away_fails_requests_but_not_the_run():
    async def run():
        server = serving(Service())
        address = await server.__aenter__()
        ending = asyncio.create_task(offer(address, "pipeline", np.array([20, 20]), [b"a"], 0))
        await asyncio.sleep(1.0)
        await server.__aexit__(None, None, None)
        return await ending

    records = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert len(records) == 40
    assert set(records["outcome"]) == {"completed", "failed"}
    assert set(records.loc[records["outcome"] == "failed", "code"]) == {"UNAVAILABLE"}


def test_a_model_that_is_not_there_is_said_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(load, "READY_SECONDS", 0.2)

    async def run():
        async with serving(Service()) as address:
            await offer(address, "other", np.array([5]), [b"a"], 0)

    with pytest.raises(LoadError, match="'other' at 127.0.0.1.*not ready"):
        asyncio.run(run())
    with pytest.raises(LoadError, match="no payloads"):
        offered([5], [])


# A process of its own


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def address(service):
    """A server in a thread of its own, as the generator is a process of its own."""
    opened, loop = threading.Event(), asyncio.new_event_loop()
    closed = asyncio.Event()
    found = []

    async def run():
        async with serving(service) as place:
            found.append(place)
            opened.set()
            await closed.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert opened.wait(PATIENCE)
    yield found[0]
    loop.call_soon_threadsafe(closed.set)
    thread.join(PATIENCE)
    loop.close()


def written(folder, counts, payloads):
    files = folder / "counts.csv", folder / "pages.parquet", folder / "records.parquet"
    pd.Series(counts).to_csv(files[0], index=False, header=["requests"])
    pd.DataFrame({"payload": payloads, "truth": "?"}).to_parquet(files[1])
    return files


def command(address, files):
    names = ("counts", "payloads", "output")
    options = [f"--{name}={path}" for name, path in zip(names, files, strict=True)]
    return [sys.executable, "-m", "opd.live.load", f"--address={address}", "--model=pipeline", *options]


def test_the_command_writes_the_records_and_prints_their_summary(address, tmp_path):
    files = written(tmp_path, [10, 5], [b"one", b"two"])
    ended = subprocess.run(command(address, files), capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == "", "no progress bar without a terminal"
    records = pd.read_parquet(files[2])
    assert json.loads(ended.stdout) == summary(records)
    assert len(records) == 15 and records.attrs["seconds"] == 2.0
    assert abs(time.time() - records.attrs["started"]) < 60.0


def test_the_command_says_why_it_offers_nothing(tmp_path):
    files = written(tmp_path, [1, -1], [b"one"])
    ended = subprocess.run(command("127.0.0.1:1", files), capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1 and "no load was offered: count -1 of second 1" in ended.stderr
    assert not files[2].exists()


def test_a_started_run_gives_its_records(address, tmp_path):
    _, payloads, output = written(tmp_path, [], [b"one"])
    generator = load.start(address, "pipeline", np.array([10]), payloads, 5, output)
    records = load.finish(generator, PATIENCE)
    assert generator.process.returncode == 0
    assert records["answer"].tolist() == ["ONE"] * 10
    np.testing.assert_array_equal(records["scheduled"], arrival_times(np.array([10]), 5))
    sent = load.unix_times(records[records["outcome"] == "completed"], "sent")
    assert (sent > time.time() - 60.0).all() and (np.diff(sent) > 0).all()


def test_a_run_without_records_is_said_with_its_exit_code(address, tmp_path):
    output = tmp_path / "records.parquet"
    output.write_text("of an earlier run")
    generator = load.start(address, "pipeline", np.array([10]), tmp_path / "missing.parquet", 5, output)
    with pytest.raises(LoadError, match="ended with code 1 and without records"):
        load.finish(generator, PATIENCE)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT, "parent"])
def test_an_interrupted_run_writes_what_it_sent(address, service, tmp_path, ending):
    _, payloads, output = written(tmp_path, [], [b"one"])
    counts = np.full(600, 20)
    generator = load.start(address, "pipeline", counts, payloads, 0, output)
    eventually(lambda: service.asked > 10)
    if ending == "parent":
        # As when the process that started it ends in whatever way.
        generator.process.stdin.close()
    else:
        generator.process.send_signal(ending)
    records = load.finish(generator, PATIENCE)
    assert 0 < len(records) < counts.sum() and (records["outcome"] == "completed").all()
    np.testing.assert_array_equal(records["scheduled"], arrival_times(counts, 0)[: len(records)])
