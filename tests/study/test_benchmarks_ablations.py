"""Ablations: that each takes away what it says and nothing else, that runs resume, and what the tables hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small_pipelines import every_configuration, everything_selectable, ocr_pipeline, varying_workload

from opd.agent.deployed import Agent
from opd.agent.network import ActorCritic, export
from opd.agent.parameters import TrainingParameters
from opd.agent.ppo import CHECKPOINT, PPOTrainer, train
from opd.agent.problem import Problem, expert_table
from opd.agent.rollout import training_reward
from opd.control.policies import AgentPolicy, ClairvoyantPolicy, MyopicPolicy, Policy
from opd.measurement import Observation, running_configurations, state_names
from opd.objective import Weights
from opd.pipeline import StageConfiguration, as_array, to_choices
from opd.simulator.actions import admit
from opd.simulator.parameters import SimulationParameters
from opd.simulator.vector_environment import PipelineVectorEnv
from opd.solvers import IpaParameters
from opd.study.analysis import ablation_text, ablations
from opd.study.analysis.ablation_networks import (
    AblatedTrainer,
    IndependentNetwork,
    PlainNetwork,
    QueuelessNetwork,
    RefusingEpisodes,
    entry_masks,
)
from opd.study.analysis.ablation_text import forecast_paragraph, listed, part_paragraph, startup_paragraph, verdict
from opd.study.analysis.ablations import (
    ABLATIONS,
    COLUMNS,
    SOLVERS,
    VARIANTS,
    Foretold,
    NetworkPolicy,
    Study,
    World,
    foretold,
    in_world,
    measure_ablations,
    startup_worth,
    summarise_ablations,
    training_of,
)
from opd.study.analysis.estimates import signed, with_interval
from opd.study.analysis.plots_ablations import PARTS, WORLDS, plot_ablations
from opd.study.benchmarks.budgets import SMOKE_TRAINING
from opd.study.evaluation.cycles import Setting, run_cycle
from opd.study.report.files import write_page
from opd.workload.cycles import Cycle, cycle_counts
from opd.workload.load import future_maximum
from opd.workload.trace import Trace

WEIGHTS, SIMULATION = Weights(), SimulationParameters()
PARAMETERS = TrainingParameters(**SMOKE_TRAINING)
NAMES = state_names(ocr_pipeline())
QUEUES = [entry for entry, name in enumerate(NAMES) if name in ("detection.queue", "recognition.queue")]


def small_problem() -> Problem:
    pipeline, workload = ocr_pipeline(), varying_workload()
    table = expert_table(pipeline, WEIGHTS, SIMULATION, "myopic", 30)
    bursts = np.array([30, 90])
    return Problem(pipeline, WEIGHTS, SIMULATION, workload, workload, bursts, bursts, table, table)


def some_states(number: int = 50, seed: int = 0) -> torch.Tensor:
    states = np.random.default_rng(seed).uniform(0.0, 8.0, (number, len(NAMES))).astype(np.float32)
    states[:, 0] = 8.0
    return torch.as_tensor(states)


def lively(network: ActorCritic) -> ActorCritic:
    """The same with heads that tell states and options apart, which at first they hardly do."""
    torch.manual_seed(1)
    with torch.no_grad():
        network.head_weight.normal_(0.0, 0.5)
    return network


# --- features --------------------------------------------------------------------------------------------------------


def test_plain_features_are_layers_one_after_the_other():
    network = PlainNetwork(ocr_pipeline(), width=8, blocks=2)
    states = some_states()
    network.features_extractor.standardise_by(states.numpy())
    w = {name: tensor.numpy() for name, tensor in network.features_extractor.state_dict().items()}
    layer = np.clip((states.numpy() - w["mean"]) / w["std"], -10.0, 10.0)
    for name in ("reduce", "blocks.0.inner", "blocks.0.outer", "blocks.1.inner", "blocks.1.outer"):
        layer = np.maximum(layer @ w[f"{name}.weight"].T + w[f"{name}.bias"], 0.0)
    np.testing.assert_allclose(network.features_extractor(states).detach().numpy(), layer, atol=1e-5)


@pytest.mark.parametrize("network_class", [PlainNetwork, QueuelessNetwork, IndependentNetwork])
def test_an_ablated_network_begins_with_the_weights_of_the_full_one(network_class):
    weights = []
    for kind in (ActorCritic, network_class):
        torch.manual_seed(3)
        weights.append(kind(ocr_pipeline(), 16, 2).state_dict())
    full, ablated = weights
    assert full.keys() == ablated.keys()
    changed = [name for name in full if not torch.equal(full[name], ablated[name])]
    assert changed == (["choice_embedding"] if network_class is IndependentNetwork else [])


# --- queues ----------------------------------------------------------------------------------------------------------


def test_the_queues_are_zero_in_what_the_network_sees():
    network = lively(QueuelessNetwork(ocr_pipeline(), 16, 1))
    states = some_states()
    network.features_extractor.standardise_by(states.numpy())
    seen = []
    network.features_extractor.reduce.register_forward_hook(lambda module, given, result: seen.append(given[0]))
    other = states.clone()
    other[:, QUEUES] = 1000.0
    first, second = network.act(states, None), network.act(other, None)
    assert (torch.cat(seen)[:, QUEUES] == 0.0).all()
    assert torch.equal(first.choices, second.choices) and torch.equal(first.value, second.value)
    for own, given in zip(*(network.evaluate(s, first.choices, first.masks) for s in (states, other)), strict=True):
        assert torch.equal(own, given)


def test_all_else_is_seen_as_the_full_agent_sees_it():
    networks = [lively(kind(ocr_pipeline(), 16, 1)) for kind in (ActorCritic, QueuelessNetwork)]
    networks[1].load_state_dict(networks[0].state_dict())
    states = some_states()
    states[:, QUEUES] = 0.0
    for network in networks:
        network.features_extractor.standardise_by(states.numpy())
    full, ablated = (network.act(states, None) for network in networks)
    assert torch.equal(full.choices, ablated.choices) and torch.equal(full.value, ablated.value)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_entry_masks_allow_exactly_what_some_feasible_configuration_contains():
    for capacity in (3, 5, 8):
        pipeline = ocr_pipeline(capacity)
        feasible = to_choices(np.array(every_configuration(pipeline))).reshape(-1, 6)
        masks = entry_masks(pipeline)
        assert masks.shape == (6, 3)
        for entry, mask in enumerate(masks):
            assert set(np.flatnonzero(mask.numpy())) == set(feasible[:, entry]), (capacity, entry)


def test_no_choice_of_independent_heads_depends_on_another():
    network = lively(IndependentNetwork(ocr_pipeline(), 16, 1))
    states = some_states(1)
    everything = torch.as_tensor(to_choices(np.array(everything_selectable(ocr_pipeline()))))
    masks = network.masks(states.expand(len(everything), -1), everything)
    with torch.no_grad():
        logarithm, _, _ = network.evaluate(states.expand(len(everything), -1), everything, masks)
        # Each head alone, written out: probabilities of its options in this state.
        hidden = torch.relu(network.context(network.features_extractor(states)) + network.head_shift)
        logits = torch.einsum("sw,skw->sk", hidden, network.head_weight) + network.head_bias
        heads = torch.log_softmax(logits.masked_fill(~entry_masks(ocr_pipeline()), -torch.inf), dim=-1)
    flat = everything.reshape(len(everything), -1)
    expected = sum(heads[step, flat[:, step]] for step in range(6))
    torch.testing.assert_close(logarithm, expected, atol=1e-5, rtol=1e-5)
    # All of the capacity is not feasible, but has a probability: together they make one.
    assert len(everything) > len(every_configuration(ocr_pipeline()))
    assert float(logarithm.exp().sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("network_class", [PlainNetwork, QueuelessNetwork, IndependentNetwork])
@pytest.mark.parametrize("seed", [None, 5])
def test_evaluate_agrees_with_act(network_class, seed):
    network = lively(network_class(ocr_pipeline(), 16, 1))
    states = some_states()
    decision = network.act(states, None if seed is None else torch.Generator().manual_seed(seed))
    assert torch.equal(decision.masks, network.masks(states, decision.choices))
    logarithm, entropy, value = network.evaluate(states, decision.choices, decision.masks)
    torch.testing.assert_close(logarithm, decision.log_prob, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(value, decision.value)
    assert (entropy > 0.0).all()
    taken = decision.choices.reshape(len(states), -1)
    assert decision.masks.gather(2, taken[..., None]).all()


def test_independent_heads_sample_what_they_say():
    network = lively(IndependentNetwork(ocr_pipeline(), 16, 1))
    states = some_states(1).expand(20_000, -1)
    choices = network.act(states, torch.Generator().manual_seed(0)).choices.reshape(-1, 6)
    with torch.no_grad():
        hidden = torch.relu(network.context(network.features_extractor(states[:1])) + network.head_shift)
        logits = torch.einsum("sw,skw->sk", hidden, network.head_weight) + network.head_bias
        expected = torch.softmax(logits.masked_fill(~entry_masks(ocr_pipeline()), -torch.inf), dim=-1)
    shares = torch.stack([(choices == option).float().mean(dim=0) for option in range(3)], dim=1)
    torch.testing.assert_close(shares, expected, atol=0.02, rtol=0.0)
    # Detection's replicas and recognition's variant are drawn apart: their joint shares are the products.
    together = ((choices[:, 1] == 0) & (choices[:, 3] == 0)).float().mean()
    assert float(together) == pytest.approx(float(expected[1, 0] * expected[3, 0]), abs=0.02)


# --- refusal ---------------------------------------------------------------------------------------------------------

GOOD, TOO_MUCH = [[1, 2, 2], [0, 3, 1]], [[1, 3, 1], [2, 3, 1]]  # 7 and 18 of 8 cores


def test_a_refused_action_keeps_what_ran():
    wanted = np.array([GOOD, TOO_MUCH])
    running = np.array([[[0, 1, 1], [0, 1, 1]], [[1, 1, 2], [1, 1, 1]]])
    admitted, refused = admit(ocr_pipeline(), running, wanted)
    assert refused.tolist() == [False, True]
    assert admitted.tolist() == [GOOD, running[1].tolist()]


def begun(pipeline) -> PipelineVectorEnv:
    episodes = PipelineVectorEnv(pipeline, varying_workload(), WEIGHTS, SIMULATION, num_envs=2, seed=11)
    smallest = as_array(pipeline.smallest_configuration())
    episodes.begin(np.arange(2), np.array([20, 40]), np.stack([smallest, smallest]))
    return episodes


def test_a_refused_action_costs_the_penalty_and_nothing_else():
    pipeline = ocr_pipeline()
    refusing, plain = RefusingEpisodes(begun(pipeline), 2.5), begun(pipeline)
    smallest = as_array(pipeline.smallest_configuration()).tolist()
    for wanted, runs, cost in (
        ([GOOD, TOO_MUCH], [GOOD, smallest], [0.0, 2.5]),
        ([TOO_MUCH, GOOD], [GOOD, GOOD], [2.5, 0.0]),
    ):
        (score, interval), (expected, same) = (
            refusing.run_interval(np.array(wanted)),
            plain.run_interval(np.array(runs)),
        )
        np.testing.assert_allclose(score.reward, expected.reward - cost, atol=1e-12)
        assert score.qos.tolist() == expected.qos.tolist()
        assert interval.dropped.tolist() == same.dropped.tolist()
        assert refusing.configurations.tolist() == runs
        np.testing.assert_array_equal(refusing.state(), plain.state())
        np.testing.assert_array_equal(running_configurations(pipeline, refusing.state()), runs)


def test_training_and_validation_refuse_what_independent_heads_take(monkeypatch):
    trainer = AblatedTrainer(IndependentNetwork, 100.0, small_problem(), PARAMETERS, 0)
    trainer.network.features_extractor.standardise_by(some_states().numpy())
    wanted = torch.as_tensor(to_choices(np.array([TOO_MUCH])))
    act = trainer.network.act

    def take_too_much(states, generator):
        return act(states, generator)._replace(choices=wanted.expand(len(states), -1, -1))

    monkeypatch.setattr(trainer.network, "act", take_too_much)
    episodes = trainer.begin((0, 1))
    state, running = episodes.state(), episodes.configurations.copy()
    assert trainer.configure(state).tolist() == running.tolist()
    score, interval = episodes.run_interval(np.array([TOO_MUCH] * len(state)))
    assert (training_reward(score, interval, PARAMETERS.drop_penalty) < -80.0).all()
    _, metrics = trainer.collect(0)
    assert metrics["rollout/reward"] < -80.0
    monkeypatch.undo()


def test_the_guard_of_the_control_loop_refuses_in_the_same_way():
    class TooMuch(Policy):
        def decide(self, observation: Observation):
            return tuple(StageConfiguration(*stage) for stage in TOO_MUCH)

    setting = small_setting()
    steps = run_cycle(ocr_pipeline(), TooMuch(), CYCLES[0], 0, setting)
    assert all("18 cores" in step.refused for step in steps)
    assert len({step.configuration for step in steps}) == 1


def test_the_full_agent_is_trained_as_ever(tmp_path):
    problem = small_problem()
    usual = train(problem, PARAMETERS, 3, tmp_path / "usual")

    def new_trainer(*arguments):
        return AblatedTrainer(ActorCritic, 0.0, *arguments)

    here = train(problem, PARAMETERS, 3, tmp_path / "here", new_trainer=new_trainer)
    for name, weight in usual.state_dict().items():
        assert torch.equal(weight, here.state_dict()[name]), name


# --- worlds ----------------------------------------------------------------------------------------------------------


def test_forecasts_are_what_they_are_called():
    workload = varying_workload()
    steps = np.arange(2, workload.decisions - 2)
    perfect = foretold(workload, "perfect").forecasts
    assert perfect[steps].tolist() == future_maximum(workload.counts, 10 * steps).tolist()
    recent = foretold(workload, "recent-maximum").forecasts
    assert recent[steps].tolist() == [workload.counts[10 * j - 20 : 10 * j].max() for j in steps]
    assert foretold(workload, "lstm") is workload
    assert len(perfect) == len(recent) == len(workload.forecasts)
    with pytest.raises(ValueError, match="forecast 'oracle' is not one of"):
        foretold(workload, "oracle")


def test_a_policy_is_given_the_forecast_of_its_world():
    class Recorder(Policy):
        def decide(self, observation: Observation):
            seen.append(observation.predicted_load)
            return ocr_pipeline().smallest_configuration()

    setting, counts = small_setting(), cycle_counts(TRACE, CYCLES[0])
    found = {}
    for forecast in ablations.FORECASTS:
        seen: list[float] = []
        run_cycle(ocr_pipeline(), Foretold(Recorder(), forecast), CYCLES[0], 0, setting)
        found[forecast] = seen
    inside = range(2, 118)  # where history and horizon lie in the cycle
    assert [found["perfect"][j] for j in inside] == [counts[10 * j : 10 * j + 20].max() for j in inside]
    assert [found["recent-maximum"][j] for j in inside] == [counts[10 * j - 20 : 10 * j].max() for j in inside]
    assert found["lstm"] == [9.0] * 120
    with pytest.raises(ValueError, match="forecast 'oracle' is not one of"):
        Foretold(Recorder(), "oracle")


def test_the_myopic_solver_with_a_perfect_forecast_is_the_clairvoyant_one():
    setting = small_setting()
    policies = [
        Foretold(MyopicPolicy(ocr_pipeline(), WEIGHTS, SIMULATION.batch_timeout), "perfect"),
        ClairvoyantPolicy(ocr_pipeline(), WEIGHTS, SIMULATION.batch_timeout),
    ]
    runs = [run_cycle(ocr_pipeline(), policy, CYCLES[1], 0, setting) for policy in policies]
    assert [step.configuration for step in runs[0]] == [step.configuration for step in runs[1]]


def test_a_world_without_delays_differs_in_nothing_else():
    problem = small_problem()
    other = in_world(problem, World(startup=False))
    variants = [variant for task in other.pipeline.tasks for variant in task.variants]
    assert len(variants) == 5 and all(variant.startup_time == 0.0 for variant in variants)
    assert (other.pipeline.tables.startup_time[np.isfinite(other.pipeline.tables.startup_time)] == 0.0).all()
    for part in ("accuracy", "cores", "service_time"):
        np.testing.assert_array_equal(getattr(other.pipeline.tables, part), getattr(problem.pipeline.tables, part))
    assert other._replace(pipeline=problem.pipeline) == problem
    # What is asked for is there for the whole interval.
    episodes = begun(other.pipeline)
    _, interval = episodes.run_interval(np.array([GOOD, GOOD]))
    np.testing.assert_allclose(interval.ready_throughput[0], [2 * 2 / 0.4, 3 / 0.05])


@pytest.mark.parametrize("forecast", ["recent-maximum", "perfect"])
def test_a_forecast_is_exchanged_in_training_and_in_validation(forecast):
    problem = small_problem()._replace(validation=varying_workload(seed=6))
    other = in_world(problem, World(forecast))
    for split in ("training", "validation"):
        own, exchanged = getattr(problem, split), getattr(other, split)
        assert exchanged.counts is own.counts
        assert exchanged.forecasts.tolist() == foretold(own, forecast).forecasts.tolist() != own.forecasts.tolist()
    assert other._replace(training=problem.training, validation=problem.validation) == problem


def test_each_ablation_is_trained_with_its_own_departure(tmp_path):
    trainings = {name: training_of(small_study(tmp_path), "ocr", name, 0) for name in ABLATIONS}
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
        departures = [getattr(ablation, part) != getattr(full, part) for part in ("training", "network", "world")]
        assert sum(departures) == (name != "agent"), name
    assert {ablations.rival(name) for name in VARIANTS} <= set(SOLVERS)
    assert ablations.rival("perfect-forecast") == "clairvoyant"
    assert ablations.rival("no-startup") == "myopic-no-startup"
    assert {name for name in VARIANTS if ablations.counterpart(name) == "no-startup"} == {
        *("no-startup", "myopic-no-startup", "clairvoyant-no-startup")
    }


def test_a_network_decides_as_the_deployed_agent_does():
    network = lively(ActorCritic(ocr_pipeline(), 16, 1))
    network.features_extractor.standardise_by(some_states().numpy())
    policies = NetworkPolicy(ocr_pipeline(), network), AgentPolicy(Agent(ocr_pipeline(), export(network), {}))
    first, second = (run_cycle(ocr_pipeline(), policy, CYCLES[0], 0, small_setting()) for policy in policies)
    assert [step.configuration for step in first] == [step.configuration for step in second]


# --- whole runs ------------------------------------------------------------------------------------------------------

TRACE = Trace("small", np.tile(varying_workload().counts, 12), np.arange(24_000))
CYCLES = [Cycle("first", 16_500), Cycle("second", 18_060)]


class Steady:
    """A forecaster that always says the same."""

    def predict(self, history: np.ndarray) -> float:
        return 9.0


def small_setting() -> Setting:
    return Setting(TRACE, Steady(), WEIGHTS, SIMULATION, IpaParameters(), {})  # type: ignore[arg-type]


def small_study(folder, **changes) -> Study:
    study = Study(small_setting(), PARAMETERS, {"ocr": small_problem()}, CYCLES, [0], folder)
    return replace(study, **changes)


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
        {"problems": {"ocr": small_problem()._replace(weights=Weights(cost_weight=0.3))}},
        {"problems": {"ocr": small_problem()._replace(pipeline=ocr_pipeline(7))}},
        {"problems": {"ocr": small_problem()._replace(training=varying_workload(seed=6))}},
    ],
    ids=["parameters", "seed", "penalty", "weights", "pipeline", "workload"],
)
def test_whatever_changes_is_trained_again(finished, changes, monkeypatch):
    folder, _ = finished
    assert training_of(small_study(folder), "ocr", "independent-heads", 0).done
    study = small_study(folder, **changes)
    monkeypatch.setattr(ablations, "train", no_training)
    with pytest.raises(AssertionError, match="trained again"):
        measure_ablations(study, variants=("independent-heads",))


def test_the_penalty_concerns_only_who_can_be_refused(finished):
    study = small_study(finished[0], penalty=2.0)
    done = {name for name in ABLATIONS if training_of(study, "ocr", name, 0).done}
    assert done == set(ABLATIONS) - {"independent-heads"}


def test_a_damaged_file_counts_as_none(finished, tmp_path):
    job = training_of(small_study(finished[0]), "ocr", "agent", 0)
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
    job = training_of(study, "ocr", "plain-features", 0)
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


def test_a_variant_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown variants \\['no-luck'\\]; there are agent, "):
        measure_ablations(small_study(tmp_path), variants=("agent", "no-luck"))


# --- tables ----------------------------------------------------------------------------------------------------------


def known_rows(**above_agent: float) -> pd.DataFrame:
    """Two pipelines, three seeds, four cycles; the reward of each variant is the agent's and so much more."""
    rows = []
    for pipeline in ("video", "nlp"):
        for variant in VARIANTS:
            for seed in range(3):
                for cycle in range(4):
                    reward = 10.0 + seed + 3.0 * cycle + above_agent.get(variant.replace("-", "_"), 0.0)
                    refused = 6 if variant == "independent-heads" else 0
                    figures = [reward, 12.0, 5.0 + (variant == "no-expert"), 2.0, refused]
                    rows.append([pipeline, variant, seed, f"cycle-{cycle}", *figures])
    return pd.DataFrame(rows, columns=COLUMNS)


