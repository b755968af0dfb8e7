"""Training parameters: what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_trainings import SHORT

from opd.agent.parameters import TrainingParameters


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"expert_mode": "oracle"}, r"expert_mode 'oracle' is not one of \('paper', 'pretrain', 'none'\)"),
        ({"expert": "gurobi"}, r"expert 'gurobi' is not one of"),
        ({"updates": 0}, "updates is 0, but must be at least 1"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"rollout_steps": -1}, "rollout_steps is -1"),
        ({"epochs": 0}, "epochs is 0"),
        ({"minibatch_size": 0}, "minibatch_size is 0"),
        ({"validate_every": 0}, "validate_every is 0"),
        ({"expert_frequency": 0}, "expert_frequency is 0"),
        ({"validation_decisions": 0}, "validation_decisions is 0"),
        ({"validation_episodes": 0}, "validation_episodes is 0"),
        ({"burst_share": 1.5}, "burst_share 1.5 is not a share between 0 and 1"),
        ({"burst_share": -0.5}, "burst_share -0.5 is not a share"),
        ({"discount": 1.5}, "discount 1.5"),
        ({"learning_rate": -1e-3}, "learning_rate -0.001|learning_rate is -0.001"),
        ({"updates": 5, "validate_every": 2}, "updates.*5.*multiple.*validate_every"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **wrong)


def test_an_unknown_parameter_is_named():
    with pytest.raises(TypeError, match="learning_speed"):
        TrainingParameters(learning_speed=1.0)  # type: ignore[call-arg]


def test_all_decisions_of_a_run_are_counted():
    assert SHORT.total_timesteps == 4 * 8 * 8
