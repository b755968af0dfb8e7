"""The file of an agent: what is stored comes back, and every fault is named."""

from __future__ import annotations

import numpy as np
import pytest
from small_situations import untrained

from opd.agent.scoring import ScoringWeights
from opd.agent.weights import FORMAT, TrainedAgent, WeightsError
from opd.host.archive import save_archive


def agent(seed: int = 0) -> TrainedAgent:
    return TrainedAgent(untrained(seed).weights(), {"traces": ["made"], "rounds": 2})


def test_a_stored_agent_comes_back(tmp_path):
    agent().save(tmp_path / "agent.npz")
    loaded = TrainedAgent.load(tmp_path / "agent.npz")
    assert loaded.about == {"traces": ["made"], "rounds": 2}
    for name, found, stored in zip(ScoringWeights._fields, loaded.weights, agent().weights, strict=True):
        np.testing.assert_array_equal(found, stored, err_msg=name)
        assert (found.dtype, found.flags.c_contiguous) == (np.float32, True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no file .*nowhere\.npz; train the agent again"):
        TrainedAgent.load(tmp_path / "nowhere.npz")


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "agent.npz"
    agent().save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    for damaged in (bytes(content), bytes(content[:100]), b""):
        path.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"agent\.npz is damaged"):
            TrainedAgent.load(path)


def test_an_archive_of_something_else_is_no_agent(tmp_path):
    save_archive(tmp_path / "other.npz", "opd forecaster 9", {}, {})
    with pytest.raises(WeightsError, match=r"other\.npz has format 'opd forecaster 9'"):
        TrainedAgent.load(tmp_path / "other.npz")


def test_what_an_agent_lacks_is_named(tmp_path):
    arrays = agent().weights._asdict()
    del arrays["own_weight"], arrays["score_weight"]
    save_archive(tmp_path / "agent.npz", FORMAT, {}, arrays)
    with pytest.raises(WeightsError, match="it lacks own_weight, score_weight; train it again"):
        TrainedAgent.load(tmp_path / "agent.npz")


@pytest.mark.parametrize("name", ["node_weight", "stage_weight", "option_weight"])
def test_an_agent_with_other_inputs_is_refused(tmp_path, name):
    weights = agent().weights
    narrower = np.ascontiguousarray(getattr(weights, name)[..., 1:])
    TrainedAgent(weights._replace(**{name: narrower}), {}).save(tmp_path / "agent.npz")
    with pytest.raises(
        WeightsError, match=rf"{narrower.shape[-1]}\b.* inputs, this version has .*train the agent again"
    ):
        TrainedAgent.load(tmp_path / "agent.npz")