KNOWN = known_rows(
    **{"myopic": -0.25, "no_startup": 1.0, "myopic_no_startup": 0.875, "plain_features": -0.5, "perfect_forecast": 0.25}
)


def test_the_summary_of_known_rows():
    summary = summarise_ablations(KNOWN).set_index(["pipeline", "variant"])
    assert list(summary.index) == [(pipeline, variant) for pipeline in ("video", "nlp") for variant in VARIANTS]
    agent, plain, instant = (summary.loc[("video", name)] for name in ("agent", "plain-features", "no-startup"))
    assert agent["reward"] == pytest.approx(15.5)
    # Seeds and cycles differ, but every pair by the same: nothing is uncertain.
    ends = ["", "_low", "_high"]
    assert [plain[f"difference{end}"] for end in ends] == pytest.approx([-0.5] * 3)
    assert [plain[f"over_myopic{end}"] for end in ends] == pytest.approx([-0.25] * 3)
    assert [agent[f"over_myopic{end}"] for end in ends] == pytest.approx([0.25] * 3)
    # Of another world: held against its own agent and its own solver.
    assert [instant["difference"], instant["over_myopic"]] == pytest.approx([0.0, 0.125])
    assert summary.loc[("nlp", "myopic-no-startup"), "difference"] == pytest.approx(-0.125)
    assert summary.loc[("nlp", "perfect-forecast"), "over_myopic"] == pytest.approx(0.25)
    assert summary.loc[("nlp", "independent-heads"), "refused"] == 6.0
    gains = startup_worth(KNOWN)
    assert list(gains["pipeline"]) == ["video", "nlp"]
    assert gains[["gain", "gain_low", "gain_high"]].to_numpy() == pytest.approx(0.125)


