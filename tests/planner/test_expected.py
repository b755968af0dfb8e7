"""Expected reward in closed form: rates by hand, and rewards as the simulator finds them."""

from __future__ import annotations

import numpy as np
import pytest
from small_pipelines import ocr_pipeline, stages

from opd.measurement import SimulationParameters, StageState, idle_observation
from opd.objective import Weights
from opd.pipeline import as_array
from opd.planner.expected import BUSIEST, WAITING_SHARE, expected_rewards, ready_rates, waiting_times
from opd.planner.lookahead import Planner, PlannerParameters
from opd.planner.present import present_stages
from opd.solvers.exact import solver_for

QUIET = SimulationParameters(service_noise=0.0)
NOTHING = np.zeros((0, 2))


def stage(*replicas: tuple[float, float], waiting: int = 0) -> StageState:
    """Idle replicas of a variant that are ready after so many seconds."""
    rows = np.array([[variant, ready, 0.0, np.inf] for variant, ready in replicas])
    return StageState(np.zeros((waiting, 2)), NOTHING, rows)


def rates(candidate, *present: StageState, intervals: int = 2) -> np.ndarray:
    return ready_rates(ocr_pipeline(), present, as_array(candidate)[None], 10.0, intervals)[0]


def test_rates_of_what_runs():
    """A replica of detection serves 1 / 0.1 = 10 requests/s, one of recognition 20."""
    found = rates(stages((0, 2, 1), (0, 1, 1)), stage((0, 0.0), (0, 0.0)), stage((0, 0.0)))
    np.testing.assert_allclose(found, [[20.0, 20.0], [20.0, 20.0]])


def test_replicas_count_from_when_they_serve():
    """One more of detection takes 1 s to start; one of recognition that was started is ready after 4 s."""
    found = rates(stages((0, 2, 1), (0, 2, 1)), stage((0, 0.0)), stage((0, 0.0), (0, 4.0)))
    np.testing.assert_allclose(found, [[10.0 + 0.9 * 10.0, 20.0 + 0.6 * 20.0], [20.0, 40.0]])


def test_the_running_variant_goes_on_until_the_other_serves():
    """Two of the small model go on for the 2 s that one of the large one takes to start."""
    found = rates(stages((1, 1, 1), (0, 1, 1)), stage((0, 0.0), (0, 0.0)), stage((0, 0.0)))
    np.testing.assert_allclose(found, [[0.2 * 20.0 + 0.8 * 5.0, 20.0], [5.0, 20.0]])


def test_surplus_replicas_leave_at_once():
    found = rates(stages((0, 1, 2), (0, 1, 1)), stage((0, 0.0), (0, 0.0), (0, 5.0)), stage((0, 0.0)))
    np.testing.assert_allclose(found, [[12.5, 20.0], [12.5, 20.0]])


def test_waiting_times_of_one_server_are_those_of_regular_service():
    """M/D/1: rho s / (2 (1 - rho)); at most as for a server that is busy 95 % of the time."""
    one = np.array([0, 1, 1])
    for busy in (0.1, 0.5, 0.9):
        found = waiting_times(np.array(busy * 10.0), np.array(10.0), np.array(0.1), one)
        assert found == pytest.approx(0.1 * busy / (2.0 * (1.0 - busy)))
    found = waiting_times(np.array(30.0), np.array(10.0), np.array(0.1), one)
    assert found == pytest.approx(0.1 * BUSIEST / (2.0 * (1.0 - BUSIEST)))


def test_more_servers_of_the_same_rate_wait_less():
    found = [
        float(waiting_times(np.array(8.0), np.array(10.0), np.array(0.1 * n), np.array([0, n, 1]))) for n in (1, 2, 4)
    ]
    assert found == sorted(found, reverse=True)


def test_the_reward_by_hand():
    """Of what runs at 8 requests/s with 10 and 20 served: nothing but the waiting time is estimated."""
    pipeline, weights = ocr_pipeline(), Weights(alpha=1.0, beta=0.5, gamma=2.0, delta=0.25, cost_weight=0.1)
    present, candidate = (stage((0, 0.0)), stage((0, 0.0))), as_array(stages((0, 1, 1), (0, 1, 1)))[None]
    found = expected_rewards(pipeline, weights, QUIET, present, candidate, np.array([[8.0], [12.0]]))
    fixed = 1.125 + 0.5 * 10.0 - 0.15 - 0.1 * 2.0 - weights.batch_weight
    balance = -(0.25 * 2.0 + 2.0 * 2.0) / 2.0
    queueing = [
        [0.1 * busy / (2.0 * (1.0 - busy)) for busy in (0.8, BUSIEST)],
        [0.05 * r / (2 - 2 * r) for r in (0.4, 0.6)],
    ]
    assert found[0] == pytest.approx(fixed + balance - WAITING_SHARE * np.mean(np.add(*queueing)))


def test_what_waits_is_demand_of_the_first_interval():
    """20 requests are 2 requests/s for ten seconds, in one of two intervals; replicas have spare capacity for them."""
    weights = Weights(alpha=0.0, beta=0.0, gamma=2.0, delta=0.25, cost_weight=0.0)
    candidate = as_array(stages((0, 1, 1), (0, 1, 1)))[None]
    both = [
        float(expected_rewards(ocr_pipeline(), weights, QUIET, present, candidate, np.full((1, 2), 1.0))[0])
        for present in ((stage((0, 0.0)), stage((0, 0.0))), (stage((0, 0.0), waiting=20), stage((0, 0.0))))
    ]
    wait = [s * busy / (2.0 * (1.0 - busy)) for s in (0.1, 0.05) for busy in (s * 1.0, s * 3.0)]
    waited = WAITING_SHARE * (wait[1] - wait[0] + wait[3] - wait[2])
    assert both[1] - both[0] == pytest.approx((0.25 * 2.0 - waited) / 2.0)


def test_the_best_candidate_of_rollouts_is_a_promising_one():
    """What many rollouts find to be best is in the best third of the closed form, so that a planner keeps it."""
    pipeline, weights = ocr_pipeline(), Weights()
    planner = Planner(
        pipeline, weights, QUIET, solver_for(weights, QUIET), PlannerParameters(futures=(64,), tried=10**6)
    )
    observation = idle_observation(pipeline)
    rng = np.random.default_rng(0)
    for load in (2.0, 6.0, 12.0):
        counts = rng.poisson(load, (64, planner.seconds))
        candidates, values = planner.compare(observation, counts, rng)
        means = counts.reshape(64, -1, 10).mean(axis=2)
        expected = expected_rewards(pipeline, weights, QUIET, present_stages(pipeline, observation), candidates, means)
        assert np.argmax(values) in np.argsort(-expected)[: len(candidates) // 3]


def test_the_planner_tries_the_most_promising_candidates_only():
    pipeline, weights = ocr_pipeline(), Weights()
    observation, rng = idle_observation(pipeline), np.random.default_rng(0)
    effort = PlannerParameters(futures=(2,), tried=5)
    planner = Planner(pipeline, weights, QUIET, solver_for(weights, QUIET), effort)
    counts = rng.poisson(4.0, (2, planner.seconds))
    assert len(planner.candidates(observation)) > 5
    assert len(planner.compare(observation, counts, rng)[0]) == 5
