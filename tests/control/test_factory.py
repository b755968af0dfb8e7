"""The policy factory: every name, its errors, and the fallback of agents."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from deadlines import PATIENCE
from small_agents import agent_for, trained_with
from small_pipelines import every_configuration, ocr_pipeline

from opd.agent.single.deployed import Agent, CheckpointError
from opd.agent.weights import TrainedAgent, WeightsError
from opd.control import AGENT, DEPLOYABLE_POLICIES, POLICIES, SINGLE_AGENT
from opd.control.factory import agent_kind, agent_policy, build_policy
from opd.control.policies import TRAINED_LOAD_SHARE
from opd.measurement import Observation, SimulationParameters, idle_observation
from opd.objective import Objective, Weights
from opd.pipeline import Configuration, Pipeline, ServiceLevel
from opd.solvers import IpaParameters, greedy, ipa_dynamic_program, ipa_highs, myopic
from opd.solvers.service_level import best_for_level, greedy_for_level, ipa_for_level


def observation(pipeline: Pipeline, predicted_load: float, incoming_load: float = 5.0) -> Observation:
    seen = replace(idle_observation(pipeline), predicted_load=predicted_load, incoming_load=incoming_load)
    return replace(seen, coming_load=predicted_load, coming_counts=np.full(40, int(predicted_load)))


def build(name, pipeline, **options):
    return build_policy(name, pipeline, Weights(), SimulationParameters(), IpaParameters(), **options)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_by_name_decide_within_the_limits(name, tmp_path):
    pipeline, path = ocr_pipeline(), tmp_path / "agent"
    agent_for(pipeline).save(path)
    policy = build(name, pipeline, agent=path if name == SINGLE_AGENT else None, simulated=True)
    assert policy.decide(observation(pipeline, 5.0)) in every_configuration(pipeline)


def test_policies_that_solve_do_so_for_the_objective():
    """Of a service level, IPA is solved by dynamic programming only: HiGHS knows no percentiles."""
    pipeline, simulation, ipa = ocr_pipeline(capacity=16), SimulationParameters(), IpaParameters()
    level = ServiceLevel(pipeline.service_level.seconds, accuracy_weight=20.0)
    by_program = ipa_for_level(pipeline, 7.0, level, simulation, ipa)
    expected: dict[Objective, dict[str, Configuration]] = {
        Weights(): {
            "greedy": greedy(pipeline, 7.0),
            "ipa": ipa_highs(pipeline, 7.0, ipa),
            "dynamic-program": ipa_dynamic_program(pipeline, 7.0, ipa),
            "myopic": myopic(pipeline, 7.0, Weights(), simulation.batch_timeout),
        },
        level: {
            "greedy": greedy_for_level(pipeline, 7.0, level, simulation),
            "ipa": by_program,
            "dynamic-program": by_program,
            "myopic": best_for_level(pipeline, 7.0, level, simulation),
        },
    }
    for objective, decisions in expected.items():
        for name, decision in decisions.items():
            policy = build_policy(name, pipeline, objective, simulation, ipa)
            assert policy.decide(observation(pipeline, 7.0)) == decision, (objective, name)


@pytest.mark.parametrize(
    "name, remedy",
    [
        ("agent-single", "needs the file of an agent that was trained for the pipeline"),
        ("oracle", f"'oracle' is not one of {', '.join(DEPLOYABLE_POLICIES)}, or module:Class$"),
        ("clairvoyant", "is not one of random, greedy.* outside the simulator"),
    ],
)
def test_a_policy_that_cannot_be_built_is_named(name, remedy):
    with pytest.raises(ValueError, match=remedy):
        build(name, ocr_pipeline())


@pytest.mark.parametrize("expert", ["myopic", "ipa", "lookahead"])
@pytest.mark.parametrize(("predicted", "incoming"), [(30.5, 5.0), (5.0, 31.0), (30.0, 30.0)])
def test_the_expert_of_its_training_is_the_fallback_of_an_agent(expert, predicted, incoming):
    pipeline, weights = ocr_pipeline(), Weights(cost_weight=0.4)
    agent = agent_for(pipeline)
    seen = observation(pipeline, predicted, incoming)
    alone = agent_policy(agent).decide(seen)
    load = max(predicted, incoming)
    fallback = (
        ipa_dynamic_program(pipeline, load, IpaParameters(10.0, 0.4, 0.02))
        if expert == "ipa"
        else myopic(pipeline, load, weights, 0.5)
    )
    assert alone != fallback
    trained = trained_with(30.0 / TRAINED_LOAD_SHARE, weights, expert)
    decided = agent_policy(Agent(pipeline, agent.weights, trained)).decide(seen)
    assert decided == (fallback if load > 30.0 else alone)


def test_the_fallback_of_an_agent_plans_for_the_backlog():
    pipeline = ocr_pipeline()
    agent = Agent(pipeline, agent_for(pipeline).weights, trained_with(100.0, Weights()))
    seen = replace(observation(pipeline, 8.0), queue=np.array([50, 60]))
    policy = agent_policy(agent)
    planned = myopic(pipeline, 8.0 + 110 / 10, Weights(), 0.5)
    assert planned != myopic(pipeline, 8.0, Weights(), 0.5)
    assert policy.decide(seen) == planned and policy.fallback


@pytest.mark.parametrize("largest_load", [None, np.inf])
def test_an_agent_without_a_largest_load_has_no_fallback(largest_load):
    pipeline = ocr_pipeline()
    parameters = {} if largest_load is None else trained_with(largest_load, Weights())
    policy = agent_policy(Agent(pipeline, agent_for(pipeline).weights, parameters))
    policy.decide(observation(pipeline, 8000.0))
    assert not policy.fallback


def test_the_agent_leaves_to_the_planner_what_is_unlike_its_training_and_says_why():
    pipeline = ocr_pipeline()
    policy = build(AGENT, pipeline, simulated=True)
    policy.decide(observation(pipeline, 5.0))
    assert not policy.fallback and policy.fallback_reason == ""
    above = observation(pipeline, 8000.0)
    assert policy.decide(above) == build("lookahead", pipeline, simulated=True).decide(above)
    assert policy.fallback and policy.fallback_reason.startswith("a load of 8e+03 requests/s is above ")
    slow = replace(pipeline, tasks=tuple(_starting_in(task, 91.0) for task in pipeline.tasks))
    strange = build(AGENT, slow, simulated=True)
    strange.decide(observation(slow, 5.0))
    assert strange.fallback_reason == "a start-up time of 91 s is above 90 s"


def _starting_in(task, seconds):
    return replace(task, variants=tuple(replace(each, startup_time=seconds) for each in task.variants))


def test_a_file_of_either_kind_of_agent_is_told_by_its_format(tmp_path):
    pipeline, single, tuned = ocr_pipeline(), tmp_path / "single.npz", tmp_path / "tuned.npz"
    agent_for(pipeline).save(single)
    replace(TrainedAgent.load(), about={"fine_tuned_for": "ocr"}).save(tuned)
    assert (agent_kind("mine", single), agent_kind("mine", tuned)) == (SINGLE_AGENT, AGENT)
    assert (agent_kind("agent", single), agent_kind("mine", tmp_path / "none")) == (AGENT, SINGLE_AGENT)
    assert build(AGENT, pipeline).origin == "trained for every pipeline"
    assert build(AGENT, pipeline, agent=tuned).origin == "fine-tuned for pipeline 'ocr'"
    with pytest.raises(WeightsError, match="has format 'opd agent 2', not 'opd agent 4'; train the agent again"):
        build(AGENT, pipeline, agent=single)
    with pytest.raises(CheckpointError, match="has format 'opd agent 4', not 'opd agent 2'; train the agent again"):
        build(SINGLE_AGENT, pipeline, agent=tuned)


def test_the_names_of_policies_load_nothing_else():
    code = "import sys, opd.control; assert not {'numpy', 'torch', 'pandas'} & sys.modules.keys(), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)