def test_intervals_widen_with_what_differs_from_pair_to_pair():
    noisy = KNOWN.copy()
    noisy["reward"] += np.random.default_rng(0).normal(0.0, 0.1, len(noisy))
    row = summarise_ablations(noisy).set_index(["pipeline", "variant"]).loc[("video", "plain-features")]
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert -0.7 < row["difference_low"] < -0.5 < row["difference_high"] < -0.3


def test_sentences_say_what_the_table_does():
    summary = summarise_ablations(KNOWN)
    plain = part_paragraph(summary, "features")
    assert plain.startswith("**Features without shortcuts**: reward changes by −0.500 [−0.500, −0.500] (video)")
    assert "so worse on video and nlp;" in plain and "0.00 and 0.0 (video)" in plain
    assert "no difference to be told on video and nlp" in part_paragraph(summary, "queues")
    assert "better on video and nlp" in part_paragraph(summary, "forecast")
    assert "by +1.00 and 0.0 (video)" in part_paragraph(summary, "expert")
    assert "Decisions refused in a cycle: 6.0 (video) and 6.0 (nlp)." in part_paragraph(summary, "heads")
    assert "with the study's forecaster +0.250 [+0.250, +0.250] (video)" in forecast_paragraph(summary)
    startup = startup_paragraph(summary, startup_worth(KNOWN))
    assert "+0.250 [+0.250, +0.250] (nlp) with start-up delays" in startup
    assert "+0.125 [+0.125, +0.125] (nlp) without. With delays the difference is larger by +0.125" in startup


