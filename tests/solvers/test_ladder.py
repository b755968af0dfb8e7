"""The ladder: each rung carries more than the one below, and the lowest that carries a load is found."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, pipelines, stages, within_limits

from opd.objective import Weights, throughput
from opd.profiling.attainable import attainable_load
from opd.profiling.calibrated import calibrated_pipeline
from opd.solvers import greedy, myopic
from opd.solvers.ladder import Ladder, build_ladder, lowest_carrying

SOLVE = partial(myopic, weights=Weights(), batch_timeout=0.25)


def test_the_lowest_rung_that_carries_a_load():
    throughput = np.array([10.0, 20.0, 30.0])
    assert [lowest_carrying(throughput, load) for load in (0.0, 10.0, 10.5, 30.0, 31.0)] == [0, 0, 1, 2, 2]
    assert lowest_carrying(np.array([10.0, 30.0, 25.0]), 20.0) == 1
    assert lowest_carrying(np.array([10.0, 30.0, 25.0]), 40.0) == 1


def test_rungs_are_found_and_carry_less_on_a_slower_device():
    pipeline = ocr_pipeline()
    ladder = Ladder((stages((0, 1, 1), (0, 1, 1)), stages((0, 2, 1), (0, 1, 1))))
    assert [ladder.position(each) for each in (*ladder.rungs, stages((0, 1, 2), (0, 1, 1)))] == [0, 1, None]
    assert ladder.throughput(pipeline).tolist() == [10.0, 20.0]
    slower = calibrated_pipeline(pipeline, np.full((2, 3), np.e**0.5))
    assert ladder.throughput(slower) == pytest.approx(np.array([10.0, 20.0]) / np.e**0.5)


def test_the_rungs_of_the_cheapest_configurations_grow_replica_by_replica():
    pipeline = ocr_pipeline(capacity=5, max_replicas=3)
    ladder = build_ladder(pipeline, greedy)
    # A replica of detection carries 12.5 requests/s in batches of two, one of recognition 25.
    assert ladder.throughput(pipeline)[-1] == 3 * 2 / 0.16
    replicas = [[stage.replicas for stage in rung] for rung in ladder.rungs]
    assert replicas[0] == [1, 1] and replicas[-1] == [3, 2]


@settings(max_examples=20)
@given(pipelines(), st.booleans())
def test_a_higher_rung_carries_more_and_each_is_within_the_limits(pipeline, cheapest):
    solve = greedy if cheapest else SOLVE
    ladder = build_ladder(pipeline, solve)
    rates = ladder.throughput(pipeline)
    assert (np.diff(rates) > 0.0).all()
    assert rates.tolist() == [float(throughput(pipeline, rung)) for rung in ladder.rungs]
    assert all(within_limits(pipeline, rung, pipeline.capacity) for rung in ladder.rungs)
    assert ladder.rungs[0] == solve(pipeline, 0.0)
    if cheapest:
        assert rates[-1] == attainable_load(pipeline, 1e9)
