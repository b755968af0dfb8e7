"""The course: its files, and that an interrupted one ends as one that ran through."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_situations import small_practice

from opd.agent import cloning, course, demonstrations, practice
from opd.agent.course import CourseParameters, run_course
from opd.agent.demonstrations import Lesson
from opd.agent.description import describe
from opd.agent.ppo import PpoParameters
from opd.agent.practice import PracticeProblem
from opd.agent.scoring import ScoringWeights
from opd.agent.weights import TrainedAgent
from opd.measurement import SimulationParameters
from opd.planner.lookahead import PlannerParameters

BRIEF = CourseParameters(pipelines=(2, 2), cloning_steps=(3, 3), updates=2, pool=3, width=8, blocks=1)
PPO = PpoParameters(problems=2, episodes=2, decisions=3, epochs=1, minibatch=6)


class PowerCut(Exception):
    """Interrupts a course."""


@pytest.fixture(scope="module", autouse=True)
def few_of_everything() -> Iterator[None]:
    """Few loads are solved for, few situations shown, and PPO is saved after every update."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(practice, "describe", partial(describe, solved_loads=3))
        patched.setattr(demonstrations, "EFFORT", PlannerParameters(futures=(1,), loads=3))
        patched.setattr(demonstrations, "EPISODES", 2)
        patched.setattr(demonstrations, "DECISIONS", 3)
        patched.setattr(demonstrations, "SHOWN", 1.0)
        patched.setattr(cloning, "PIPELINES", 2)
        patched.setattr(cloning, "SITUATIONS", 4)
        patched.setattr(course, "_SAVE_EVERY", 1)
        yield


def run(lesson: Lesson, folder: Path, **changes) -> TrainedAgent:
    return run_course(lesson, folder, replace(BRIEF, **changes), PPO, workers=1)


@pytest.fixture(scope="module")
def finished(prepared, tmp_path_factory) -> tuple[TrainedAgent, Path]:
    """A course on generated pipelines that ran through, and its folder."""
    folder = tmp_path_factory.mktemp("course")
    return run(prepared.lesson, folder), folder


def assert_same_weights(one: ScoringWeights, other: ScoringWeights) -> None:
    for name, expected, found in zip(ScoringWeights._fields, one, other, strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=name)


# --- files -----------------------------------------------------------------------------------------------------------

FILES = {
    *("round-0/0.npz", "round-0/1.npz", "round-1/2.npz", "round-1/3.npz"),
    *("course.json", "round-0.pt", "round-0.csv", "round-1.pt", "round-1.csv", "metrics.csv", "checkpoint.pt"),
}


def test_a_course_leaves_its_files(finished):
    agent, folder = finished
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == FILES
    for number in range(2):
        losses = pd.read_csv(folder / f"round-{number}.csv")
        assert losses["step"].tolist() == [0, 1, 2] and (losses["loss"] > 0.0).all()
    metrics = pd.read_csv(folder / "metrics.csv")
    assert metrics["update"].tolist() == [0, 1] and np.isfinite(metrics.to_numpy()).all()
    assert agent.weights.stage_bias.shape == (8,) and all(np.isfinite(part).all() for part in agent.weights)


def test_a_folder_with_another_course_is_refused(finished, prepared):
    with pytest.raises(ValueError, match="holds a course with other settings of course, see course.json"):
        run(prepared.lesson, finished[1], cloning_rate=0.5)


def test_a_folder_with_a_course_on_another_trace_of_the_same_name_is_refused(finished, prepared):
    traces = {name: replace(trace, recorded=trace.recorded + 1) for name, trace in prepared.lesson.traces.items()}
    with pytest.raises(ValueError, match="holds a course with other settings of traces, see course.json"):
        run(prepared.lesson._replace(traces=traces), finished[1])


def test_an_agent_says_how_it_was_trained(finished, tmp_path):
    finished[0].save(tmp_path / "agent.npz")
    about = TrainedAgent.load(tmp_path / "agent.npz").about
    assert (about["course"]["pipelines"], about["ppo"]["problems"], list(about["traces"])) == ([2, 2], 2, ["waves.csv"])


def test_a_finished_course_does_nothing_again(finished, prepared, monkeypatch):
    agent, folder = finished
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for module, name in ((demonstrations, "demonstrate"), (course, "imitate"), (course, "improve")):
        monkeypatch.setattr(module, name, lambda *given: pytest.fail("did again what was done"))
    assert_same_weights(run(prepared.lesson, folder).weights, agent.weights)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name", "call", "left"),
    [
        (demonstrations, "demonstrate", 3, ["round-0", "round-0.csv", "round-0.pt", "round-1"]),
        (course, "imitate", 1, ["round-0", "round-0.csv", "round-0.pt", "round-1"]),
        (
            course,
            "improve",
            1,
            ["checkpoint.pt", "metrics.csv", *(f"round-{n}{end}" for n in (0, 1) for end in ("", ".csv", ".pt"))],
        ),
    ],
    ids=["in a demonstration", "in imitation", "in PPO"],
)
def test_an_interrupted_course_ends_with_the_same_weights(
    finished, prepared, tmp_path, monkeypatch, module, name, call, left
):
    """Power fails in one of the calls of a function, those before which are complete."""
    original, calls = getattr(module, name), []

    def called(*given):
        calls.append(name)
        if len(calls) == call + 1:
            raise PowerCut
        return original(*given)

    with monkeypatch.context() as patched:
        patched.setattr(module, name, called)
        with pytest.raises(PowerCut):
            run(prepared.lesson, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["course.json", *left])
    assert_same_weights(run(prepared.lesson, tmp_path).weights, finished[0].weights)


