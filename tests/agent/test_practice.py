"""Episodes to practise on: what the agent sees in training is what it sees when it is deployed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import ocr_pipeline, steady_workload, varying_workload
from small_situations import QUIET, load_of, small_practice
from small_traces import make_trace

from opd.agent.description import Situations, core_price, situation_of
from opd.agent.practice import BURST_SHARE, DROP_PENALTY, Episodes, begin_practice, generated_problem, solved_choices
from opd.pipeline import Pipeline, as_configuration, check_feasible, used_cores
from opd.profiling.generated import generate_pipeline
from opd.workload.rescaled import RescaledFutures


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# --- loads -----------------------------------------------------------------------------------------------------------


def test_a_stretch_of_a_load_by_hand():
    whole = load_of(varying_workload(decisions=20), bursts=(3, 8, 12, 15))
    part = whole.stretch(8, 6)
    np.testing.assert_array_equal(part.workload.counts, whole.workload.counts[80:140])
    np.testing.assert_array_equal(part.workload.forecasts, whole.workload.forecasts[8:15])
    np.testing.assert_array_equal(part.quantiles, whole.quantiles[8:15])
    assert part.bursts.tolist() == [0, 4]


def test_a_rescaled_load_by_hand():
    """Known at damping 2, wanted at damping 8: a quarter of the load."""
    known = load_of(steady_workload(12, decisions=3))
    own = known.rescaled(np.full(30, 25), damping=8, factor=4.0)
    assert own.workload.counts.tolist() == [3] * 30
    assert own.workload.forecasts.tolist() == [3.0] * 4
    np.testing.assert_allclose(own.quantiles, known.quantiles / 4.0)
    assert isinstance(own.futures, RescaledFutures) and own.futures.factor == 4.0


@pytest.mark.parametrize("seed", [5, 10])
def test_a_generated_problem_has_its_own_load_on_its_own_device(seed):
    generated = generate_pipeline(seed)
    trace = make_trace(rng().poisson(300.0 + 200.0 * np.sin(np.arange(90_000) / 900.0)), damping=4)
    counts = trace.counts[trace.split("train")]
    known = load_of(steady_workload(100, decisions=len(counts) // 10))
    problem = generated_problem(seed, QUIET, trace, "train", known)
    assert known.workload.decisions > problem.load.workload.decisions > 1000
    busiest = trace.recorded[trace.split("train")].max() // generated.damping(int(trace.recorded.max()))
    assert problem.load.workload.counts.max() <= busiest + 1
    assert busiest == pytest.approx(generated.peak_load, rel=0.2)
    np.testing.assert_allclose(
        problem.load.workload.forecasts, 100.0 * 4.0 / generated.damping(int(trace.recorded.max()))
    )
    smallest = used_cores(problem.pipeline, problem.pipeline.smallest_configuration())
    assert smallest <= problem.pipeline.capacity <= generated.pipeline.capacity
    speed = problem.pipeline.tables.service_time[:, 0, 1] / generated.pipeline.tables.service_time[:, 0, 1]
    assert np.ptp(speed) < 1e-9 and 0.6 <= speed[0] <= 1.6


# --- episodes --------------------------------------------------------------------------------------------------------


def slow_to_start() -> Pipeline:
    """The small pipeline, whose replicas now start in 8 to 32 s and so over several decisions."""
    pipeline = ocr_pipeline()
    tasks = tuple(
        replace(task, variants=tuple(replace(each, startup_time=8.0 * each.startup_time) for each in task.variants))
        for task in pipeline.tasks
    )
    return replace(pipeline, tasks=tasks)


def test_the_agent_sees_in_training_what_it_sees_when_deployed():
    """Through changes of all kinds, the situations of episodes are those of their observations."""
    problem, random = small_practice(slow_to_start()), rng(4)
    d = problem.description
    episodes = begin_practice(problem, 4, 8, random)
    for _ in range(8):
        seen = episodes.situations()
        decisions = episodes.envs.decision
        alone = [situation_of(d, episodes.envs.observation(e), problem.load.quantiles[decisions[e]]) for e in range(4)]
        for name, together, parts in zip(Situations._fields, seen, zip(*alone, strict=True), strict=True):
            np.testing.assert_allclose(together, np.concatenate(parts), rtol=1e-9, atol=1e-9, err_msg=name)
            assert {part.dtype for part in parts} == {together.dtype}, name
        episodes.run(d.solved[random.integers(len(d.solved), size=4)])
    assert seen.starting.any() and seen.queue.any()


def test_what_an_interval_is_worth_is_in_cores_and_less_what_was_dropped():
    problem = small_practice(workload=steady_workload(14))
    episodes = Episodes(problem, np.array([1]), np.zeros((1, 2, 3), dtype=np.int64), 20, 0)
    dropped = 0
    for _ in range(6):
        value, score, interval = episodes.run(np.zeros((1, 2, 3), dtype=np.int64))
        expected = (score.reward - DROP_PENALTY * interval.dropped) / core_price(problem.objective)
        np.testing.assert_allclose(value, expected)
        dropped += int(interval.dropped[0])
    assert dropped > 0  # 14 requests/s on a replica that carries 10


def test_twin_episodes_meet_the_same_requests_whatever_they_run():
    problem = small_practice()
    twins = [begin_practice(problem, 3, 6, rng(9)) for _ in range(2)]
    for row in range(6):
        offered = [
            twin.run(np.repeat(problem.description.solved[[place]], 3, axis=0))[2].offered
            for twin, place in zip(twins, (row, -1), strict=True)
        ]
        np.testing.assert_array_equal(*offered)


def test_episodes_begin_before_bursts_and_anywhere_with_what_is_solved_for():
    problem = small_practice()
    many, length = 20, 10
    episodes = begin_practice(problem, many, length, rng(2))
    assert ((episodes.envs.decision >= 1) & (episodes.envs.decision < 200 - length)).all()
    before = round(BURST_SHARE * many)
    lead = problem.load.bursts[None] - episodes.envs.decision[:before, None]
    assert ((lead >= 1) & (lead <= length // 2)).any(axis=1).all()
    solved = {choices.tobytes() for choices in problem.description.solved}
    for configuration in episodes.envs.configurations:
        check_feasible(problem.pipeline, as_configuration(configuration))
    assert {choices.tobytes() for choices in episodes.situations().running} <= solved


def test_solved_choices_are_those_of_the_first_load_that_is_not_below():
    d = small_practice().description
    loads = np.array([0.0, d.loads[3], d.loads[3] + 1e-9, 1e9])
    np.testing.assert_array_equal(solved_choices(d, loads), d.solved[[0, 3, 4, -1]])
