"""Measuring variants: real measurements, and what they refuse."""

from __future__ import annotations

import pytest
from profile_tables import REFERENCE

from opd.profiling import profiles
from opd.profiling.architectures import ARCHITECTURES, CONTAINER_SECONDS
from opd.profiling.measuring import Effort, as_table, measured_rows

BERT_TINY = ARCHITECTURES["bert-tiny"]


@pytest.mark.parametrize("key", ["bert-mini-qa", "resnet-18"])
def test_an_architecture_answers_every_request_of_a_batch(key: str):
    architecture = ARCHITECTURES[key]
    output = architecture.infer(architecture.build().eval(), architecture.inputs(2))
    assert len(output[0]) == 2


# ---------------------------------------------------------------------------------------------- real measurements


def test_an_architecture_can_be_measured():
    measured = as_table(measured_rows("sentiment", "bert-tiny", BERT_TINY, [(1, 1), (1, 4)], Effort(0.2, 3, 50)))
    assert measured[["cores", "batch_size"]].values.tolist() == [[1, 1], [1, 4]]
    assert (measured["latency_mean"] > 0).all() and (measured["latency_p99"] >= measured["latency_mean"]).all()
    assert measured["runs"].between(3, 50).all() and (measured["kind"] == "measured").all()
    assert (measured["startup_seconds"] > CONTAINER_SECONDS + measured["latency_mean"].iloc[0]).all()
    assert measured["memory_mb"].isna().all()
    assert len(profiles.compare_latencies(measured, REFERENCE)) == len(measured)


def test_measuring_on_more_cores_than_the_machine_has_is_refused():
    with pytest.raises(ValueError, match="cannot measure on 4096 cores"):
        list(measured_rows("sentiment", "bert-tiny", BERT_TINY, [(4096, 1)]))