def test_the_page_has_a_paragraph_for_every_part(tmp_path):
    summary = summarise_ablations(KNOWN)
    found = ablation_text.findings(summary, startup_worth(KNOWN))
    assert len(found) == len({ablation.part for ablation in ABLATIONS.values()}) - 1  # all but the full agent
    write_page(tmp_path / "page.md", "Parts", "Made up.", found)
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith("# Parts\n\nMade up.\n\n## Does it need an expert?\n\n**Expert acts")
    assert page.count("\n## ") == len(found) and page.endswith(".\n")


def test_figures_in_sentences():
    assert [signed(value) for value in (0.0614, -0.2, -0.0001)] == ["+0.061", "−0.200", "0.000"]
    just_below = {"difference": -0.018, "difference_low": -0.049342, "difference_high": -0.000235}
    assert (verdict(just_below), with_interval(just_below, "difference")) == ("worse", "−0.018 [−0.049, −0.0002]")
    assert with_interval({"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0004}, "gain") == "0.000 [0.000, +0.0004]"
    assert [listed(texts) for texts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    ends = [(-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1)]
    assert [verdict({"difference_low": low, "difference_high": high}) for low, high in ends] == [
        *("worse", "better", "open")
    ]


@pytest.mark.parametrize(("worst", "scale"), [(-0.5, "linear"), (-40.0, "symlog")])
def test_the_figure_shows_every_variant_and_every_world(worst, scale):
    noisy = known_rows(independent_heads=worst, myopic=-0.25, no_expert=-0.4, plain_features=-0.3, no_queues=-0.2)
    noisy["reward"] += np.random.default_rng(0).normal(0.0, 0.3, len(noisy))
    figure = plot_ablations(summarise_ablations(noisy), "small trace")
    upper, lower = figure.axes[0], figure.axes[2]
    assert [axes.get_title() for axes in figure.axes[:2]] == ["video", "nlp"]
    labels = [text.get_text() for text in upper.get_yticklabels()]
    ablated = [ablation.label for ablation in ABLATIONS.values() if ablation.part in PARTS]
    assert labels == [*ablated, "myopic (exact)", "clairvoyant (knows the load)"]
    assert len(ablated) == len(ABLATIONS) - 2  # all but the full agent and the world without delays
    assert [text.get_text() for text in lower.get_yticklabels()] == list(WORLDS.values())
    assert (upper.get_xscale(), "logarithmic" in upper.get_xlabel()) == (scale, scale == "symlog")
    low, high = upper.get_xlim()
    assert low < worst and high > 0.0