@pytest.mark.parametrize("lost", [["checkpoint.pt"], ["checkpoint.pt", "round-1.pt", "round-1/3.npz"]])
def test_lost_files_are_made_again(finished, prepared, tmp_path, lost):
    folder = tmp_path / "course"
    shutil.copytree(finished[1], folder)
    for name in lost:
        (folder / name).unlink()
    assert_same_weights(run(prepared.lesson, folder).weights, finished[0].weights)
    assert all((folder / name).is_file() for name in FILES)


def test_a_course_may_be_made_longer(finished, prepared, tmp_path, monkeypatch):
    """A third update goes on from the two that are there."""
    shutil.copytree(finished[1], tmp_path / "course")
    improve, calls = course.improve, []
    monkeypatch.setattr(course, "improve", lambda *given: calls.append(len(given)) or improve(*given))
    run(prepared.lesson, tmp_path / "course", updates=3)
    assert len(calls) == 1
    assert pd.read_csv(tmp_path / "course" / "metrics.csv")["update"].tolist() == [0, 1, 2]


# --- seeds -----------------------------------------------------------------------------------------------------------


class NotingLesson(Lesson):
    """A lesson with the same small problem for every seed, which notes the seeds."""

    asked: list[int]

    def problem(self, seed):
        self.asked.append(seed)
        return small_practice()


def seeds_of(folder: Path, seed: int) -> tuple[list[int], ScoringWeights]:
    """Pipelines of a course, in the order in which they are drawn, and its weights."""
    lesson = NotingLesson(SimulationParameters(), {}, {})
    lesson.asked = []
    return lesson.asked, run(lesson, folder, seed=seed).weights


def test_another_seed_draws_other_pipelines(tmp_path):
    (first, weights), (again, same), (second, other) = (
        seeds_of(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again and first[:4] == [0, 1, 2, 3]
    assert not set(first) & set(second) and len(set(second)) == len(second) >= 6
    assert_same_weights(weights, same)
    assert not np.array_equal(weights.option_weight, other.option_weight)


class OneProblem(Lesson):
    """A lesson with one problem for every seed."""

    only: PracticeProblem

    def problem(self, seed):
        return self.only


def test_a_second_lesson_in_the_same_process_practises_on_its_own_problems(tmp_path, monkeypatch):
    roll_out, practised = course.roll_out, []
    monkeypatch.setattr(course, "roll_out", lambda *given: practised.append(given[0]) or roll_out(*given))
    for name in ("first", "second"):
        lesson = OneProblem(SimulationParameters(), {}, {})
        lesson.only = small_practice()
        run(lesson, tmp_path / name)
        assert len(practised) == BRIEF.updates * PPO.problems
        assert all(problem is lesson.only for problem in practised)
        practised.clear()


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pipelines": (2, 0)}, r"pipelines.1\n.*greater than or equal to 1 .*input_value=0"),
        ({"pipelines": (2, 2, 2)}, "pipelines has 3 rounds and cloning_steps 2; give both as many"),
        ({"cloning_steps": (-3, 3)}, r"cloning_steps.0\n.*greater than or equal to 1 .*input_value=-3"),
        ({"cloning_rate": 0.0}, r"cloning_rate\n.*greater than 0 .*input_value=0.0"),
        ({"cloning_rate": float("nan")}, r"cloning_rate\n.*finite number"),
        ({"updates": -1}, r"updates\n.*greater than or equal to 0 .*input_value=-1"),
        ({"pool": 0}, r"pool\n.*greater than or equal to 1 .*input_value=0"),
        ({"width": 0}, r"width\n.*greater than or equal to 1 .*input_value=0"),
        ({"seed": 10}, r"seed\n.*less than or equal to 9 .*input_value=10"),
    ],
)
def test_a_wrong_parameter_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(BRIEF, **wrong)


def test_an_unknown_parameter_is_named():
    with pytest.raises(ValueError, match=r"rounds\n.*Unexpected"):
        CourseParameters(rounds=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"problems": 0}, r"problems\n.*greater than or equal to 1 .*input_value=0"),
        ({"discount": 1.5}, r"discount\n.*less than or equal to 1 .*input_value=1.5"),
        ({"learning_rate": -1.0}, r"learning_rate\n.*greater than 0 .*input_value=-1.0"),
        ({"value_coefficient": -0.1}, r"value_coefficient\n.*greater than or equal to 0 .*input_value=-0.1"),
    ],
)
def test_a_wrong_parameter_of_ppo_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(PPO, **wrong)


def test_more_problems_than_pipelines_to_practise_on_are_refused_before_anything_is_done(prepared, tmp_path):
    with pytest.raises(ValueError, match="2 problems of a rollout are more than the 1 of pool; raise pool"):
        run(prepared.lesson, tmp_path, pool=1)
    assert not list(tmp_path.iterdir())
