"""Recommendations: ranked configurations that keep a level, and what binds where none does."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from small_pipelines import ocr_pipeline

from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel, StageConfiguration, Task, Variant, check_feasible
from opd.profiling.pipelines import load_pipeline
from opd.solvers.service_level import greedy_for_level
from opd.study import recommendation
from opd.study.recommendation import Recommendation, recommend

VIDEO = load_pipeline("video")
SLOW = Task("slow", (Variant("only", 0.8, 2, {1: 0.4, 2: 0.7}, 1.0),))
ROUGH, FINE = Variant("rough", 0.5, 1, {1: 0.02, 2: 0.03}, 1.0), Variant("fine", 0.9, 2, {1: 0.1, 2: 0.2}, 1.0)
QUICK = Task("quick", (ROUGH, FINE))
TWO = Pipeline("two", (SLOW, QUICK), 8, 4, 2, ServiceLevel(1.0))


def only_limit(answer: Recommendation):
    assert not answer.reached
    (limit,) = answer.limits
    return limit


def test_recommendations_keep_the_level_and_are_ranked_by_reward():
    level = ServiceLevel(1.0, accuracy_weight=10.0)
    answer = recommend(VIDEO, 15.0, level=level)
    assert answer.reached and not answer.limits
    assert 2 <= len(answer.configurations) <= 10
    rewards = [each.reward for each in answer.configurations]
    assert rewards == sorted(rewards, reverse=True)
    for each in answer.configurations:
        check_feasible(VIDEO, each.configuration)
        assert each.latency_p50 <= each.latency_p95 <= each.latency_p99
        assert each.keeps_level == (each.within >= 0.95)
        assert each.latency_at_level == each.latency_p95
    best = answer.configurations[0]
    assert best.reward == pytest.approx(10.0 * best.accuracy - best.cores)


def test_the_cheapest_recommendation_is_no_dearer_than_the_solver():
    # The solver plans with a margin; the simulator shows what is enough.
    planned = greedy_for_level(VIDEO, 15.0, ServiceLevel(1.0), SimulationParameters())
    answer = recommend(VIDEO, 15.0, level=ServiceLevel(1.0))
    cores = sum(variant.cores * stage.replicas for variant, stage in VIDEO.selected(planned))
    assert answer.configurations[0].keeps_level and answer.configurations[0].cores <= cores


def test_the_same_question_has_the_same_answer():
    assert recommend(TWO, 2.0, 3) == recommend(TWO, 2.0, 3)
    assert len(recommend(TWO, 2.0, 3).configurations) == 3


def test_an_accuracy_floor_is_kept():
    free, floored = (recommend(TWO, 2.0, level=ServiceLevel(1.2, accuracy_floor=floor)) for floor in (0.0, 0.8))
    assert free.configurations[0].accuracy == pytest.approx(0.65)
    assert floored.reached and floored.configurations[0].accuracy == pytest.approx(0.85)


def test_a_load_that_no_replicas_carry_names_the_stage_and_the_nearest_load():
    limit = only_limit(recommend(dataclasses.replace(TWO, capacity=64), 40.0))
    # Four replicas of two requests in 0.7 s: 11.4 requests/s.
    assert (limit.quantity, limit.stage, limit.cores) == ("load", "slow", None)
    assert limit.nearest == pytest.approx(4 * 2 / 0.7)
    assert limit.text == (
        "40 requests/s cannot be carried: stage slow carries 11.4 requests/s at most, with 4 replicas of variant only "
        "in batches of 2; nearest: 11.4 requests/s"
    )
    assert recommend(TWO, 40.0).configurations == ()


def test_a_load_that_needs_more_cores_names_how_many():
    # Three replicas of two cores for 8 requests/s, and one core for the other stage.
    limit = only_limit(recommend(dataclasses.replace(TWO, capacity=6), 8.0))
    assert (limit.quantity, limit.stage, limit.cores) == ("load", "slow", 7)
    assert limit.nearest == pytest.approx(2 * 2 / 0.7)
    assert "8 requests/s need at least 7 cores, 6 of them in stage slow; the device has 6" in limit.text


def test_a_latency_that_no_cores_reach_names_the_stage_and_the_nearest_latency():
    answer = recommend(TWO, 2.0, level=ServiceLevel(0.3))
    limit = only_limit(answer)
    assert (limit.quantity, limit.stage, limit.cores) == ("latency", "slow", None)
    assert (
        "0.3 s for 95 % of the requests at 2 requests/s cannot be reached: stage slow needs at least 0.4" in limit.text
    )
    assert limit.nearest == answer.configurations[0].latency_at_level
    assert 0.42 < limit.nearest < 0.6
    assert "nearest: " in limit.text and "slow 3 x only batch 1" in limit.text


def test_a_latency_that_needs_more_cores_names_how_many():
    tight = dataclasses.replace(TWO, capacity=3)
    limit = only_limit(recommend(tight, 2.0, level=ServiceLevel(0.6)))
    assert limit.quantity == "latency" and limit.cores is not None and limit.cores > 3
    assert recommend(dataclasses.replace(TWO, capacity=limit.cores + 1), 2.0, level=ServiceLevel(0.6)).reached


def test_an_accuracy_that_no_variant_has_names_the_stage_and_the_nearest_accuracy():
    limit = only_limit(recommend(TWO, 2.0, level=ServiceLevel(1.2, accuracy_floor=0.9)))
    assert (limit.quantity, limit.stage, limit.cores) == ("accuracy", "slow", None)
    assert limit.nearest == pytest.approx(0.85)
    assert (
        "a mean accuracy of 0.9 cannot be reached at 2 requests/s: stage slow has 0.8 at most, with variant only"
        in (limit.text)
    )


def test_accuracy_and_latency_that_exclude_each_other_are_named_together():
    answer = recommend(TWO, 2.0, level=ServiceLevel(0.52, accuracy_floor=0.85))
    limit = only_limit(answer)
    assert limit.quantity == "accuracy and latency" and limit.nearest == pytest.approx(0.65)
    assert "nearest: 0.65 within that latency, or with that accuracy nearest: " in limit.text


def test_a_trace_is_simulated_instead_of_a_steady_load():
    quiet = recommend(TWO, 4.0, 1, trace=np.zeros(30, dtype=np.int64) + 1)
    busy = recommend(TWO, 4.0, 1, trace=np.tile([0, 8], 15))
    assert quiet.configurations[0].latency_p95 < busy.configurations[0].latency_p95
    with pytest.raises(ValueError, match="a trace of 19 s is too short; it must last for 20 s, two intervals"):
        recommend(TWO, 4.0, trace=np.ones(19, dtype=np.int64))


@pytest.mark.parametrize(
    ("load", "top", "message"),
    [
        (0.0, 1, "a load of 0 requests/s needs no"),
        (np.nan, 1, "load nan requests/s"),
        (1.0, 0, "top 0 recommends nothing"),
    ],
)
def test_a_question_without_sense_is_refused(load, top, message):
    with pytest.raises(ValueError, match=message):
        recommend(TWO, load, top)


def test_tables_and_json_show_everything_and_what_was_assumed():
    assumed = dataclasses.replace(SLOW.variants[0], assumed=True)
    pipeline = dataclasses.replace(TWO, tasks=(dataclasses.replace(SLOW, variants=(assumed,)), QUICK))
    answer = recommend(pipeline, 2.0, 2)
    table = answer.as_table()
    assert table["assumed"].all() and list(table["cores"]) == [each.cores for each in answer.configurations]
    document = json.loads(json.dumps(answer.as_json(), allow_nan=False))
    first = document["configurations"][0]
    assert first["stages"] == [stage._asdict() for stage in answer.configurations[0].configuration]
    assert document["service_level"]["seconds"] == 1.0 and document["reached"] is True
    assert not recommend(TWO, 2.0, 1).as_table()["assumed"].any()


def test_nothing_that_fits_is_better_than_the_first_recommendation():
    # Every configuration of a small pipeline, simulated by the same code.
    pipeline = dataclasses.replace(ocr_pipeline(), service_level=ServiceLevel(0.6, accuracy_weight=4.0))
    stages = [
        itertools.product(range(len(task.variants)), range(1, pipeline.max_replicas + 1), pipeline.batch_sizes)
        for task in pipeline.tasks
    ]
    every = [tuple(itertools.starmap(StageConfiguration, rows)) for rows in itertools.product(*map(list, stages))]
    parameters = SimulationParameters()
    counts = recommendation._steady_counts(6.0, parameters.interval, 0)
    feasible = [c for c in every if sum(v.cores * s.replicas for v, s in pipeline.selected(c)) <= pipeline.capacity]
    rewards = [
        recommendation._judge(pipeline, c, pipeline.service_level, parameters, counts, 0).reward for c in feasible[::3]
    ]
    assert recommend(pipeline, 6.0).configurations[0].reward >= max(rewards) - 1e-9
