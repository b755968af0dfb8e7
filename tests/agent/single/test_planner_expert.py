"""The planner as the expert of Alg. 2: its decisions, how many are asked for, and trainings with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_pipelines import ocr_pipeline, varying_workload
from small_trainings import QUIET, SHORT, WEIGHTS, assert_same_weights, problem_for, trainer_for, weights_of

from opd.agent.single.deployed import Agent
from opd.agent.single.imitation import PlannerExpert, TableExpert, demonstrate, expert_of
from opd.agent.single.jobs import Job, run_job
from opd.agent.single.ppo import PPOTrainer, read_metrics, train
from opd.agent.single.problem import Problem, build_problem, expert_table, look_up
from opd.control.factory import KnownLoad, agent_policy, build_policy
from opd.control.policies import Policy
from opd.measurement import idle_observation
from opd.pipeline import as_array, from_choices
from opd.solvers import IpaParameters
from opd.solvers.exact import solver_for
from opd.workload.quantile_futures import QuantileFutures

PLANNED = replace(SHORT, expert="lookahead", num_envs=4, rollout_steps=3, expert_frequency=3, minibatch_size=6)


def planned_trainer(**changes) -> PPOTrainer:
    return trainer_for(problem=problem_for(expert="lookahead"), **{**vars(PLANNED), **changes})


def policy_of(problem: Problem, seed: int) -> Policy:
    """Policy ``lookahead`` in the simulator."""
    given = problem.pipeline, problem.objective, problem.simulation, IpaParameters(), seed
    return build_policy("lookahead", *given, simulated=True, load=KnownLoad(problem.futures))


def decided(policy: Policy, envs, episodes) -> np.ndarray:
    return np.array([as_array(policy.decide(envs.observation(int(e)))) for e in episodes])


# --- decisions -------------------------------------------------------------------------------------------------------


def test_the_experts_of_a_problem():
    problem = problem_for()
    assert isinstance(expert_of(problem, "lookahead"), PlannerExpert)
    for name in ("myopic", "ipa", "clairvoyant"):
        assert expert_of(problem, name) == TableExpert(problem.expert, name == "clairvoyant")


def test_its_decisions_are_those_of_the_policy():
    """Through episodes in which replicas start and requests wait; only the episodes asked for take random numbers."""
    problem = problem_for(expert="lookahead")
    expert, policy = expert_of(problem, "lookahead"), policy_of(problem, 5)
    generator, episodes = np.random.default_rng(5), np.array([3, 0])
    envs = planned_trainer().begin(9)
    differ = 0
    for _ in range(3):
        state = envs.state()
        wanted = decided(policy, envs, episodes)
        chosen = from_choices(expert.choices(envs, state, episodes, generator).numpy())
        np.testing.assert_array_equal(chosen, wanted)
        table = look_up(problem.expert, state[:, 1])
        differ += int((chosen != table[episodes]).any())
        envs.run_interval(table)
    assert differ  # from the myopic solver


def test_its_table_is_that_of_the_myopic_solver():
    given = ocr_pipeline(), WEIGHTS, QUIET
    np.testing.assert_array_equal(expert_table(*given, "lookahead", 12), expert_table(*given, "myopic", 12))


def test_futures_are_those_of_the_forecaster_of_the_trace(prepared):
    (trace,), (forecaster,) = prepared.lesson.traces.values(), prepared.forecasters.values()
    problem = build_problem(ocr_pipeline(), trace, forecaster, WEIGHTS, QUIET, PLANNED)
    assert problem.futures == QuantileFutures(forecaster)


# --- where it is asked -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("perturbation_share", [0.0, 0.5])
def test_demonstrations_are_its_choices_in_every_episode(perturbation_share):
    trainer = planned_trainer(perturbation_share=perturbation_share)
    expert, made = trainer.expert, []

    class Noting:
        table = expert.table

        def choices(self, envs, states, episodes, generator):
            assert episodes.tolist() == [0, 1, 2, 3]
            made.append(expert.choices(envs, states, episodes, generator))
            return made[-1]

    states, choices, _ = demonstrate(Noting(), trainer.begin(1), trainer.parameters, np.random.default_rng(1))
    assert torch.equal(choices, torch.cat(made))
    ran = states.numpy().reshape(3, 4, -1)[1:, :, [5, 6, 7, 12, 13, 14]].reshape(2, 4, 2, 3)
    followed = (ran == from_choices(choices.numpy()).reshape(3, 4, 2, 3)[:2]).all(axis=(2, 3))
    assert followed.all() == (perturbation_share == 0.0)


def test_in_paper_mode_it_is_asked_in_its_own_episodes_only(monkeypatch):
    """Of four episodes an update, it acts in numbers 0 and 3 of the first update and in number 2 of the second."""
    trainer = planned_trainer(expert_mode="paper")
    choices, asked = PlannerExpert.choices, []

    def noting(self, envs, states, episodes, generator):
        asked.append((episodes.tolist(), choices(self, envs, states, episodes, generator)))
        return asked[-1][1]

    monkeypatch.setattr(PlannerExpert, "choices", noting)
    for update, episodes in enumerate([[0, 3], [2]]):
        asked.clear()
        samples, _ = trainer.collect(update)
        assert [each for each, _ in asked] == [episodes] * 3
        acted = samples.choices.reshape(3, 4, 2, 3)[:, episodes]
        assert torch.equal(acted, torch.stack([each for _, each in asked]))


# --- trainings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["pretrain", "paper"])
def test_a_training_with_it_runs_and_resumes_to_the_same_weights(mode, tmp_path, monkeypatch):
    problem, parameters = problem_for(expert="lookahead"), replace(PLANNED, expert_mode=mode)
    whole = weights_of(train(problem, parameters, 7, tmp_path / "whole"))
    metrics = read_metrics(tmp_path / "whole")
    assert metrics["update"].tolist() == [1, 2, 3, 4] and np.isfinite(metrics["train/loss"]).all()
    learn = PPOTrainer.learn

    def fail(self, samples, update):
        if update == 3:
            raise KeyboardInterrupt
        return learn(self, samples, update)

    with monkeypatch.context() as patched:
        patched.setattr(PPOTrainer, "learn", fail)
        with pytest.raises(KeyboardInterrupt):
            train(problem, parameters, 7, tmp_path / "cut")
    assert_same_weights(whole, weights_of(train(problem, parameters, 7, tmp_path / "cut")))


def test_an_agent_that_learned_from_it_is_saved_and_falls_back_on_the_solver(tmp_path):
    problem = problem_for(expert="lookahead", workload=varying_workload(decisions=60), bursts=())
    job = Job("agent", 0, problem, replace(PLANNED, updates=2), tmp_path / "agent.npz")
    agent = Agent.load(run_job(job), problem.pipeline)
    assert job.done and agent.parameters["training"]["expert"] == "lookahead"
    seen = replace(idle_observation(agent.pipeline), predicted_load=90.0)
    policy = agent_policy(agent)
    solved = solver_for(problem.objective, problem.simulation)(agent.pipeline, 90.0)
    assert policy.decide(seen) == solved and policy.fallback
