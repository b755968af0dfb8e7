"""The planner: candidates, the present state, and decisions that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, stages

from opd.control.factory import build_policy
from opd.measurement import Observation, SimulationParameters, StageState, idle_observation
from opd.objective import Weights
from opd.pipeline import Pipeline, ServiceLevel, as_array, as_configuration, check_feasible
from opd.planner.candidates import feasible, neighbours
from opd.planner.lookahead import Planner, PlannerParameters
from opd.planner.present import present_stages
from opd.simulator.backend import SimulatedBackend
from opd.solvers import IpaParameters
from opd.solvers.exact import solver_for

PARAMETERS = SimulationParameters(service_noise=0.0)
IPA = IpaParameters()


def planner_of(pipeline: Pipeline, weights: Weights | ServiceLevel, **effort: object) -> Planner:
    effort = PlannerParameters(**effort)  # type: ignore[arg-type]
    return Planner(pipeline, weights, PARAMETERS, solver_for(weights, PARAMETERS), effort)


def observed(pipeline: Pipeline, load: float, queue: tuple[float, float] = (0.0, 0.0)) -> Observation:
    history = np.full(120, int(load), dtype=np.int64)
    return replace(
        idle_observation(pipeline), history=history, predicted_load=load, incoming_load=load, queue=np.array(queue)
    )


def test_neighbours_differ_in_one_stage():
    pipeline = ocr_pipeline()
    here = as_array(stages((0, 1, 1), (1, 2, 2)))
    found = neighbours(pipeline, here)
    assert (found[0] == here).all()
    assert ((found[1:] != here).any(axis=2).sum(axis=1) == 1).all()
    # 1 other variant, 3 numbers of replicas and 2 batch sizes in the first stage; 2, 3 and 2 in the second
    assert len(found) == 1 + 6 + 7


@given(rows=st.lists(st.tuples(*[st.integers(-1, 5)] * 6), min_size=1, max_size=30))
def test_what_is_kept_is_feasible_and_unique(rows: list[tuple[int, ...]]):
    pipeline = ocr_pipeline()
    asked = np.array(rows).reshape(-1, 2, 3)
    asked[..., 0] = np.clip(asked[..., 0], 0, [1, 2])
    asked[..., 2] = 2 ** np.clip(asked[..., 2], 0, 2)
    kept = feasible(pipeline, asked)
    for configuration in kept:
        check_feasible(pipeline, as_configuration(configuration))
    assert len({each.tobytes() for each in kept}) == len(kept)
    small = as_array(pipeline.smallest_configuration())
    assert (feasible(pipeline, np.concatenate([asked, small[None]])) == small).all(axis=(1, 2)).any()


def test_the_present_of_a_live_pipeline_is_what_its_figures_suggest():
    pipeline = ocr_pipeline()
    seen = replace(
        observed(pipeline, 10.0, queue=(4.0, 0.0)),
        configuration=stages((0, 2, 1), (0, 1, 2)),
        task_latency=np.array([0.5, 0.1]),
    )
    first, second = present_stages(pipeline, seen)
    # Two replicas of 0.1 s a request serve four in 0.2 s.
    np.testing.assert_allclose(first.waiting[:, 0], [0.175, 0.125, 0.075, 0.025])
    np.testing.assert_allclose(first.waiting[:, 1], first.waiting[:, 0])
    assert first.replicas.tolist() == [[0.0, 0.0, 0.0, np.inf]] * 2
    assert len(second.waiting) == len(first.in_service) == 0


def test_the_present_of_a_backend_that_knows_it_is_taken_as_it_is():
    known = (StageState(np.zeros((1, 2)), np.zeros((0, 2)), np.zeros((1, 4))),) * 2
    assert present_stages(ocr_pipeline(), replace(observed(ocr_pipeline(), 1.0), stages=known)) is known


def test_without_load_the_cheapest_configuration_is_best():
    """Eq. 7 without accuracy and throughput is latency and cost, and only cost where nothing arrives."""
    pipeline, weights = ocr_pipeline(), Weights(alpha=0.0, beta=0.0, gamma=0.0, delta=0.0)
    planner = planner_of(pipeline, weights)
    nothing = np.zeros((planner.futures, planner.seconds), dtype=np.int64)
    assert planner.decide(observed(pipeline, 0.0), nothing, np.random.default_rng(0)) == stages((0, 1, 1), (0, 1, 1))


def test_a_backlog_that_the_forecast_does_not_show_is_planned_for():
    """One replica carries the load; with 60 requests waiting, more are started."""
    pipeline, weights = ocr_pipeline(), Weights(alpha=0.0)
    planner = planner_of(pipeline, weights)
    future = np.full((planner.futures, planner.seconds), 3, dtype=np.int64)
    calm = planner.decide(observed(pipeline, 3.0), future, np.random.default_rng(0))
    busy = planner.decide(observed(pipeline, 3.0, queue=(60.0, 0.0)), future, np.random.default_rng(0))
    assert busy[0].replicas / pipeline.tasks[0].variants[busy[0].variant].service_time(busy[0].batch_size) > (
        calm[0].replicas / pipeline.tasks[0].variants[calm[0].variant].service_time(calm[0].batch_size)
    )


@settings(deadline=None, max_examples=20)
@given(
    capacity=st.integers(2, 12),
    load=st.floats(0.0, 60.0),
    queue=st.tuples(st.floats(0.0, 200.0), st.floats(0.0, 200.0)),
    level=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_decision_is_feasible(capacity: int, load: float, queue: tuple[float, float], level: bool, seed: int):
    pipeline = ocr_pipeline(capacity=capacity)
    objective = pipeline.service_level if level else Weights()
    policy = build_policy("lookahead", pipeline, objective, PARAMETERS, IPA, seed=seed, simulated=True)
    check_feasible(pipeline, policy.decide(observed(pipeline, load, queue)))


def test_a_decision_depends_on_the_seed_alone():
    pipeline = ocr_pipeline()
    seen = observed(pipeline, 12.0, queue=(5.0, 3.0))
    policies = [build_policy("lookahead", pipeline, Weights(), PARAMETERS, IPA, seed=3, simulated=True) for _ in "ab"]
    policies[0].warm_up(idle_observation(pipeline))
    first, second = ([policy.decide(seen) for _ in range(3)] for policy in policies)
    assert first == second


def test_with_no_time_the_best_of_the_first_round_is_decided():
    pipeline, weights = ocr_pipeline(), Weights()
    counts = np.random.default_rng(1).poisson(8.0, (56, 30))
    hurried = planner_of(pipeline, weights, milliseconds=0.0)
    one_round = planner_of(pipeline, weights, futures=(8,))
    seen = observed(pipeline, 8.0)
    decided = [each.decide(seen, counts, np.random.default_rng(0)) for each in (hurried, one_round)]
    assert decided[0] == decided[1]


def test_fewer_cores_are_respected():
    pipeline = ocr_pipeline(capacity=8)
    policy = build_policy("lookahead", pipeline, Weights(), PARAMETERS, IPA, simulated=True)
    seen = replace(observed(pipeline, 30.0), available_cores=3.0)
    check_feasible(replace(pipeline, capacity=3), policy.decide(seen))


def test_foresight_needs_a_backend_that_knows_the_future():
    pipeline = ocr_pipeline()
    policy = build_policy("foresight", pipeline, Weights(), PARAMETERS, IPA, simulated=True)
    with pytest.raises(ValueError, match="only the simulated backend"):
        policy.decide(observed(pipeline, 5.0))
    with pytest.raises(ValueError, match="not one of"):
        build_policy("foresight", pipeline, Weights(), PARAMETERS, IPA)


def test_foresight_scales_up_before_a_burst():
    """The load rises from 2 to 18 requests/s in the next interval; the forecast does not say so."""
    pipeline, weights = ocr_pipeline(), Weights()
    history, counts = np.full(120, 2), np.concatenate([np.full(10, 2), np.full(10, 18), np.full(40, 18)])
    start = stages((0, 1, 1), (0, 1, 1))
    backend = SimulatedBackend(pipeline, PARAMETERS, history, counts[10:], start, seed=0)
    policy = build_policy("foresight", pipeline, weights, PARAMETERS, IPA, simulated=True)
    decided = policy.decide(replace(backend.observe(), predicted_load=2.0))
    carried = [stage.replicas * variant.throughput(stage.batch_size) for variant, stage in pipeline.selected(decided)]
    assert min(carried) >= 15.0
