"""Replicas alone, where variants and batch sizes are given."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, pipelines

from opd.measurement import SimulationParameters
from opd.objective import ServiceLevel, Weights, throughput
from opd.pipeline import Pipeline, StageConfiguration, Task, Variant, used_cores
from opd.solvers.myopic import predicted_reward
from opd.solvers.replicas import LOADS, plan_replicas
from opd.solvers.service_level import predicted_service_reward

SIMULATION = SimulationParameters()


def chain(capacity: int = 12, replicas: int = 8) -> Pipeline:
    """A stage of 10 requests/s a replica, then one of 5, with one and two cores."""
    fast = Variant("fast", 0.6, 1, {1: 0.1}, 1.0)
    slow = Variant("slow", 0.9, 2, {1: 0.2}, 1.0)
    tasks = (Task("first", (fast, slow)), Task("second", (fast, slow)))
    return Pipeline("chain", tasks, capacity, replicas, 1, ServiceLevel(2.0))


RUNNING = {"first": ("fast", 1), "second": ("slow", 1)}


def test_replicas_by_hand():
    """A request/s that is carried is worth 0.02, an unmet one costs 0.3, a spare one 0.05, a core 0.15.

    With a throughput of 5, 10, 15 and 20 for 3, 5, 8 and 10 cores, the next step pays from 6.29, 11.71 and 16.29 on.
    """
    plan = plan_replicas(chain(), RUNNING, Weights(), SIMULATION)
    assert (plan.loads[0], plan.loads[-1], len(plan.loads)) == (0.0, 20.0, LOADS + 1)
    steps = {0.0: (1, 1), 6.15: (1, 1), 6.25: (1, 2), 11.65: (1, 2), 11.75: (2, 3), 16.15: (2, 3), 16.25: (2, 4)}
    for load, replicas in steps.items():
        assert tuple(plan.at(load).values()) == replicas, load
    assert plan.at(1000.0) == plan.at(20.0) == {"first": 2, "second": 4}


def test_cores_are_shared_over_the_stages():
    """Of 9 cores, the most is carried by 2 and 3 replicas, although the second stage could have 4."""
    plan = plan_replicas(chain(capacity=9), RUNNING, Weights(), SIMULATION)
    assert plan.loads[-1] == 15.0
    assert plan.at(100.0) == {"first": 2, "second": 3}


def every_choice(pipeline: Pipeline, running: dict[str, tuple[str, int]]):
    """All configurations within the limits that run what is given."""
    fixed = [(task.variant_index(running[task.name][0]), running[task.name][1]) for task in pipeline.tasks]
    for replicas in product(range(1, pipeline.max_replicas + 1), repeat=len(fixed)):
        found = tuple(StageConfiguration(z, f, b) for (z, b), f in zip(fixed, replicas, strict=True))
        if used_cores(pipeline, found) <= pipeline.capacity:
            yield found


@settings(max_examples=15)
@given(pipelines(), st.data())
def test_no_other_replicas_have_a_higher_reward(pipeline, data):
    running = {
        task.name: (data.draw(st.sampled_from(task.variants)).name, data.draw(st.sampled_from(pipeline.batch_sizes)))
        for task in pipeline.tasks
    }
    if not (choices := list(every_choice(pipeline, running))):
        return
    level, weights = pipeline.service_level, Weights()
    for objective in (weights, level):
        plan = plan_replicas(pipeline, running, objective, SIMULATION)
        for load in plan.loads[[0, 40, 150]]:
            if objective is weights:
                values = {each: predicted_reward(pipeline, each, load, weights, 0.25) for each in choices}
            else:
                carrying = [each for each in choices if throughput(pipeline, each) >= load]
                values = {each: predicted_service_reward(pipeline, each, load, level, SIMULATION) for each in carrying}
            chosen = [each for each in choices if tuple(s.replicas for s in each) == tuple(plan.at(load).values())]
            assert values[chosen[0]] == pytest.approx(max(values.values()), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    ("running", "error", "message"),
    [
        ({"first": ("fast", 1)}, KeyError, "say what task 'second' of pipeline 'chain' runs"),
        (RUNNING | {"second": ("huge", 1)}, KeyError, "task 'second' has no variant 'huge'; it has fast, slow"),
        (RUNNING | {"first": ("fast", 3)}, ValueError, "cannot run batches of 3: pipeline 'chain' has profiles for 1"),
    ],
)
def test_what_runs_must_be_known(running, error, message):
    with pytest.raises(error, match=message):
        plan_replicas(chain(), running, Weights(), SIMULATION)


def test_too_many_combinations_are_refused(monkeypatch):
    monkeypatch.setattr("opd.solvers.replicas.MAX_CHOICES", 10)
    with pytest.raises(ValueError, match="combinations of replicas, more than 10 to compare; lower its limits"):
        plan_replicas(chain(), RUNNING, Weights(), SIMULATION)


def test_a_plan_never_falls_below_the_load_that_it_is_for():
    pipeline = ocr_pipeline()
    running = {task.name: (task.variants[0].name, 2) for task in pipeline.tasks}
    plan = plan_replicas(pipeline, running, pipeline.service_level, SIMULATION)
    rate = np.array([task.variants[0].throughput(2) for task in pipeline.tasks])
    for load, replicas in zip(plan.loads, plan.replicas, strict=True):
        assert (replicas * rate >= load - 1e-9).all()
