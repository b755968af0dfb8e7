"""Measuring a variant as it is served."""

from __future__ import annotations

import pytest
from serving_models import push_variant

from opd.profiling.measuring import Effort, measure_variant
from opd.serving.served_variant import ServedVariant
from opd.serving.store import STORE_URL_VARIABLE


class ServedText(ServedVariant):
    """A variant of the tiny models."""

    def payloads(self):
        """Different texts."""
        return [b"one", b"two", b"three"]


def test_batches_take_the_payloads_in_turn():
    batches = ServedText("shout", "slow").inputs(2)
    assert [next(batches) for _ in range(3)] == [[b"one", b"two"], [b"three", b"one"], [b"two", b"three"]]


def test_more_than_one_thread_is_refused():
    with pytest.raises(ValueError, match="shout/slow runs on one thread and cannot be measured on 2 cores"):
        ServedText("shout", "slow").threads(2).__enter__()


@pytest.mark.processes
def test_a_call_goes_to_a_replica_and_takes_as_long_as_its_model(tmp_path, monkeypatch):
    push_variant(tmp_path, "shout", "slow", seconds=0.2)
    monkeypatch.setenv(STORE_URL_VARIABLE, str(tmp_path))
    variant = ServedText("shout", "slow")
    with variant.loaded(seed=0) as (replica, startup_seconds):
        assert variant.infer(replica, variant.inputs(3)) == [b"ONE", b"TWO", b"THREE"]
        assert startup_seconds > 0 and variant.memory_mb(replica) > 20
    table = measure_variant("shout", "slow", variant, [1, 2], [1], Effort(0.0, min_runs=2))
    assert table["batch_size"].tolist() == [1, 2] and (table["latency_mean"] >= 0.2).all()
