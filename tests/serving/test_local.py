"""A live pipeline of real processes, with tiny models, under load: changes, answers and measurements."""

import os
import socket
import time

import numpy as np
import psutil
import pytest
from deadlines import eventually
from small_pipelines import stages
from tiny_local import BROKEN, FAST, INITIAL, PARAMETERS, SLOW, Load, outcomes, queue_status, tiny_pipeline

from opd.control.loop import ApplyError, ObservationError
from opd.serving.local import AlreadyControlledError, LocalBackend

pytestmark = pytest.mark.processes


# --- reconfiguration -------------------------------------------------------------------------------------------------


def test_variant_replicas_and_batch_change_under_load_without_losing_a_request(backend, tmp_path):
    traffic = Load(backend, tmp_path, [5] * 8)  # no more than the queue holds, however long it takes
    for wanted in (
        stages((FAST, 2, 1), (SLOW, 1, 2)),
        stages((SLOW, 2, 4), (SLOW, 2, 2)),
        stages((FAST, 1, 1), (FAST, 1, 1)),
    ):
        backend.apply(wanted)
        for position, stage in enumerate(wanted):
            status = queue_status(backend, position)
            serving = [replica for replica in status["replicas"] if not replica["retired"]]
            assert status["batch_size"] == stage.batch_size
            assert [replica["variant"] for replica in serving] == [("fast", "slow")[stage.variant]] * stage.replicas
    records = traffic.records()
    assert outcomes(records) == {"completed": 40}
    assert set(records["answer"]) == {"HELLO"}
    eventually(lambda: sum(len(stage.replicas) for stage in backend.stages) == 2)


def test_a_variant_that_does_not_load_is_rolled_back_and_the_error_gives_the_reason(backend):
    with pytest.raises(ApplyError, match="variant 'broken' of 'second' did not start 2 times .* damaged .exit code 1"):
        backend.apply(stages((SLOW, 1, 1), (BROKEN, 1, 1)))
    assert backend.configuration == INITIAL
    eventually(lambda: all(stage.settled for stage in backend.stages))
    assert [replica["variant"] for replica in queue_status(backend, 1)["replicas"]] == ["fast"]


# --- requests --------------------------------------------------------------------------------------------------------


def test_a_full_queue_rejects_requests_and_answers_the_rest(backend, tmp_path):
    backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
    counts = outcomes(Load(backend, tmp_path, [150]).records())
    assert counts["rejected"] > 0 and counts["completed"] > 0
    assert sum(counts.values()) == 150 and set(counts) == {"rejected", "completed"}


def test_a_malformed_request_gets_its_own_error(backend, tmp_path):
    backend.apply(stages((FAST, 1, 4), (FAST, 1, 1)))
    records = Load(backend, tmp_path, [30], texts=("hello", "bad")).records()
    bad = records[records["payload"] == 1]
    assert outcomes(records[records["payload"] == 0]) == {"completed": 30 - len(bad)}
    assert len(bad) and set(bad["code"]) == {"INVALID_ARGUMENT"}
    assert bad["detail"].str.fullmatch(r"stage 'first': .*which is not a text to answer").all()


def test_the_environments_proxies_are_not_used(backend, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{unused.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        backend.apply(stages((SLOW, 1, 1), (FAST, 1, 1)))
        assert outcomes(Load(backend, tmp_path, [3]).records()) == {"completed": 3}


# --- measurements ----------------------------------------------------------------------------------------------------


def test_an_interval_counts_what_was_sent(backend, tmp_path):
    backend.wait()
    traffic = Load(backend, tmp_path, [10] * 22)
    # The generator takes seconds to start; the interval after the first with requests is the first whole one.
    eventually(lambda: backend.wait()[1].offered[0] > 0, poll=0.0)
    # A scrape that comes late counts in the next interval: only the sum is exact. On a machine that is
    # busy for seconds, an interval is not measured at all.
    intervals = [interval for _, interval in (backend.wait() for _ in range(5)) if np.isfinite(interval.offered[0])]
    assert len(intervals) >= 3
    assert np.mean([each.offered[0] for each in intervals]) == pytest.approx(10 * PARAMETERS.interval, rel=0.25)
    assert sum(each.dropped[0] for each in intervals) == 0
    # How many are within the second of the service level depends on the machine; that they are counted does not.
    assert 0 < sum(each.within[0] for each in intervals) <= sum(each.completed[0] for each in intervals) + 1e-6
    # Every request is one call of the fast variant in each stage, which takes at least its 5 ms.
    batches, busy = sum(each.batches[0] for each in intervals), sum(each.busy[0] for each in intervals)
    assert batches[:, FAST, 1] == pytest.approx(sum(each.completed[0] for each in intervals), rel=0.25)
    assert batches[:, FAST, 1] == pytest.approx(batches.sum(axis=(1, 2)))
    assert (busy[:, FAST] > 0.005 * batches[:, FAST, 1]).all() and busy.sum() == busy[:, FAST].sum()
    observations = (observed(backend) for _ in range(3) if backend.wait())
    observation = next(filter(None, observations))
    traffic.records()
    assert observation.configuration == INITIAL and observation.queue.shape == (2,)
    assert observation.history[-8:].mean() == pytest.approx(10, rel=0.3)


def test_after_a_pause_an_interval_has_its_full_length(backend):
    backend.observe()
    backend.wait()
    time.sleep(2 * PARAMETERS.interval)
    backend.observe()
    begin = time.monotonic()
    backend.wait()
    assert time.monotonic() - begin > 0.8 * PARAMETERS.interval


def test_observing_fails_without_the_monitor_until_it_is_back(backend, tmp_path):
    process = getattr(backend.monitor, "_process", None)
    if process is None:
        pytest.skip("no prometheus binary here; the embedded scraper lives in this process")
    Load(backend, tmp_path, [5] * 3).records()
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    with pytest.raises(ObservationError, match="died"):
        backend.observe()
    eventually(lambda: observed(backend) is not None, poll=0.5)


def observed(backend):
    try:
        return backend.observe()
    except ObservationError:
        return None


# --- control ---------------------------------------------------------------------------------------------------------


def test_a_second_controller_is_refused_and_the_error_names_the_first(backend, store):
    with pytest.raises(AlreadyControlledError, match=f"is controlled by process {os.getpid()}"):
        LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, backend.gateways.servers[0].folder, store)
    assert backend.gateways.servers[0].alive
