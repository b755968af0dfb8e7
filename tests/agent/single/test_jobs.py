"""Training jobs: what they leave, and when they are done."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from small_trainings import SHORT, WEIGHTS, problem_for

from opd.agent.single import jobs
from opd.agent.single.deployed import Agent
from opd.agent.single.jobs import Job, run_job
from opd.control.factory import agent_policy
from opd.measurement import idle_observation
from opd.pipeline import ServiceLevel
from opd.solvers.service_level import best_for_level


def test_a_job_leaves_an_agent_with_all_that_made_it_and_is_done_only_once(tmp_path, monkeypatch):
    problem = problem_for()
    job = Job("agent", 2, problem, SHORT, tmp_path / "agents" / "agent.npz")
    assert run_job(job) == job.path
    agent = Agent.load(job.path, problem.pipeline)
    assert agent.parameters["seed"] == 2
    assert agent.parameters["weights"]["alpha"] == WEIGHTS.alpha
    assert agent.parameters["training"]["updates"] == SHORT.updates
    assert agent.parameters["simulation"]["service_noise"] == 0.0
    written = job.path.stat().st_mtime_ns
    monkeypatch.setattr(jobs, "train", lambda *given: pytest.fail("trained a finished job again"))
    assert run_job(job) == job.path
    assert job.path.stat().st_mtime_ns == written


def test_an_agent_is_trained_for_a_service_level_as_for_weights(tmp_path):
    level = ServiceLevel(1.0, accuracy_weight=6.0)
    job = Job("agent", 0, problem_for(objective=level), SHORT, tmp_path / "agent.npz")
    agent = Agent.load(run_job(job), job.problem.pipeline)
    assert job.done and agent.parameters["service_level"] == asdict(level)
    # Above the loads of its training the expert decides, which plans for the level.
    seen = replace(idle_observation(agent.pipeline), predicted_load=50.0)
    planned = best_for_level(agent.pipeline, 50.0, level, job.problem.simulation)
    assert agent_policy(agent).decide(seen) == planned


def test_a_job_with_other_parameters_is_not_taken_for_done(tmp_path):
    job = Job("agent", 2, problem_for(), SHORT, tmp_path / "agent.npz")
    run_job(job)
    other = replace(job, parameters=replace(SHORT, learning_rate=2 * SHORT.learning_rate))
    assert job.done
    assert not other.done
    assert job.folder != other.folder
