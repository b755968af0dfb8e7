"""Training parameters: what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_trainings import SHORT

from opd.agent.single.problem import TrainingParameters


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"expert_mode": "oracle"}, r"expert_mode\n.*'paper', 'pretrain' or 'none' .*input_value='oracle'"),
        ({"expert": "gurobi"}, r"expert\n.*'myopic', 'ipa', 'clairvoyant' or 'lookahead' .*input_value='gurobi'"),
        ({"updates": 0}, r"updates\n.*greater than or equal to 1 .*input_value=0"),
        ({"num_envs": 0}, r"num_envs\n.*greater than or equal to 1 .*input_value=0"),
        ({"rollout_steps": -1}, r"rollout_steps\n.*greater than or equal to 1 .*input_value=-1"),
        ({"epochs": 0}, r"epochs\n.*greater than or equal to 1 .*input_value=0"),
        ({"minibatch_size": 0}, r"minibatch_size\n.*greater than or equal to 1 .*input_value=0"),
        ({"validate_every": 0}, r"validate_every\n.*greater than or equal to 1 .*input_value=0"),
        ({"expert_frequency": 0}, r"expert_frequency\n.*greater than or equal to 1 .*input_value=0"),
        ({"validation_decisions": 0}, r"validation_decisions\n.*greater than or equal to 1 .*input_value=0"),
        ({"validation_episodes": 0}, r"validation_episodes\n.*greater than or equal to 1 .*input_value=0"),
        ({"burst_share": 1.5}, r"burst_share\n.*less than or equal to 1 .*input_value=1.5"),
        ({"burst_share": -0.5}, r"burst_share\n.*greater than or equal to 0 .*input_value=-0.5"),
        ({"discount": 1.5}, r"discount\n.*input_value=1.5"),
        ({"learning_rate": -1e-3}, r"learning_rate\n.*greater than 0 .*input_value=-0.001"),
        ({"updates": 5, "validate_every": 2}, "updates.*5.*multiple.*validate_every"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SHORT, **wrong)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ValueError, match=r"learning_speed\n.*Unexpected"):
        TrainingParameters(learning_speed=1.0)  # type: ignore[call-arg]


def test_all_decisions_of_a_run_are_counted():
    assert SHORT.total_timesteps == 4 * 8 * 8
