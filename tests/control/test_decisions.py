"""What counts as a decision, and what a policy may answer without harm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nonsense import NONSENSE
from small_pipelines import ocr_pipeline, pipelines, stages

from opd.control.decisions import DecisionError, as_decision, shown
from opd.pipeline import InfeasibleError, StageConfiguration, check_feasible

GOOD = stages((1, 2, 1), (0, 2, 2))


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        ((1, 2, 1), (0, 2, 2)),
        [[1, 2, 1], [0, 2, 2]],
        [(True, 2, 1), np.array([0, 2, 2])],
        np.array(GOOD),
        np.array(GOOD, dtype=np.uint8),
        torch.tensor(GOOD),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_sequences_of_whole_numbers_are_configurations(answer):
    decision = as_decision(ocr_pipeline(), answer)
    assert decision == GOOD
    assert all(type(stage) is StageConfiguration and {*map(type, stage)} == {int} for stage in decision)


class Unprintable:
    def __repr__(self):
        raise ZeroDivisionError

    def __len__(self):
        return 2


class Endless:
    """Claims to have two parts."""

    def __len__(self):
        return 2

    def __iter__(self):
        while True:
            yield (0, 1, 1)


NO_CONFIGURATION, NO_NUMBERS = "is not a configuration", "has entries that are not whole numbers"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, f"the decision None {NO_CONFIGURATION}: for each of the 2 tasks of pipeline 'ocr' a triple"),
        (3, f"the decision 3 {NO_CONFIGURATION}"),
        ("ab", f"the decision 'ab' {NO_CONFIGURATION}"),
        ({0: 1, 1: 2}, f"the decision {{0: 1, 1: 2}} {NO_CONFIGURATION}"),
        ([], NO_CONFIGURATION),
        ([(0, 1, 1)], NO_CONFIGURATION),
        ([(0, 1, 1)] * 3, NO_CONFIGURATION),
        ([(0, 1), (0, 1, 1)], NO_CONFIGURATION),
        ([(0, 1, 1, 1), (0, 1, 1)], NO_CONFIGURATION),
        ([0, 1, 1, 0, 1, 1], NO_CONFIGURATION),
        (np.array(1), NO_CONFIGURATION),
        ((stage for stage in GOOD), NO_CONFIGURATION),
        (Unprintable(), NO_CONFIGURATION),
        ([Unprintable(), Unprintable()], NO_CONFIGURATION),
        ([(0, 1.0, 1), (0, 1, 1)], NO_NUMBERS),
        (np.array(GOOD, dtype=float), NO_NUMBERS),
        ([(0, float("nan"), 1), (0, 1, 1)], NO_NUMBERS),
        ([("0", "1", "1"), (0, 1, 1)], NO_NUMBERS),
        ([(None, 1, 1), (0, 1, 1)], NO_NUMBERS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_refused_with_what_it_is_and_what_is_expected(answer, reason):
    with pytest.raises(DecisionError) as refused:
        as_decision(ocr_pipeline(), answer)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_an_endless_answer_is_read_as_far_as_needed():
    assert as_decision(ocr_pipeline(), Endless()) == stages((0, 1, 1), (0, 1, 1))


@given(pipelines(), NONSENSE)
def test_any_answer_becomes_integers_or_is_refused(pipeline, answer):
    try:
        decision = as_decision(pipeline, answer)
    except DecisionError:
        return
    assert len(decision) == len(pipeline.tasks)
    assert all(type(entry) is int for stage in decision for entry in stage)
    assert [list(map(int, stage)) for stage in answer] == [list(stage) for stage in decision]


@given(pipelines(), st.data())
def test_whole_numbers_of_any_size_can_be_checked(pipeline, data):
    decision = as_decision(pipeline, data.draw(st.tuples(*(st.tuples(*[st.integers()] * 3) for _ in pipeline.tasks))))
    try:
        check_feasible(pipeline, decision)
    except InfeasibleError as error:
        assert str(error)


def test_objects_that_cannot_be_shown_do_not_get_in_the_way():
    assert "Unprintable" in shown(Unprintable())
    assert len(shown(list(range(10**5)))) < 100
