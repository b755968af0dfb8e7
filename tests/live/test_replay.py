"""Replays: what ran against its simulation, and what a policy is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from live_runs import LARGE, SMALL
from recorded_runs import COUNTS, HISTORY, PIPELINE, QUIET, recorded_run
from small_pipelines import stages

from opd.control.policies import Policy
from opd.control.record import read_record
from opd.live.replay import (
    RAN,
    Course,
    ReplayedPolicy,
    ReplayLoad,
    figures,
    replay_policies,
    simulator_error,
    verdicts,
)
from opd.live.replay_page import figure_rows, render_replay
from opd.objective import Weights


class Fixed(Policy):
    """Decides the same every time, and keeps what it was told."""

    def __init__(self, configuration, seen=None):
        self.configuration, self.seen = configuration, [] if seen is None else seen

    def warm_up(self, observation):
        pass

    def decide(self, observation):
        self.seen.append(observation)
        return self.configuration


def fixed(configuration, seen=None, name="fixed"):
    return ReplayedPolicy(name, lambda seed: Fixed(configuration, seen), lambda history: 4.0)


def replayed(load, *contenders, seeds=range(2)):
    return replay_policies(PIPELINE, Weights(), QUIET, load, contenders, seeds)


@pytest.fixture
def record(tmp_path):
    recorded_run(tmp_path / "run.jsonl")
    return read_record(tmp_path / "run.jsonl", PIPELINE)


def test_what_ran_is_simulated_as_it_was_measured(record):
    found = replayed(ReplayLoad.recorded(record), fixed(SMALL))
    assert found.baseline.name == RAN and found.error.intervals == 9
    assert abs(found.error.within) < 0.02 and found.error.lost == 0.0
    assert found.error.latency < 0.05  # requests arrive at other moments of the same seconds
    ran, simulated = figures(found.measured), found.baseline.mean
    assert ran.cores == simulated.cores == pytest.approx((5 * 2 + 4 * 8) / 9) and ran.reconfigurations == 1
    assert ran.accuracy == pytest.approx((5 * (0.5 + 0.625) + 4 * (0.75 + 0.875)) / 9 / 2)
    assert simulated.latency_mean == pytest.approx(ran.latency_mean, rel=0.05)


def test_a_policy_that_decides_what_ran_ends_like_it(record):
    steady = replace(record, configurations=record.configurations[:1].repeat(9, axis=0))
    ran = replayed(ReplayLoad.recorded(steady), fixed(SMALL))
    mine, other = ran.outcomes[0].mean, ran.baseline.mean
    assert (mine.cores, mine.within, mine.lost, mine.reconfigurations) == (2.0, 1.0, 0.0, 0.0)
    assert mine.latency_mean == pytest.approx(other.latency_mean, rel=0.05)
    (words,) = verdicts(ran)
    assert "2.00 cores instead of 2.00 of what ran (as many)" in words and "a difference within" in words


def test_the_device_is_as_slow_as_the_record_found_it(record):
    factor = np.full_like(record.calibration[0], 2.0)
    slow = replayed(ReplayLoad.recorded(replace(record, calibration=(factor, 0.0 * factor))), fixed(SMALL))
    assert (
        slow.outcomes[0].mean.latency_mean
        > 1.9 * replayed(ReplayLoad.recorded(record), fixed(SMALL)).outcomes[0].mean.latency_mean
    )


def test_a_policy_is_told_what_had_arrived_and_nothing_that_comes(record):
    def told(counts):
        seen = []
        replayed(ReplayLoad(HISTORY, counts, SMALL), fixed(LARGE, seen), seeds=[0])
        return seen

    seen, other = told(COUNTS), told(np.concatenate([COUNTS[:50], 3 * COUNTS[50:]]))
    for k, observation in enumerate(seen):
        assert observation.coming_load is observation.coming_counts is None and observation.stages == ()
        assert (observation.history == np.concatenate([HISTORY, COUNTS])[10 * k : 120 + 10 * k]).all()
    for mine, its in zip(seen[:6], other[:6], strict=True):  # the loads differ from the second 50 on
        assert (mine.history == its.history).all() and (mine.queue == its.queue).all()
        assert (mine.task_latency == its.task_latency).all()
    assert not (seen[6].history == other[6].history).all()


def test_queues_follow_from_the_policys_own_decisions():
    load = ReplayLoad(np.full(120, 15), np.full(60, 15), SMALL)
    few, many = [], []
    replayed(load, fixed(SMALL, few), fixed(stages((0, 3, 2), (0, 2, 2)), many), seeds=[0])
    assert few[-1].queue.sum() > 50 > many[-1].queue.sum() and few[-1].configuration == SMALL


def table(**columns):
    given = {"begin": [0.0, 10.0], "seconds": 10.0, "load": 1.0, "cores": 2.0, "accuracy": 0.5}
    counts = {"completed": 10.0, "within": 10.0, "dropped": 0.0, "latency_mean": 0.1, "latency_p99": 0.2}
    return pd.DataFrame({**given, **counts, **columns})


def test_the_error_counts_the_intervals_that_were_measured():
    measured = Course(RAN, True, table(completed=[10.0, np.nan], within=[9.0, np.nan], latency_mean=[0.2, np.nan]), 0)
    guesses = [Course(RAN, False, table(within=[8.0, 0.0], latency_mean=[0.1, 9.0]), 0)]
    found = simulator_error(measured, guesses)
    assert found.intervals == 1 and found.within == pytest.approx(-0.1)
    assert found.latency == found.latency_worst == pytest.approx(0.5)
    nothing = table(completed=np.nan, within=np.nan)
    assert simulator_error(Course(RAN, True, nothing, 0), guesses) is None
    assert np.isnan(figures(Course(RAN, True, nothing, 0)).within)


def test_a_trace_compares_policies_with_the_first(record):
    found = replayed(ReplayLoad(HISTORY, COUNTS, SMALL), fixed(SMALL, name="few"), fixed(LARGE, name="many"))
    assert found.measured is found.baseline is found.error is None
    (words,) = verdicts(found)
    assert words.startswith("many: 8.00 cores instead of 2.00 of few (300.0% more)")
    page = render_replay(found, "trace.csv")
    assert "the error of the simulator is unknown" in page and "measured</td>" not in page
    assert "many, simulated: 1 of 10 changed something" in page


def test_the_page_needs_no_other_file_and_says_what_is_measured(record):
    found = replayed(ReplayLoad.recorded(record), fixed(SMALL, name="<few>"))
    page = render_replay(found, "run.jsonl", 1_000_000_000.0)
    assert "<few>" not in page and "&lt;few&gt;, simulated" in page
    assert [row[:2] for row in figure_rows(found)] == [[RAN, "measured"], [RAN, "simulated"], ["<few>", "simulated"]]
    assert "2001-09-09 01:46:40" in page and "detection 2 x large batch 2" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")
    assert "#010203" not in page and "#0a0b" not in page and "var(--course2)" in page
