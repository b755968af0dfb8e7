"""Lessons: traces that are not here are left out, and forecasters that are here are read if they are the same."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from small_trainings import BARELY

from opd.agent import lessons, practice
from opd.agent.description import describe
from opd.agent.lessons import forecaster_for, prepare_lesson, traces_here
from opd.measurement import SimulationParameters
from opd.workload.forecast import Forecaster, ForecastParameters
from opd.workload.futures import HISTORY_SECONDS


def test_traces_that_are_not_here_are_left_out(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_TWITTER_TRACE", str(tmp_path / "nowhere.tbz2"))
    (mine,) = prepared.sources
    asked = ["synthetic", "twitter", str(tmp_path / "missing.csv"), str(tmp_path), mine]
    assert traces_here(asked) == ["synthetic", mine]
    (tmp_path / "nowhere.tbz2").touch()
    assert traces_here(["twitter"]) == ["twitter"]


def test_a_lesson_has_the_training_days_of_every_trace(prepared):
    lesson, (name,) = prepared.lesson, prepared.forecasters
    trace, load = lesson.traces[name], lesson.loads[name]
    assert (name, trace.damping) == ("waves.csv", 8)
    np.testing.assert_array_equal(load.workload.counts, trace.counts[trace.split("train")])
    assert len(load.quantiles) == len(load.workload.forecasts) == load.workload.decisions + 1
    assert load.futures.forecaster is prepared.forecasters[name]


def test_the_traces_take_turns(prepared, monkeypatch):
    """Of two traces, pipelines of even seeds meet the first: ten times the load, and so ten times the damping."""
    monkeypatch.setattr(practice, "describe", partial(describe, solved_loads=2))
    (trace,), (load,) = prepared.lesson.traces.values(), prepared.lesson.loads.values()
    larger = type(trace)("larger", 10 * trace.recorded, trace.raw_index, trace.damping)
    lesson = prepared.lesson._replace(
        traces={"larger": larger, "waves": trace},
        loads={"larger": load._replace(bursts=load.bursts[:0]), "waves": load},
    )
    assert lesson.problem(0).load.futures.factor == pytest.approx(
        10.0 * prepared.lesson.problem(0).load.futures.factor, rel=0.1
    )
    assert lesson.problem(1).load.futures.factor == prepared.lesson.problem(1).load.futures.factor


class Training(Exception):
    """A forecaster would be trained."""


def prepare_again(prepared, monkeypatch, *, source=None, damping=8, parameters=BARELY, seed=3):
    """Prepare a lesson, by default the same one, where every training raises :class:`Training`."""

    def refuse(*given):
        raise Training

    monkeypatch.setattr(lessons, "train_forecaster", refuse)
    sources = prepared.sources if source is None else [str(source)]
    return prepare_lesson(sources, damping, parameters, SimulationParameters(), seed, prepared.folder)


def test_forecasters_are_read_if_they_are_there(prepared, monkeypatch):
    lesson, forecasters = prepare_again(prepared, monkeypatch)
    (read,), (trained,) = forecasters.values(), prepared.forecasters.values()
    history = np.arange(HISTORY_SECONDS)
    assert read is not trained and read.predict(history) == trained.predict(history)
    assert (read.parameters, read.seed) == (trained.parameters, 3)
    for name, load in lesson.loads.items():
        np.testing.assert_array_equal(load.quantiles, prepared.lesson.loads[name].quantiles)


@pytest.mark.parametrize(
    "other",
    [{"damping": 4}, {"parameters": replace(BARELY, epochs=2)}, {"seed": 4}],
    ids=lambda other: next(iter(other)),
)
def test_a_forecaster_of_another_training_is_not_used(prepared, monkeypatch, other):
    with pytest.raises(Training):
        prepare_again(prepared, monkeypatch, **other)


def test_a_forecaster_of_a_trace_that_has_changed_is_not_used(prepared, tmp_path, monkeypatch):
    """Only the training days count; one request more in the last second of the file changes nothing."""
    counts = pd.read_csv(prepared.sources[0])
    for second, trained_again in ((-1, False), (0, True)):
        changed = counts.copy()
        changed.iloc[second] += 8
        changed.to_csv(tmp_path / "waves.csv", index=False)
        with pytest.raises(Training) if trained_again else nullcontext():
            prepare_again(prepared, monkeypatch, source=tmp_path / "waves.csv")


def test_a_forecaster_whose_file_is_damaged_is_trained_again(prepared, tmp_path):
    path = tmp_path / "forecaster.npz"
    path.write_bytes(b"no archive")
    (trace,), (trained,) = prepared.lesson.traces.values(), prepared.forecasters.values()
    again = forecaster_for(trace, BARELY, 3, path)
    history = np.arange(HISTORY_SECONDS)
    assert again.predict(history) == Forecaster.load(path).predict(history) == trained.predict(history)


def test_every_trace_gets_a_forecaster_of_its_own(prepared, tmp_path, monkeypatch):
    """A second trace beside one that has a forecaster already: only the second one's is trained."""
    (first,) = prepared.sources
    content = (prepared.folder / "waves.csv").read_bytes()
    (tmp_path / "others.csv").write_bytes(content)
    (tmp_path / "forecaster-waves.csv.npz").write_bytes((prepared.folder / "forecaster-waves.csv.npz").read_bytes())
    trained = []

    def noting(trace, parameters, seed) -> Forecaster:
        trained.append((trace.name, seed))
        return prepared.forecasters["waves.csv"]

    monkeypatch.setattr(lessons, "train_forecaster", noting)
    both = [first, str(tmp_path / "others.csv")]
    lesson, forecasters = prepare_lesson(both, 8, BARELY, SimulationParameters(), 3, tmp_path)
    assert trained == [("others.csv", 3)]
    assert (tmp_path / "forecaster-others.csv.npz").is_file()
    assert list(lesson.traces) == list(lesson.loads) == list(forecasters) == ["waves.csv", "others.csv"]


def test_without_a_trace_there_is_no_lesson(tmp_path):
    with pytest.raises(ValueError, match="no trace to learn from; name one"):
        prepare_lesson([], 8, ForecastParameters(), SimulationParameters(), 0, tmp_path)


def test_two_traces_of_one_name_are_refused(prepared, tmp_path):
    (first,) = prepared.sources
    (tmp_path / "waves.csv").write_bytes((prepared.folder / "waves.csv").read_bytes())
    given = 8, ForecastParameters(), SimulationParameters(), 0, tmp_path / "forecasters"
    with pytest.raises(ValueError, match=rf"traces {first}, {tmp_path}/waves.csv are called 'waves.csv', .* rename"):
        prepare_lesson([first, str(tmp_path / "waves.csv")], *given)
    assert not (tmp_path / "forecasters").exists()
