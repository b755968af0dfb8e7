"""Runs of the ablations: environments, policies, and trainings that are kept and resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small_pipelines import ocr_pipeline, varying_workload
from small_study import (
    FEASIBLE,
    PARAMETERS,
    SIMULATION,
    TOO_LARGE,
    WEIGHTS,
    begun_episodes,
    lively,
    setting_on,
    small_problem,
    some_states,
)

from opd.agent.single.deployed import Agent
from opd.agent.single.network import ActorCritic, export
from opd.agent.single.ppo import CHECKPOINT, PPOTrainer
from opd.control.policies import ClairvoyantPolicy, Policy, SingleAgentPolicy, SolverPolicy
from opd.measurement import Observation
from opd.objective import Weights
from opd.pipeline import StageConfiguration
from opd.solvers.exact import solver_for
from opd.study.analysis import ablations
from opd.study.analysis.ablation_networks import (
    IndependentNetwork,
    PlainNetwork,
    QueuelessNetwork,
)
from opd.study.analysis.ablations import (
    ABLATIONS,
    COLUMNS,
    FORECASTS,
    SOLVERS,
    VARIANTS,
    AblationEnvironment,
    AblationStudy,
    ForecastOverride,
    NetworkPolicy,
    ablation_training,
    in_environment,
    matching_agent,
    matching_solver,
    measure_ablations,
    with_forecast,
)
from opd.study.evaluation.cycles import Setting, run_cycle
from opd.workload.forecast import RecentMaximum, future_maximum
from opd.workload.trace import Cycle, Trace, cycle_counts

TRACE = Trace("small", np.tile(varying_workload().counts, 12), np.arange(24_000))
CYCLES = [Cycle("first", 16_500), Cycle("second", 18_060)]


class Steady(RecentMaximum):
    """A forecaster with a constant forecast."""

    def predict(self, history: np.ndarray) -> float:
        return 9.0


def small_setting() -> Setting:
    return setting_on(TRACE, {}, Steady())


def small_study(folder, **changes) -> AblationStudy:
    study = AblationStudy(small_setting(), PARAMETERS, {"ocr": small_problem()}, CYCLES, [0], folder)
    return replace(study, **changes)


# --- environments -----------------------------------------------------------------------------------------------------


def test_forecasts_are_what_they_are_called():
    workload = varying_workload()
    steps = np.arange(2, workload.decisions - 2)
    perfect = with_forecast(workload, "perfect").forecasts
    assert perfect[steps].tolist() == future_maximum(workload.counts, 10 * steps).tolist()
    recent = with_forecast(workload, "recent-maximum").forecasts
    assert recent[steps].tolist() == [workload.counts[10 * j - 20 : 10 * j].max() for j in steps]
    assert with_forecast(workload, "lstm") is workload
    assert len(perfect) == len(recent) == len(workload.forecasts)
    with pytest.raises(ValueError, match="forecast 'oracle' is not one of"):
        with_forecast(workload, "oracle")


def test_a_policy_gets_the_forecast_of_its_environment():
    class Recorder(Policy):
        def decide(self, observation: Observation):
            seen.append(observation.predicted_load)
            return ocr_pipeline().smallest_configuration()

    setting, counts = small_setting(), cycle_counts(TRACE, CYCLES[0])
    found = {}
    for forecast in FORECASTS:
        seen: list[float] = []
        run_cycle(ocr_pipeline(), ForecastOverride(Recorder(), forecast), CYCLES[0], 0, setting)
        found[forecast] = seen
    inside = range(2, 118)  # where history and horizon lie in the cycle
    assert [found["perfect"][j] for j in inside] == [counts[10 * j : 10 * j + 20].max() for j in inside]
    assert [found["recent-maximum"][j] for j in inside] == [counts[10 * j - 20 : 10 * j].max() for j in inside]
    assert found["lstm"] == [9.0] * 120
    with pytest.raises(ValueError, match="forecast 'oracle' is not one of"):
        ForecastOverride(Recorder(), "oracle")


def test_the_myopic_solver_with_a_perfect_forecast_is_the_clairvoyant_one():
    setting = small_setting()
    policies = [
        ForecastOverride(SolverPolicy(ocr_pipeline(), solver_for(WEIGHTS, SIMULATION)), "perfect"),
        ClairvoyantPolicy(SolverPolicy(ocr_pipeline(), solver_for(WEIGHTS, SIMULATION))),
    ]
    runs = [run_cycle(ocr_pipeline(), policy, CYCLES[1], 0, setting) for policy in policies]
    assert [step.configuration for step in runs[0]] == [step.configuration for step in runs[1]]


def test_an_environment_without_delays_differs_in_nothing_else():
    problem = small_problem()
    other = in_environment(problem, AblationEnvironment(startup=False))
    variants = [variant for task in other.pipeline.tasks for variant in task.variants]
    assert len(variants) == 5 and all(variant.startup_time == 0.0 for variant in variants)
    assert (other.pipeline.tables.startup_time[np.isfinite(other.pipeline.tables.startup_time)] == 0.0).all()
    for part in ("accuracy", "cores", "service_time"):
        np.testing.assert_array_equal(getattr(other.pipeline.tables, part), getattr(problem.pipeline.tables, part))
    assert other._replace(pipeline=problem.pipeline) == problem
    # What is asked for is there for the whole interval.
    episodes = begun_episodes(other.pipeline)
    _, interval = episodes.run_interval(np.array([FEASIBLE, FEASIBLE]))
    np.testing.assert_allclose(interval.ready_throughput[0], [2 * 2 / 0.4, 3 / 0.05])


@pytest.mark.parametrize("forecast", ["recent-maximum", "perfect"])
def test_a_forecast_is_exchanged_in_training_and_in_validation(forecast):
    problem = small_problem()._replace(validation=varying_workload(seed=6))
    other = in_environment(problem, AblationEnvironment(forecast))
    for split in ("training", "validation"):
        own, exchanged = getattr(problem, split), getattr(other, split)
        assert exchanged.counts is own.counts
        assert exchanged.forecasts.tolist() == with_forecast(own, forecast).forecasts.tolist() != own.forecasts.tolist()
    assert other._replace(training=problem.training, validation=problem.validation) == problem


def test_each_ablation_is_trained_with_its_own_departure(tmp_path):
    trainings = {name: ablation_training(small_study(tmp_path), "ocr", name, 0) for name in ABLATIONS}
    modes = {name: job.parameters.expert_mode for name, job in trainings.items()}
    special = {"paper-guidance": "paper", "no-expert": "none"}
    assert modes == {name: special.get(name, "pretrain") for name in ABLATIONS}
    assert {replace(job.parameters, expert_mode="pretrain") for job in trainings.values()} == {PARAMETERS}
    assert len({str(job.path) for job in trainings.values()}) == len(ABLATIONS)
    assert len({str(job.folder) for job in trainings.values()}) == len(ABLATIONS)
    networks = {name: job.network_class for name, job in trainings.items() if job.network_class is not ActorCritic}
    assert networks == {
        "plain-features": PlainNetwork,
        "independent-heads": IndependentNetwork,
        "no-queues": QueuelessNetwork,
    }


def test_every_ablation_departs_in_one_thing():
    full = ABLATIONS["agent"]
    for name, ablation in ABLATIONS.items():
        departures = [getattr(ablation, part) != getattr(full, part) for part in ("training", "network", "environment")]
        assert sum(departures) == (name != "agent"), name
    assert {matching_solver(name) for name in VARIANTS} <= set(SOLVERS)
    assert matching_solver("perfect-forecast") == "clairvoyant"
    assert matching_solver("no-startup") == "myopic-no-startup"
    assert {name for name in VARIANTS if matching_agent(name) == "no-startup"} == {
        *("no-startup", "myopic-no-startup", "clairvoyant-no-startup")
    }


def test_a_network_decides_as_the_deployed_agent_does():
    network = lively(ActorCritic(ocr_pipeline(), 16, 1))
    network.features_extractor.standardise_by(some_states().numpy())
    policies = NetworkPolicy(ocr_pipeline(), network), SingleAgentPolicy(Agent(ocr_pipeline(), export(network), {}))
    first, second = (run_cycle(ocr_pipeline(), policy, CYCLES[0], 0, small_setting()) for policy in policies)
    assert [step.configuration for step in first] == [step.configuration for step in second]


def test_the_guard_of_the_control_loop_refuses_in_the_same_way():
    class TooMuch(Policy):
        def decide(self, observation: Observation):
            return tuple(StageConfiguration(*stage) for stage in TOO_LARGE)

    setting = small_setting()
    steps = run_cycle(ocr_pipeline(), TooMuch(), CYCLES[0], 0, setting)
    assert all("18 cores" in step.refused for step in steps)
    assert len({step.configuration for step in steps}) == 1


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablations")
    return folder, measure_ablations(small_study(folder))


def no_training(*arguments, **named):
    raise AssertionError("trained again")


def test_everything_is_trained_and_evaluated(finished):
    folder, rows = finished
    assert list(rows.columns) == COLUMNS
    assert list(rows["variant"]) == [name for name in VARIANTS for _ in CYCLES]
    assert list(rows["cycle"]) == ["first", "second"] * len(VARIANTS)
    assert np.isfinite(rows[["reward", "qos", "cost", "dropped"]]).all(axis=None)
    refused = rows.groupby("variant")["refused"].sum()
    assert (refused.drop("independent-heads") == 0).all()
    assert {path.name for path in (folder / "ocr").glob("*.pt")} == {f"{name}-0.pt" for name in ABLATIONS}
    assert not list(folder.rglob("*.ckpt")) and not list(folder.rglob("*.part"))


def test_a_second_call_trains_nothing_and_finds_the_same(finished, monkeypatch):
    folder, rows = finished
    monkeypatch.setattr(ablations, "train", no_training)
    variants = ("independent-heads", "no-startup")
    again = measure_ablations(small_study(folder), variants=variants)
    pd.testing.assert_frame_equal(again, rows[rows["variant"].isin(variants)].reset_index(drop=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"parameters": replace(PARAMETERS, drop_penalty=0.1)},
        {"seeds": [1]},
        {"penalty": 2.0},
        {"problems": {"ocr": small_problem()._replace(objective=Weights(cost_weight=0.3))}},
        {"problems": {"ocr": small_problem()._replace(pipeline=ocr_pipeline(7))}},
        {"problems": {"ocr": small_problem()._replace(training=varying_workload(seed=6))}},
    ],
    ids=["parameters", "seed", "penalty", "weights", "pipeline", "workload"],
)
def test_whatever_changes_is_trained_again(finished, changes, monkeypatch):
    folder, _ = finished
    assert ablation_training(small_study(folder), "ocr", "independent-heads", 0).done
    study = small_study(folder, **changes)
    monkeypatch.setattr(ablations, "train", no_training)
    with pytest.raises(AssertionError, match="trained again"):
        measure_ablations(study, variants=("independent-heads",))


def test_the_penalty_concerns_only_who_can_be_refused(finished):
    study = small_study(finished[0], penalty=2.0)
    done = {name for name in ABLATIONS if ablation_training(study, "ocr", name, 0).done}
    assert done == set(ABLATIONS) - {"independent-heads"}


def test_a_damaged_file_counts_as_none(finished, tmp_path):
    job = ablation_training(small_study(finished[0]), "ocr", "agent", 0)
    whole = job.path.read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        damaged = replace(job, path=tmp_path / "agent-0.pt")
        damaged.path.write_bytes(content)
        assert not damaged.done


def test_an_interrupted_training_resumes_to_the_same_result(finished, tmp_path, monkeypatch):
    collect = PPOTrainer.collect

    def fail_at_the_second_update(self, update):
        if update == 1:
            raise RuntimeError("power cut")
        return collect(self, update)

    study = small_study(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "collect", fail_at_the_second_update)
        with pytest.raises(RuntimeError, match="power cut"):
            measure_ablations(study, variants=("plain-features",))
    job = ablation_training(study, "ocr", "plain-features", 0)
    assert (job.folder / CHECKPOINT).is_file() and not job.done
    begun_at: list[int] = []

    def note(self, update):
        begun_at.append(update)
        return collect(self, update)

    monkeypatch.setattr(PPOTrainer, "collect", note)
    rows = measure_ablations(study, variants=("plain-features",))
    assert begun_at == [1]
    expected = finished[1]
    expected = expected[expected["variant"] == "plain-features"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rows, expected)


@pytest.mark.slow
def test_several_processes_find_the_same(finished):
    folder, rows = finished
    variants = ("agent", "no-startup", "clairvoyant")
    parallel = measure_ablations(small_study(folder), 2, variants)
    pd.testing.assert_frame_equal(parallel, rows[rows["variant"].isin(variants)].reset_index(drop=True))


def test_an_unknown_variant_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown variants \\['no-luck'\\]; there are agent, "):
        measure_ablations(small_study(tmp_path), variants=("agent", "no-luck"))
