"""A real pipeline and a real control loop on a machine whose clock is set."""

import sys
import time

import numpy as np
import pytest
from deadlines import within
from tiny_local import INITIAL, PARAMETERS, Load, tiny_pipeline

from opd.control.loop import run
from opd.objective import Weights
from opd.serving import local
from opd.serving.local import LocalBackend
from opd.serving.monitoring.scraper import Scraper

pytestmark = [pytest.mark.processes, pytest.mark.slow]


class Same:
    """Always decides the same."""

    def decide(self, observation):
        return INITIAL


def test_the_loop_keeps_its_pace_and_decides_again_soon_after_the_clock_was_set(store, tmp_path, monkeypatch):
    """It is set forward by an hour, and then back by two. Waits have no other limit than the hour here."""
    clock, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: clock() + offset[0])
    monkeypatch.setattr(local, "open_monitor", lambda folder: Scraper())  # it has the clock of this process
    pipeline = tiny_pipeline()
    with LocalBackend(pipeline, PARAMETERS, INITIAL, tmp_path / "live", store) as backend:
        backend.begin_run()
        traffic = Load(backend, tmp_path, [5] * 600)
        loop = run(backend, pipeline, Same(), max, Weights(), sys.maxsize)
        for change in (0.0, 3600.0, -7200.0):
            offset[0] += change
            begin, steps = time.monotonic(), []
            with within():
                while not (steps and steps[-1].observation is not None and steps[-1].interval.completed[0] > 0.0):
                    steps.append(next(loop))
            assert time.monotonic() - begin >= 0.5 * PARAMETERS.interval * (len(steps) - 1), "no wait was left out"
            assert np.isfinite(steps[-1].score.reward).all() and 0.0 < steps[-1].observation.incoming_load < 50.0
            assert 0.0 < steps[-1].span.seconds < 3600.0
        traffic._process.interrupt()
    assert (traffic.records()["outcome"] == "completed").mean() > 0.9
