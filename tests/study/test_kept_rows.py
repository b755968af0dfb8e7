"""Finished runs are kept under the conditions that they were made in."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from small_study import setting_on, waves

from opd.study.analysis import kept_rows
from opd.study.analysis.kept_rows import run_missing, setting_conditions

SETTING = setting_on(waves(), {})
COLUMNS = ["problem", "level", "policy", "seed", "result"]


class Problem(NamedTuple):
    name: str
    level: float
    runs: tuple[tuple[str, int], ...]

    @property
    def key(self):
        return {"problem": self.name, "level": self.level}


CELLS = [
    Problem(name, level, (("greedy", 0), ("agent", 0), ("mine:Own", 1))) for name in ("a", "b") for level in (0.1, 1e-3)
]


class Runs:
    """Notes what it runs; a result is the number of the run."""

    def __init__(self):
        self.ran = []

    def __call__(self, setting, cell):
        rows = []
        for policy, seed in cell.runs:
            self.ran.append((*cell.key.values(), policy, seed))
            label = policy.rpartition(":")[2]
            rows.append(cell.key | {"policy": label, "seed": seed, "result": len(self.ran)})
        return rows


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "folder" / "rows.csv"


def evaluated(runs, cells, kept, setting=SETTING) -> pd.DataFrame:
    return run_missing(runs, setting, cells, COLUMNS, kept)


def test_rows_come_in_the_order_of_the_cells(kept):
    rows = evaluated(runs := Runs(), CELLS, kept)
    assert list(rows.columns) == COLUMNS
    assert rows["result"].tolist() == list(range(1, 13))
    assert rows["policy"].tolist() == ["greedy", "agent", "Own"] * 4
    backwards = evaluated(runs, CELLS[::-1], kept)
    assert backwards["result"].tolist() == [10, 11, 12, 7, 8, 9, 4, 5, 6, 1, 2, 3]
    assert len(runs.ran) == 12


def test_an_interrupted_evaluation_goes_on(kept):
    class Interrupted(Runs):
        def __call__(self, setting, cell):
            if cell.name == "b":
                raise KeyboardInterrupt
            return super().__call__(setting, cell)

    with pytest.raises(KeyboardInterrupt):
        evaluated(Interrupted(), CELLS, kept)
    evaluated(runs := Runs(), CELLS, kept)
    assert {run[0] for run in runs.ran} == {"b"}


def test_a_further_policy_runs_alone(kept):
    some = [cell._replace(runs=cell.runs[:1]) for cell in CELLS]
    evaluated(Runs(), some, kept)
    evaluated(runs := Runs(), CELLS, kept)
    assert [run[2] for run in runs.ran] == ["agent", "mine:Own"] * 4


def test_only_the_agent_runs_again_where_its_weights_are_others(kept, tmp_path, monkeypatch):
    evaluated(Runs(), CELLS, kept)
    other = tmp_path / "agent.npz"
    other.write_bytes(b"other weights")
    monkeypatch.setattr(kept_rows, "SHIPPED", other)
    evaluated(runs := Runs(), CELLS, kept)
    assert [run[2] for run in runs.ran] == ["agent"] * 4


def test_a_trained_agent_runs_again_where_one_of_its_files_is_another(kept, tmp_path):
    files = [tmp_path / "one.npz", tmp_path / "two.npz"]
    for file in files:
        file.write_bytes(b"weights")
    trained = replace(SETTING, agents={(file.stem, "mine", seed): file for seed, file in enumerate(files)})
    before = [setting_conditions(trained, policy) for policy in ("mine", "greedy")]
    files[1].write_bytes(b"other weights")
    after = [setting_conditions(trained, policy) for policy in ("mine", "greedy")]
    assert before[0] != after[0] and before[1] == after[1]


def test_conditions_can_be_those_of_the_caller(kept):
    def evaluate(runs, number):
        run_missing(runs, None, CELLS, COLUMNS, kept, conditions=lambda shared, policy: number + (policy == "greedy"))
        return [run[2] for run in runs.ran]

    assert len(evaluate(Runs(), 0)) == 12
    assert evaluate(Runs(), 0) == []
    assert evaluate(Runs(), 1) == ["greedy", "agent", "mine:Own"] * 4


def test_another_load_forecaster_or_device_has_other_results():
    class Timid:
        def predict(self, history: np.ndarray) -> float:
            return 1.0

    others = [
        replace(SETTING, trace=waves(level=9.0)),
        replace(SETTING, forecaster=Timid()),
        replace(SETTING, simulation=replace(SETTING.simulation, service_noise=0.0)),
    ]
    numbers = [setting_conditions(setting, policy) for setting in (SETTING, *others) for policy in ("greedy", "agent")]
    assert len(set(numbers)) == 8
    assert setting_conditions(setting_on(waves(), {}), "greedy") == numbers[0]
