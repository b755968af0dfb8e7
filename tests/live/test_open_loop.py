"""Open-loop load: arrivals, sending, and the summary of the records."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pandas as pd
import pytest
from deadlines import PATIENCE
from scripted_service import CODES, ScriptedService, serving

from opd.live import load
from opd.live.load import NO_ANSWER, LoadError, arrival_times, offer, share_within, summary
from opd.serving.contents import payload_request


def offered(counts, payloads, service=None, **options):
    async def run():
        async with serving(service or ScriptedService()) as address:
            samples = [payload_request([payload]) for payload in payloads]
            return await offer(address, "pipeline", np.array(counts), samples, 0, **options)

    return asyncio.run(asyncio.wait_for(run(), PATIENCE))


# Arrivals


def test_every_second_gets_its_count_of_arrivals_in_ascending_order():
    counts = np.array([3, 0, 50, 1])
    times = arrival_times(counts, 7)
    assert (np.diff(times) >= 0).all()
    np.testing.assert_array_equal(np.bincount(times.astype(int), minlength=4), counts)


def test_arrivals_are_uniform_within_the_second_and_determined_by_the_seed():
    times = arrival_times(np.array([20_000]), 3)
    np.testing.assert_allclose(np.quantile(times, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
    np.testing.assert_array_equal(times, arrival_times(np.array([20_000]), 3))
    assert (times != arrival_times(np.array([20_000]), 4)).any()


def test_no_requests_means_no_arrivals():
    assert arrival_times(np.array([0, 0]), 0).shape == (0,)


@pytest.mark.parametrize("wrong", [-1, 2.5, np.nan, np.inf])
def test_a_count_that_is_not_a_number_of_requests_is_refused(wrong):
    with pytest.raises(ValueError, match=f"count {wrong} of second 1"):
        arrival_times(np.array([4, wrong]), 0)


# Summary


def test_the_summary_of_known_records():
    rows = [
        # scheduled, sent, finished, outcome, code
        (0.0, 0.0, 1.0, "completed", "OK", ""),
        (1.0, 1.5, 4.0, "completed", "OK", ""),
        (2.0, 2.0, 2.1, "rejected", "RESOURCE_EXHAUSTED", "full"),
        (3.0, 3.0, 3.1, "dropped", "DEADLINE_EXCEEDED", "old"),
        (4.0, 4.0, 4.1, "failed", "INTERNAL", "broken"),
        (4.0, 4.0, 4.1, "failed", "INTERNAL", "broken"),
        (4.0, 4.0, 9.0, "failed", NO_ANSWER, ""),
    ]
    records = pd.DataFrame(rows, columns=["scheduled", "sent", "finished", "outcome", "code", "detail"])
    records.attrs = {"started": 1.7e9, "seconds": 4.0}
    counted = summary(records)
    ends = ("offered", "completed", "rejected", "dropped", "failed", "lost")
    assert [counted[name] for name in ends] == [7, 2, 1, 1, 3, 1]
    assert (counted["duration"], counted["offered_rate"], counted["completed_rate"]) == (4.0, 1.75, 0.5)
    # Latency counts from the scheduled time, 1 s and 3 s, even though the second request was sent half a second late.
    assert counted["latency_mean"] == 2.0 and counted["latency_p50"] == 2.0
    assert counted["latency_p95"] == pytest.approx(2.9) and counted["latency_p99"] == pytest.approx(2.98)
    assert counted["lateness_max"] == 0.5 and counted["lateness_p99"] == pytest.approx(0.47)
    json.dumps(counted)
    assert (share_within(records, 1.0), share_within(records, 3.0)) == (1 / 7, 2 / 7)


def test_the_summary_of_no_requests_has_no_latency():
    records = offered([0], [b"a"])
    counted = summary(records)
    assert counted["offered"] == 0 and counted["latency_mean"] is None and counted["lateness_max"] is None
    assert counted["duration"] == 1.0


# Sending


def test_every_request_is_recorded_with_its_answer():
    before = time.time()
    service = ScriptedService()
    records = offered([30, 20], [b"one", b"two", b"three"], service)
    assert len(records) == service.asked == 50
    assert (records["outcome"] == "completed").all() and (records["code"] == "OK").all()
    assert records["answer"].tolist() == [["ONE", "TWO", "THREE"][row] for row in records["payload"]]
    assert set(records["payload"]) == {0, 1, 2}
    np.testing.assert_array_equal(records["scheduled"], arrival_times(np.array([30, 20]), 0))
    assert (records["sent"] >= records["scheduled"]).all() and (records["finished"] > records["sent"]).all()
    assert before <= records.attrs["started"] <= time.time() and records.attrs["seconds"] == 2.0


def test_the_status_of_an_answer_determines_the_outcome():
    payloads = [b"fine", b"empty", *CODES]
    records = offered([60], payloads)
    outcomes = ["completed", "failed", "rejected", "dropped", "failed", "failed"]
    codes = ["OK", "UNKNOWN", *(code.name for code in CODES.values())]
    assert set(records["payload"]) == set(range(6))
    assert records["outcome"].tolist() == [outcomes[row] for row in records["payload"]]
    assert records["code"].tolist() == [codes[row] for row in records["payload"]]
    assert set(records.loc[records["payload"] == 2, "detail"]) == {"refused: full"}
    assert summary(records)["lost"] == 0


def test_a_stalled_server_does_not_delay_sending():
    records = offered([40], [b"a"], ScriptedService(stalled=40))
    assert len(records) == 40 and (records["outcome"] == "completed").all()
    # All were sent before the first answer, and their latency includes the stall.
    assert records["sent"].max() < records["finished"].min()
    assert summary(records)["latency_mean"] > (records["scheduled"].max() - records["scheduled"]).mean() > 0.1


def test_a_request_that_times_out_is_lost():
    records = offered([10], [b"fine", b"hang"], timeout=3.0)  # long enough for the others on a busy machine
    hung = records["payload"] == 1
    assert 0 < hung.sum() < 10
    assert (records.loc[hung, "code"] == NO_ANSWER).all() and (records.loc[hung, "outcome"] == "failed").all()
    assert (records.loc[~hung, "outcome"] == "completed").all()
    assert summary(records)["lost"] == hung.sum()


def test_a_stopped_run_records_every_request_it_sent(monkeypatch):
    monkeypatch.setattr(load, "GRACE_SECONDS", 3.0)  # long enough for those that do not hang on a busy machine
    service = ScriptedService()
    samples = [payload_request([payload]) for payload in (b"fine", b"hang")]

    async def run():
        stop = asyncio.Event()
        async with serving(service) as address:
            ending = asyncio.create_task(offer(address, "pipeline", np.full(60, 20), samples, 0, stop=stop))
            await service.has_been_asked(20)
            stop.set()
            return await ending

    records = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert len(records) == service.asked > 0
    assert records["code"].tolist() == [["OK", NO_ANSWER][row] for row in records["payload"]]
    assert 0.0 < records.attrs["seconds"] < 60.0 and records["finished"].notna().all()


def test_a_server_that_stops_fails_requests_but_not_the_run():
    async def run():
        service = ScriptedService()
        server = serving(service)
        address = await server.__aenter__()
        ending = asyncio.create_task(offer(address, "pipeline", np.array([20, 20]), [payload_request([b"a"])], 0))
        await service.has_been_asked(10)
        await server.__aexit__(None, None, None)
        return await ending

    records = asyncio.run(asyncio.wait_for(run(), PATIENCE))
    assert len(records) == 40
    assert set(records["outcome"]) == {"completed", "failed"}
    assert set(records.loc[records["outcome"] == "failed", "code"]) == {"UNAVAILABLE"}


def test_nothing_is_sent_to_a_model_that_is_not_ready(monkeypatch):
    monkeypatch.setattr(load, "READY_SECONDS", 0.2)

    async def run():
        async with serving(ScriptedService()) as address:
            await offer(address, "other", np.array([5]), [payload_request([b"a"])], 0)

    with pytest.raises(LoadError, match="'other' at 127.0.0.1.*not ready"):
        asyncio.run(run())
    with pytest.raises(LoadError, match="no samples"):
        offered([5], [])
