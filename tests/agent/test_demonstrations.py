"""Demonstrations of the planner: the plan first, all of them feasible, and files that come back."""

from __future__ import annotations

import numpy as np
import pytest
from small_pipelines import ocr_pipeline
from small_situations import small_practice, untrained

from opd.agent import demonstrations as module
from opd.agent.demonstrations import COMPARED, PlannerDemonstrations, demonstrate
from opd.agent.scoring import choose, plan
from opd.host.archive import ArchiveError
from opd.pipeline import as_configuration, check_feasible, from_choices
from opd.planner.lookahead import PlannerParameters


@pytest.fixture(scope="module")
def shown() -> PlannerDemonstrations:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "EFFORT", PlannerParameters(futures=(4,)))
        patched.setattr(module, "EPISODES", 3)
        patched.setattr(module, "DECISIONS", 6)
        return demonstrate(small_practice(), untrained(2).weights(), np.random.default_rng(5))


def test_the_plan_stands_first(shown):
    assert len(shown.values) == len(shown.choices) == len(shown.situations.loads) > 3
    assert np.isfinite(shown.values).all()
    assert (np.ptp(shown.values, axis=1) > 0.0).all()
    for e in range(len(shown.values)):
        assert (shown.choices[e, 0] == plan(shown.description, shown.situations, e)[0]).all()


def test_configurations_are_feasible_and_different(shown):
    pipeline = small_practice().pipeline
    for choices in shown.choices:
        for configuration in from_choices(choices.astype(np.int64)):
            check_feasible(pipeline, as_configuration(configuration))
        assert len({each.tobytes() for each in choices}) == COMPARED


def test_a_device_with_few_configurations_has_fewer_to_compare(monkeypatch):
    """One core a stage, one variant that fits: only the batch sizes are left, four configurations that fill up."""
    monkeypatch.setattr(module, "EFFORT", PlannerParameters(futures=(1,)))
    monkeypatch.setattr(module, "EPISODES", 1)
    monkeypatch.setattr(module, "DECISIONS", 4)
    monkeypatch.setattr(module, "SHOWN", 1.0)
    found = demonstrate(small_practice(ocr_pipeline(capacity=2)), untrained(2).weights(), np.random.default_rng(1))
    for choices, values in zip(found.choices, found.values, strict=True):
        worth = {each.tobytes(): value for each, value in zip(choices, values, strict=True)}
        assert 1 <= len(worth) <= 4
        assert [worth[each.tobytes()] for each in choices] == values.tolist()


def test_an_agent_leads_to_situations_of_its_own(shown, monkeypatch):
    monkeypatch.setattr(module, "EFFORT", PlannerParameters(futures=(1,)))
    monkeypatch.setattr(module, "EPISODES", 2)
    monkeypatch.setattr(module, "DECISIONS", 5)
    monkeypatch.setattr(module, "SHOWN", 1.0)
    found = [
        demonstrate(small_practice(), untrained(seed).weights(), np.random.default_rng(3)).situations.running
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_a_file_comes_back(shown, tmp_path):
    shown.save(tmp_path / "shown.npz")
    loaded = PlannerDemonstrations.load(tmp_path / "shown.npz")
    for kind in ("description", "situations"):
        for name, stored in getattr(shown, kind)._asdict().items():
            found = getattr(getattr(loaded, kind), name)
            np.testing.assert_array_equal(found, stored, err_msg=name)
            assert isinstance(found, type(stored)), name
    np.testing.assert_array_equal(loaded.choices, shown.choices)
    np.testing.assert_array_equal(loaded.values, shown.values)


def test_the_agent_decides_the_same_from_a_file(shown, tmp_path):
    shown.save(tmp_path / "shown.npz")
    loaded = PlannerDemonstrations.load(tmp_path / "shown.npz")
    uniform = np.full((len(shown.values), 6), -1.0)
    first, second = (
        choose(untrained(0).weights(), each.description, each.situations, uniform) for each in (shown, loaded)
    )
    np.testing.assert_array_equal(first[0], second[0])
    assert len(choose.signatures) == 1  # a file is compiled for like anything else


def test_a_damaged_file_is_named(shown, tmp_path):
    path = tmp_path / "shown.npz"
    shown.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArchiveError, match=r"shown\.npz is damaged"):
        PlannerDemonstrations.load(path)
