"""Start-up times that are measured on a cluster, and who plans with them then."""

import json
from dataclasses import replace

import numpy as np
import pytest
from small_pipelines import stages

from opd import cli
from opd.agent.description import describe
from opd.measurement import SimulationParameters, idle_observation
from opd.pipeline import as_array
from opd.planner.expected import ready_rates
from opd.planner.present import present_stages
from opd.profiling.pipelines import load_objective, load_pipeline
from opd.profiling.profiler import ProfileRecord
from opd.profiling.profiles import load_profile
from opd.simulator.simulator import Simulator
from opd.solvers.exact import solver_for

ONE, TWO = stages((1, 1, 1), (0, 1, 1)), stages((1, 2, 1), (0, 1, 1))
"""Replicas of the large variant of the first stage: each serves 20 requests/s."""


@pytest.fixture
def measured(shell):
    """A pipeline whose large variant takes eight seconds to start on the cluster."""
    assert shell.deploy() == cli.DONE, shell.err
    shell.kubelet.behave("tiny-first-small", stamped=(0, 1, 2))
    shell.kubelet.behave("tiny-first-large", stamped=(1, 3, 4))
    shell.kubelet.behave("tiny-second-small", stamped=(0, 0, 1))
    assert shell("startup", "--starts=1") == cli.DONE, shell.err
    return shell


def test_the_profile_has_what_was_measured_and_the_place(measured):
    assert "first/large 1 s 3 s 4 s 8 s node" in [" ".join(line.split()) for line in measured.out.splitlines()]
    table = load_profile(measured.folder / "profile.csv")
    known = table.groupby(["task", "variant"])["startup_seconds"].unique().map(list).to_dict()
    assert known == {
        ("first", "large"): [8.0],
        ("first", "small"): [3.0],
        ("first", "stage"): [2.0],  # which the pipeline does not have
        ("second", "small"): [1.0],
        ("third", "small"): [2.0],
    }
    assert (table["latency_mean"] == 0.05).all()
    starts = json.loads((measured.folder / "profile.json").read_text())["starts"]
    phases = {"node": "node", "scheduling": 1.0, "image": 3.0, "loading": 4.0, "seconds": 8.0}
    assert starts["first/large"] == {**phases, "namespace": "space", "starts": 1} and len(starts) == 3


def test_agent_planner_and_simulator_take_the_start_from_the_profile(measured):
    """In 10 s a second replica serves for 2 s: 20 requests/s, and 4 more in the mean."""
    pipeline, simulation = load_pipeline(measured.folder / "tiny.yaml"), SimulationParameters(service_noise=0.0)
    objective = load_objective(measured.folder / "tiny.yaml")
    assert pipeline.tables.startup_time.tolist() == [[3.0, 8.0], [1.0, np.inf]]
    told = describe(pipeline, objective, simulation, solver_for(objective, simulation))
    assert told.startup.tolist() == [[0.3, 0.8], [0.1, 0.0]]
    simulator = Simulator(pipeline, simulation)
    simulator.reset(ONE)
    interval = simulator.step_arrivals(as_array(TWO), np.array([]))
    assert interval.ready_throughput[0] == pytest.approx([24.0, 20.0])
    observed = present_stages(pipeline, replace(idle_observation(pipeline), configuration=ONE))
    assert ready_rates(pipeline, observed, as_array(TWO)[None], 10.0, 1)[0, 0] == pytest.approx([24.0, 20.0])


def test_json_has_the_phases_and_what_is_missing(measured):
    measured.kubelet.behave("tiny-first-large", broken="ErrImageNeverPull")
    assert measured("startup", "--starts=1", "--json") == cli.FAILED
    found = json.loads(measured.out)
    assert found["measured"]["second/small"]["loading"] == 1.0
    assert list(found["left out"]) == ["first/large"] and "first/large was not measured" in measured.err
    assert load_pipeline(measured.folder / "tiny.yaml").tables.startup_time[0, 1] == 8.0  # as before


def test_measuring_here_again_keeps_the_start_on_the_cluster_of_what_it_does_not_measure(measured):
    record = ProfileRecord(measured.folder / "profile.csv")
    record.save()
    about = json.loads((measured.folder / "profile.json").read_text())
    assert len(about["starts"]) == 3 and about["cores"] >= 1
    assert load_pipeline(measured.folder / "tiny.yaml").tables.startup_time[0, 1] == 8.0


def test_the_profile_of_a_pipeline_that_ships_stays_as_it_is(shell):
    assert shell.deploy(pipeline="ocr") == cli.DONE, shell.err
    before = load_pipeline("ocr")
    assert shell("startup", "--starts=1", pipeline="ocr") == cli.DONE, shell.err
    assert "stays as it is" in shell.err and load_pipeline("ocr") == before


def test_there_is_nothing_to_measure_of_a_pipeline_that_is_not_deployed(shell):
    assert shell("startup") == cli.NOT_DEPLOYED
