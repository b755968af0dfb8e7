"""Fine-tuning jobs: what they leave, when they are done, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_pipelines import varying_workload
from small_situations import load_of, small_practice, untrained

from opd.agent import tuning
from opd.agent.fine_tuning import FineTuning
from opd.agent.tuning import TuningJob, run_tuning_jobs
from opd.agent.weights import TrainedAgent
from opd.study.evaluation.training import plot_tuning, tuning_summary
from opd.study.report.findings import tuning_findings

BRIEF = FineTuning(updates=2, rollouts=1, validate_every=1, episodes=2, decisions=4)


def job_at(path, seed=0, parameters=BRIEF) -> TuningJob:
    practice, agent = small_practice(), TrainedAgent(untrained(0).weights(), {})
    validation = practice._replace(load=load_of(varying_workload(decisions=60), bursts=(20,)))
    return TuningJob("agent-tuned", seed, agent, practice, validation, parameters, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> TuningJob:
    job = job_at(tmp_path_factory.mktemp("tuned") / "agents" / "agent-tuned-0.npz")
    assert not job.done
    run_tuning_jobs([job], workers=1)
    return job


def test_a_job_leaves_an_agent_that_says_for_which_pipeline_it_was_tuned(finished):
    agent = TrainedAgent.load(finished.path)
    assert agent.origin == "fine-tuned for pipeline 'ocr'"
    assert agent.about["tuning"]["parameters"]["updates"] == 2


def test_a_finished_job_is_not_done_again(finished, monkeypatch):
    assert finished.done
    monkeypatch.setattr(tuning, "fine_tune", lambda *given: pytest.fail("tuned a finished job again"))
    assert run_tuning_jobs([finished], workers=1) == [finished.path]


def test_a_job_with_other_parameters_seed_weights_or_load_is_not_taken_for_done(finished):
    other = TrainedAgent(untrained(1).weights(), {})
    longer = load_of(varying_workload(decisions=61), bursts=(20,))
    for change in (
        {"parameters": replace(BRIEF, updates=3)},
        {"seed": 1},
        {"agent": other},
        {"validation": finished.validation._replace(load=longer)},
    ):
        assert not replace(finished, **change).done, change


def test_the_curve_begins_with_the_agent_before(finished):
    curve = finished.curve()
    assert curve["update"].tolist() == [0, 1, 2] and np.isfinite(curve["validation"]).all()
    assert (curve["policy"] == "agent-tuned").all()


def test_what_is_kept_is_the_best_update_or_the_agent_before(tmp_path):
    def run(seed, values):
        return pd.DataFrame({"update": [0, 5, 10], "validation": values, "policy": "agent-tuned", "seed": seed})

    curves = pd.concat([run(0, [1.0, 3.0, 2.0]), run(1, [1.0, 0.5, 0.9])])
    kept = tuning_summary(curves)
    assert kept == [
        {"policy": "agent-tuned", "seed": 0, "update": 5, "selection": 3.0, "untuned": 1.0},
        {"policy": "agent-tuned", "seed": 1, "update": 0, "selection": 1.0, "untuned": 1.0},
    ]
    assert tuning_findings(kept) == [
        "agent-tuned, seed 0: fine-tuning raised the validation from 1.000 to 3.000.",
        "agent-tuned, seed 1: fine-tuning found nothing better; the agent stays as it was.",
    ]
    (axes,) = plot_tuning(curves, "title", tmp_path / "tuning.png").axes
    gains = [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 3]
    assert gains == [[0.0, 2.0, 1.0], [0.0, -0.5, pytest.approx(-0.1)]]
