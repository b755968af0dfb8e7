"""Replicas that share the cores of the device, against results known by hand and from textbooks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_pipelines import ocr_pipeline, stages
from small_queues import assert_equal, inside, make_pipeline, make_task
from test_queueing_theory import erlang_c, steady_state

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, Task, Variant, as_array
from opd.simulator.simulator import Simulator


def simulate(pipeline: Pipeline, configuration: Configuration, arrivals: list[float], **parameters: Any) -> np.ndarray:
    """(M,) latencies of requests at these times, in the order in which they are completed."""
    settings = SimulationParameters(**{"service_noise": 0.0, "batch_timeout": 0.0, **parameters})
    simulator = Simulator(pipeline, settings, record_latencies=True)
    simulator.reset(configuration)
    interval = simulator.step_arrivals(as_array(configuration), np.array(arrivals))
    return interval.latencies[0, : interval.completed[0]]


ONE_STAGE = make_pipeline(make_task(1.0))


def test_two_replicas_on_one_core_take_twice_as_long():
    assert_equal(simulate(ONE_STAGE, stages((0, 2, 1)), [0.0, 0.0], device_cores=1.0), [2.0, 2.0])
    assert_equal(simulate(ONE_STAGE, stages((0, 2, 1)), [0.0, 0.0], device_cores=2.0), [1.0, 1.0])
    assert_equal(simulate(ONE_STAGE, stages((0, 2, 1)), [0.0, 0.0]), [1.0, 1.0])


def test_a_batch_slows_down_only_while_it_shares():
    # The first has 0.5 s left when the second begins: 1.5 at half speed. The second then has 0.5 left of its 1 s.
    assert_equal(simulate(ONE_STAGE, stages((0, 2, 1)), [0.0, 0.5], device_cores=1.0), [1.5, 1.5])


def test_three_on_two_cores_progress_at_two_thirds():
    assert_equal(simulate(ONE_STAGE, stages((0, 3, 1)), [0.0] * 3, device_cores=2.0), [1.5] * 3)


def test_a_replica_of_many_cores_is_slowed_down_by_a_smaller_device():
    task = Task("task", (Variant("large", 0.5, 4, {1: 1.0}, 0.0),))
    assert_equal(simulate(make_pipeline(task), stages((0, 1, 1)), [0.0], device_cores=2.0), [2.0])


def test_stages_share_the_cores():
    # At 1.0 the first request enters the second stage as the second request begins in the first: both at half speed.
    pipeline = make_pipeline(make_task(1.0, name="first"), make_task(1.0, name="second"))
    assert_equal(simulate(pipeline, stages((0, 1, 1), (0, 1, 1)), [0.0, 0.0], device_cores=1.0), [3.0, 4.0])


def test_what_is_under_way_keeps_its_speed_across_intervals():
    simulator = Simulator(
        make_pipeline(make_task(8.0)),
        SimulationParameters(service_noise=0.0, batch_timeout=0.0, device_cores=1.0),
        record_latencies=True,
    )
    both = stages((0, 2, 1))
    simulator.reset(both)
    # 8 s of work each: the first has 7 left at 1.0, both are slow from then on until it is done at 15; then the other.
    assert simulator.step_arrivals(as_array(both), np.array([0.0, 1.0])).completed[0] == 0
    interval = simulator.step_arrivals(as_array(both), np.array([]))
    assert_equal(interval.latencies[0, :2], [15.0, 15.0])


def test_the_time_of_a_stretched_batch_is_recorded():
    settings = SimulationParameters(service_noise=0.0, batch_timeout=0.0, device_cores=1.0)
    simulator = Simulator(ONE_STAGE, settings, record_batches=True)
    simulator.reset(stages((0, 2, 1)))
    interval = simulator.step_arrivals(as_array(stages((0, 2, 1))), np.array([0.0, 0.5]))
    assert_equal(interval.busy, [[[3.0]]])
    assert_equal(interval.task_latency, [[1.5]])


def test_starting_replicas_take_no_core():
    pipeline = make_pipeline(make_task(1.0, 1.0, startup_time=5.0))
    simulator = Simulator(pipeline, SimulationParameters(service_noise=0.0, device_cores=1.0), record_latencies=True)
    simulator.reset(stages((0, 1, 1)))
    interval = simulator.step_arrivals(as_array(stages((1, 4, 1))), np.array([1.0]))
    assert_equal(interval.latencies[0, :1], [1.0])


@pytest.mark.parametrize("cores", [0.0, 100.0])
def test_enough_cores_change_nothing(cores: float):
    pipeline, rng = ocr_pipeline(), np.random.default_rng(3)
    settings = SimulationParameters(service_noise=0.0, drop_after=2.0)
    both = [Simulator(pipeline, replace(settings, device_cores=each), 1, record_batches=True) for each in (0.0, cores)]
    for simulator in both:
        simulator.reset(pipeline.smallest_configuration())
    for decision in range(12):
        configuration = as_array(stages((decision % 2, 1 + decision % 3, 2), (decision % 3, 1 + decision % 2, 1)))
        arrivals = np.sort(rng.uniform(10 * decision, 10 * decision + 10, rng.integers(1, 250)))
        first, second = (simulator.step_arrivals(configuration, arrivals) for simulator in both)
        for name, expected, found in zip(first._fields, first, second, strict=True):
            assert_equal(found, expected, message=name)
    assert_equal(inside(both[0]), inside(both[1]))


# Processor sharing: M/G/1-PS is insensitive to the distribution of the work, so its mean needs no assumption.


@pytest.mark.parametrize(
    "work", [{"service_noise": 0.0}, {"service_noise": 0.6}, {"service_distribution": "exponential"}]
)
def test_one_core_is_a_processor_sharing_queue(work: dict[str, Any]):
    pipeline = make_pipeline(make_task(0.1), max_replicas=24)
    result = steady_state(pipeline, stages((0, 24, 1)), 6.0, environments=40, device_cores=1.0, **work)
    assert result["latency"] == pytest.approx(0.1 / (1 - 0.6), rel=0.025)


def test_two_stages_on_one_core_share_it_like_one_job_of_their_work():
    pipeline = make_pipeline(make_task(0.04, name="first"), make_task(0.06, name="second"), max_replicas=24)
    result = steady_state(
        pipeline, stages((0, 24, 1), (0, 24, 1)), 6.0, environments=40, device_cores=1.0, service_noise=0.3
    )
    assert result["latency"] == pytest.approx(0.1 / (1 - 0.6), rel=0.025)
    assert result["task_latency"] == pytest.approx([0.04 / (1 - 0.6), 0.06 / (1 - 0.6)], rel=0.03)


def test_exponential_work_on_several_cores_is_m_m_c():
    # Shared or not, the cores finish min(n, c) / s requests a second while n are there.
    pipeline = make_pipeline(make_task(0.1), max_replicas=24)
    result = steady_state(
        pipeline, stages((0, 24, 1)), 15.0, environments=40, device_cores=2.0, service_distribution="exponential"
    )
    assert result["latency"] == pytest.approx(0.1 + erlang_c(2, 1.5) * 0.1 / (2 * (1 - 0.75)), rel=0.025)


def test_added_latency_is_part_of_every_latency():
    level = replace(ONE_STAGE.service_level, seconds=1.05)
    pipeline = replace(ONE_STAGE, service_level=level)
    assert_equal(simulate(pipeline, stages((0, 2, 1)), [0.0, 0.5], added_latency=0.1), [1.1, 1.1])
    settings = SimulationParameters(service_noise=0.0)
    counts = []
    for added in (0.0, 0.1):
        simulator = Simulator(pipeline, replace(settings, added_latency=added))
        simulator.reset(stages((0, 2, 1)))
        interval = simulator.step_arrivals(as_array(stages((0, 2, 1))), np.array([0.0, 0.5]))
        counts.append((interval.within[0], float(interval.latency_p99[0]), float(interval.task_latency[0, 0])))
    assert counts == [(2, 1.0, 1.0), (0, 1.1, 1.0)]


def test_parameters_that_are_off_are_not_described():
    assert "device_cores" not in SimulationParameters().described()
    assert "added_latency" not in SimulationParameters().described()
    described = SimulationParameters(device_cores=2.0).described()
    assert described["device_cores"] == 2.0 and SimulationParameters(**described).device_cores == 2.0
