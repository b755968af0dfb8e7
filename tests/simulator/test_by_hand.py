"""The compiled simulator on requests that are easy to follow by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from small_pipelines import stages
from small_queues import assert_equal, make_pipeline, make_task

from opd.measurement import SimulationParameters
from opd.pipeline import Configuration, Pipeline, ServiceLevel, Task, Variant, as_array
from opd.simulator.simulator import Simulator


def one(pipeline: Pipeline, configuration: Configuration, **parameters: Any) -> Simulator:
    """A single copy without noise, started on ``configuration``."""
    simulator = Simulator(pipeline, SimulationParameters(service_noise=0.0, **parameters))
    simulator.reset(configuration)
    return simulator


def test_a_batch_is_taken_when_full_or_when_the_oldest_has_waited():
    task = Task("task", (Variant("variant", 0.5, 1, {1: 1.0, 2: 1.5, 4: 2.0}, 0.0),))
    configuration = stages((0, 2, 2))
    simulator = one(make_pipeline(task, max_batch_size=4), configuration, batch_timeout=0.5)
    # 1.0 and 1.2 fill a batch at 1.2; 1.3 waits alone until 1.8; 2.0 and 2.1 wait for the replica that is idle at 2.7.
    interval = simulator.step_arrivals(as_array(configuration), np.array([1.0, 1.2, 1.3, 2.0, 2.1]))
    latencies = [1.7, 1.5, 1.5, 2.2, 2.1]
    assert interval.completed.tolist() == [5]
    assert_equal(interval.latency_mean, np.mean(latencies))
    assert_equal(interval.latency_p99, 2.2)
    assert_equal(interval.task_latency, [[np.mean(latencies)]])
    assert_equal(interval.ready_throughput, [[2 * 2 / 1.5]])


def test_batches_are_recorded_by_variant_and_size_when_they_begin():
    slow, fast = Variant("slow", 0.5, 1, {1: 1.0, 2: 1.5}, 0.0), Variant("fast", 0.4, 1, {1: 0.5, 2: 0.75}, 3.0)
    pipeline = make_pipeline(Task("task", (slow, fast)), max_batch_size=2)
    parameters = SimulationParameters(service_noise=0.0, batch_timeout=0.5)
    simulator = Simulator(pipeline, parameters, record_batches=True)
    simulator.reset(stages((0, 1, 2)))
    # The slow variant serves until the fast one is ready at 3.0. The last batch ends after the interval.
    interval = simulator.step_arrivals(np.array([[1, 1, 2]]), np.array([0.0, 0.0, 2.0, 5.0, 6.0, 6.0, 9.4]))
    assert interval.busy.tolist() == [[[2.5, 1.75]]]
    assert interval.batches.tolist() == [[[[0, 1, 1], [0, 2, 1]]]]
    assert simulator.step_arrivals(np.array([[1, 1, 2]]), np.array([])).batches.sum() == 0
    assert Simulator(pipeline, parameters).step(np.array([[[0, 1, 1]]]), np.full((1, 10), 3)).busy.shape == (1, 1, 0)


def test_requests_within_the_latency_of_the_service_level_are_counted():
    configuration = stages((0, 1, 1))
    level = ServiceLevel(0.75)
    simulator = one(replace(make_pipeline(make_task(0.5)), service_level=level), configuration, drop_after=1.0)
    # 0.5 s and exactly 0.75 s are within; 1.0 s is not, and the request of 0.6 has reneged at 1.6.
    interval = simulator.step_arrivals(as_array(configuration), np.array([0.0, 0.25, 0.5, 0.5, 0.6]))
    assert (interval.completed[0], interval.within[0], interval.dropped[0], interval.failed[0]) == (4, 2, 1, 0)


def test_an_interval_without_requests_reports_the_service_time_and_no_latency():
    configuration = stages((0, 1, 1))
    simulator = one(make_pipeline(make_task(0.3)), configuration)
    interval = simulator.step_arrivals(as_array(configuration), np.array([]))
    assert interval.offered[0] == interval.completed[0] == interval.latency_mean[0] == interval.latency_p99[0] == 0
    assert interval.task_latency.tolist() == [[0.3]]


def test_late_departures_wait_behind_earlier_ones_of_the_next_interval():
    # The request of 9.0 leaves the first task at 15.0 (slow variant), that of 11.0 at 11.1 (fast variant).
    pipeline = make_pipeline(make_task(6.0, 0.1, name="first"), make_task(1.0, name="second"))
    slow, fast = stages((0, 1, 1), (0, 1, 1)), stages((1, 1, 1), (0, 1, 1))
    simulator = one(pipeline, slow)
    assert simulator.step_arrivals(as_array(slow), np.array([9.0])).completed[0] == 0
    interval = simulator.step_arrivals(as_array(fast), np.array([11.0]))
    assert interval.completed[0] == 2
    assert_equal(interval.latency_p99, 7.0)
    assert_equal(interval.latency_mean, (7.0 + 1.1) / 2)


def test_a_request_past_its_age_limit_is_dropped_even_behind_a_younger_one():
    # In the second task's queue a request of 12.8 (joined 12.9) stands before one of 5.0 (joined 13.0), which is
    # 8.1 s old at 13.1, before the replica is idle at 13.25. The younger one then waits alone until 13.9.
    pipeline = make_pipeline(
        make_task(8.0, 0.1, name="first", max_batch_size=2),
        make_task(3.0, name="second", max_batch_size=2),
        max_batch_size=2,
    )
    slow, fast = stages((0, 2, 1), (0, 1, 2)), stages((1, 2, 1), (0, 1, 2))
    simulator = one(pipeline, slow, batch_timeout=1.0, drop_after=8.1)
    simulator.step_arrivals(as_array(slow), np.array([5.0]))
    interval = simulator.step_arrivals(as_array(fast), np.array([10.1, 10.15, 12.8]))
    assert interval.dropped[0] == 1
    assert interval.completed[0] == 3
    latencies = [3.15, 3.1, 4.1]
    assert_equal(interval.latency_mean, np.mean(latencies))
    assert_equal(interval.task_latency[0, 1], np.mean([3.05, 3.0, 4.0, 0.1]))


def test_the_previous_variant_serves_until_every_new_replica_has_started():
    pipeline = make_pipeline(make_task(2.0, 1.0, startup_time=4.0))
    simulator = one(pipeline, stages((0, 2, 1)))
    interval = simulator.step_arrivals(as_array(stages((1, 3, 1))), np.array([3.5, 4.5]))
    assert_equal(interval.ready_throughput, [[0.4 * 2 / 2.0 + 0.6 * 3 / 1.0]])
    assert_equal(interval.latency_mean, (2.0 + 1.0) / 2)


def test_a_scale_down_is_immediate_and_finishes_what_has_begun():
    pipeline = make_pipeline(make_task(2.0))
    simulator = one(pipeline, stages((0, 2, 1)))
    simulator.step_arrivals(as_array(stages((0, 2, 1))), np.array([9.0, 9.5]))
    interval = simulator.step_arrivals(as_array(stages((0, 1, 1))), np.array([10.5]))
    # The oldest replica stays: free at 11.0, it serves the request of 10.5 until 13.0.
    assert_equal(interval.ready_throughput, [[0.5]])
    assert interval.completed[0] == 3
    assert_equal(interval.latency_mean, (2.0 + 2.0 + 2.5) / 3)


def test_start_up_times_longer_than_intervals_keep_replicas_of_every_variant():
    # Each variant gets one replica and 10 s later a second, which a further change cancels as it has not started.
    # The second task, unchanged, shows that the first keeps to its own places.
    pipeline = make_pipeline(
        make_task(*[1.0] * 5, startup_time=15.0), make_task(*[0.5] * 5, name="second", startup_time=5.0), max_replicas=2
    )
    simulator = one(pipeline, stages((0, 2, 1), (0, 1, 1)))
    changes = [stages((variant, replicas, 1), (0, 1, 1)) for variant in range(1, 5) for replicas in (1, 2)]
    ready = [simulator.step_arrivals(as_array(change), np.array([])).ready_throughput[0] for change in changes]
    assert_equal(ready, [[first, 2.0] for first in np.arange(2.0, 6.0, 0.5)])
