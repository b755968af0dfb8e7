"""Training jobs: what they leave, and when they are done."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_trainings import SHORT, WEIGHTS, problem_for

from opd.agent import jobs
from opd.agent.deployed import Agent
from opd.agent.jobs import Job, run_job


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


def test_a_job_with_other_parameters_is_not_taken_for_done(tmp_path):
    job = Job("agent", 2, problem_for(), SHORT, tmp_path / "agent.npz")
    run_job(job)
    other = replace(job, parameters=replace(SHORT, learning_rate=2 * SHORT.learning_rate))
    assert job.done
    assert not other.done
    assert job.folder != other.folder
