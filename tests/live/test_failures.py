"""Failed requests of a live run: counted, explained, and too many of them an error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from live_runs import SMALL, requests, run_of

from opd.live.failures import (
    USELESS_SHARE,
    UselessRunError,
    count_failures,
    describe_failures,
    require_useful,
    useless_reason,
)
from opd.live.runs import summarise_run


def failing(number, *failures):
    """Records of ``number`` requests, the first of which failed like this: outcome, code, message."""
    records = requests([0.1 * index for index in range(number)], 0.05)
    for index, failure in enumerate(failures):
        records.loc[index, ["outcome", "code", "detail"]] = failure
    return records


REFUSED = "failed", "INVALID_ARGUMENT", "stage 'features': 2 tensors; send 1"
CRASHED = "failed", "INTERNAL", "stage 'scores': the model failed: ValueError"
DROPPED = "dropped", "DEADLINE_EXCEEDED", "waited longer than 10 s in the pipeline"


def test_the_most_frequent_reason_has_code_stage_and_its_most_frequent_message():
    other = (*REFUSED[:2], "stage 'features': 3 tensors; send 1")
    counted = count_failures(failing(10, CRASHED, REFUSED, other, REFUSED, CRASHED, DROPPED))
    assert counted == {
        "requests": 6,
        "share": 0.6,
        "most_frequent": {
            "requests": 3,
            "outcome": "failed",
            "code": "INVALID_ARGUMENT",
            "stage": "features",
            "message": "stage 'features': 2 tensors; send 1",
        },
    }
    json.dumps(counted)


def test_without_failures_there_is_no_reason():
    counted = count_failures(failing(3))
    assert counted == {"requests": 0, "share": 0.0, "most_frequent": None}
    assert count_failures(failing(0))["share"] == 0.0


def result(records):
    return summarise_run(run_of([SMALL, SMALL], records))


def test_runs_with_failures_are_described_and_useful_ones_pass():
    results = {"greedy": result(failing(8)), "agent": result(failing(8, REFUSED, DROPPED, DROPPED))}
    (sentence,) = describe_failures(results)
    assert sentence == (
        "agent: 3 of 8 requests (37.5%) got no answer. Most frequent reason (2 requests): dropped, DEADLINE_EXCEEDED: "
        "waited longer than 10 s in the pipeline"
    )
    require_useful(results)


def test_a_run_in_which_most_requests_failed_is_an_error_with_the_reason():
    results = {"greedy": result(failing(8)), "agent": result(failing(8, *[REFUSED] * 5))}
    with pytest.raises(UselessRunError) as caught:
        require_useful(results)
    text = str(caught.value)
    assert text.startswith("agent: 5 of 8 requests failed, more than 50%; the results written so far are kept.")
    assert "failed, INVALID_ARGUMENT: stage 'features': 2 tensors; send 1" in text
    assert "greedy" not in text


def test_a_run_without_completed_requests_is_useless_also_if_all_were_dropped():
    assert useless_reason(result(failing(2, DROPPED, DROPPED))["requests"]) == "none of 2 requests was completed"
    assert useless_reason({"offered": 0, "completed": 0, "dropped": 0}) == "none of 0 requests was completed"


@given(st.integers(1, 1000), st.data())
def test_a_run_with_answers_is_useless_exactly_if_more_than_the_share_failed(completed, data):
    failed, dropped = data.draw(st.integers(0, 2000)), data.draw(st.integers(0, 2000))
    offered = completed + failed + dropped
    reason = useless_reason({"offered": offered, "completed": completed, "failed": failed, "dropped": dropped})
    assert (reason != "") == (failed / offered > USELESS_SHARE)
