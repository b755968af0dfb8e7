"""Whole messages in the stage queue: batches of rows and tensors, and requests that cannot be joined."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import run

from opd.serving import stage_queue
from opd.serving.protocol import ServingError
from opd.serving.replicas import ReplicaEndpoint
from opd.serving.settings import StageSettings
from opd.serving.stage_queue import StageQueue
from opd.serving.tensors import answer_of, message_of, tensors_of

SECONDS = 0.1


class Sums:
    """A replica that adds up the columns of all tensors, in 0.1 s a call."""

    def __init__(self, address):
        self.calls = []

    async def infer(self, request, age, timeout):
        tensors = tensors_of(request)
        rows = {name: len(array) for name, array in tensors.items()}
        self.calls.append((asyncio.get_running_loop().time(), rows))
        await asyncio.sleep(SECONDS)
        if "short" in tensors:
            return answer_of({"sum": np.zeros(1)})
        return answer_of({"sum": sum(array.sum(axis=1) for array in tensors.values())})

    async def ready(self, timeout):
        return True

    async def close(self):
        pass


def serve(*requests, **stage_settings):
    """Answers, or errors, to requests of one moment; and the calls of the only replica."""

    async def main():
        replica = Sums("")
        queue = StageQueue("p", "t", StageSettings(**stage_settings), lambda address: replica)
        queue.configure(queue.settings.batch_size, [ReplicaEndpoint("r", "v", "r")])
        answers = await asyncio.gather(*(queue.submit(request) for request in requests), return_exceptions=True)
        return answers, replica.calls

    return run(main())


def numbers(name, *rows, **options):
    return message_of({name: np.array(rows, float)}, **options)


def test_a_batch_counts_requests_and_joins_their_rows():
    requests = [numbers("x", [1, 2]), numbers("x", [3, 4], [5, 6]), numbers("x", [7, 8])]
    for place, request in enumerate(requests):
        request.id = f"request {place}"
    answers, calls = serve(*requests, batch_size=3)
    assert calls == [(0.0, {"x": 4})]
    assert [tensors_of(answer)["sum"].tolist() for answer in answers] == [[3], [7, 11], [15]]
    assert [answer.id for answer in answers] == ["request 0", "request 1", "request 2"]


def test_all_tensors_of_a_request_stay_together():
    requests = [message_of({"x": np.full((rows, 1), 1.0), "y": np.full((rows, 2), 10.0)}) for rows in (2, 1)]
    answers, calls = serve(*requests, batch_size=2)
    assert [each for _, each in calls] == [{"x": 3, "y": 3}]
    assert [tensors_of(answer)["sum"].tolist() for answer in answers] == [[21, 21], [21]]


def test_a_batch_ends_before_a_request_that_cannot_be_joined():
    """The order stays first in, first out, and nobody waits for a batch that cannot grow."""
    requests = [numbers("x", [1]), numbers("x", [2]), numbers("y", [3]), numbers("x", [4], raw=False)]
    answers, calls = serve(*requests, batch_size=4, batch_timeout=0.5)
    assert [rows for _, rows in calls] == [{"x": 2}, {"y": 1}, {"x": 1}]
    assert [begin for begin, _ in calls] == pytest.approx([0.0, 0.1, 0.5])
    assert [tensors_of(answer)["sum"].tolist() for answer in answers] == [[1], [2], [3], [4]]


def test_a_batch_ends_before_it_is_too_large_for_a_message(monkeypatch):
    monkeypatch.setattr(stage_queue, "MAX_MESSAGE_BYTES", 2000)
    requests = [message_of({"x": np.zeros((1, 100))}) for _ in range(4)]
    assert 800 < requests[0].ByteSize() < 1000
    assert [rows for _, rows in serve(*requests, batch_size=4)[1]] == [{"x": 2}, {"x": 2}]


def test_an_answer_without_a_row_for_each_row_fails_its_batch_alone():
    answers, _ = serve(numbers("short", [1], [2]), numbers("x", [1]), batch_size=2)
    assert isinstance(answers[0], ServingError)
    assert "model 't' answered 2 rows with tensor 'sum' of shape [1]; its first axis must be 2" in str(answers[0])
    assert tensors_of(answers[1])["sum"].tolist() == [1]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.sampled_from("xy"), st.integers(1, 3), st.booleans()), min_size=1, max_size=20),
    st.sampled_from([1, 2, 4]),
)
def test_every_request_gets_its_own_answer_whatever_its_neighbours(kinds, batch_size):
    requests = [
        numbers(name, *[[place, row] for row in range(rows)], raw=raw) for place, (name, rows, raw) in enumerate(kinds)
    ]
    answers, calls = serve(*requests, batch_size=batch_size, drop_after=100)
    for place, (answer, (_, rows, _)) in enumerate(zip(answers, kinds, strict=True)):
        assert tensors_of(answer)["sum"].tolist() == [place + row for row in range(rows)]
    assert sum(sum(rows.values()) for _, rows in calls) == sum(rows for _, rows, _ in kinds)
