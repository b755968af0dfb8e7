"""The walk of a request through the stages of its pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving import metrics
from opd.serving.adapters import load_adapter, next_request
from opd.serving.batching import check_request
from opd.serving.client import Client
from opd.serving.outcomes import COMPLETED, FAILED, OUTCOMES
from opd.serving.protocol import MalformedRequestError, ServingError, age_of, outcome_of
from opd.serving.replicas import ReplicaEndpoint
from opd.serving.settings import GatewaySettings
from opd.serving.stage_queue import StageQueue


class Gateway:
    """A pipeline behind one call, within one event loop.

    Args:
        settings: stages, their adapters and the limits of their queues.
        connect: creates the client of the model of a task at an address.

    Attributes:
        ready: whether it should get requests; those that come are served in any case.

    Raises:
        ValueError: if two stages have one task.
        AdapterError: if an adapter cannot be loaded.
    """

    def __init__(self, settings: GatewaySettings, connect: Callable[[str, str], Client] = Client) -> None:
        self.name, self.ready, self._objective = settings.name, True, settings.objective
        self._queues: dict[str, StageQueue] = {}
        for stage in settings.stages:
            if stage.task in self._queues:
                raise ValueError(f"two stages of {self.name!r} have task {stage.task!r}; give each a task of its own")
            client_of = partial(_client, connect, stage.task)
            self._queues[stage.task] = StageQueue(self.name, stage.task, settings.queue, client_of)
        self._stages = [
            (load_adapter(stage.adapter, stage.task), stage.task, self._queues[stage.task]) for stage in settings.stages
        ]
        # Without a first value a series is absent, and an absent series does not mean zero load.
        self._requests = metrics.requests.labels(self.name)
        self._latency = metrics.latency.labels(self.name)
        self._within = metrics.within.labels(self.name)
        self._answers = {outcome: metrics.answers.labels(self.name, outcome) for outcome in OUTCOMES}

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Return the answer of the last stage; every outcome is counted, including cancellation by the caller.

        Args:
            request: belongs to the gateway from now on.

        Raises:
            ServingError: of the class for the reason; its message names the stage.
        """
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        outcome = FAILED
        self._requests.inc()
        try:
            check_request(request)
            answer = await self._walk(request, arrived - age_of(request))
            outcome = COMPLETED
        except ServingError as error:
            outcome = outcome_of(error.code)
            raise
        finally:
            self._answers[outcome].inc()
        seconds = loop.time() - arrived
        self._latency.observe(seconds)
        if seconds <= self._objective:
            self._within.inc()
        return answer

    async def _walk(self, request: ModelInferRequest, born: float) -> ModelInferResponse:
        """Send a request through all stages; the outputs it selects are those of the last."""
        loop = asyncio.get_running_loop()
        selected = list(request.outputs)
        del request.outputs[:]
        message, last = request, self._stages[-1][2]
        for place, (adapt, task, queue) in enumerate(self._stages):
            try:
                message = adapt(message)
            except ServingError as error:
                if place:
                    raise
                raise MalformedRequestError(str(error)) from error  # the request is not as the first adapter needs it
            if queue is last:
                message.outputs.extend(selected)
            try:
                answer = await queue.submit(message, loop.time() - born)
            except ServingError as error:
                raise _named(task, error) from error
            if queue is not last:
                message = next_request(answer, request)
        _select(answer, [output.name for output in selected])
        answer.model_name, answer.id = self.name, request.id
        return answer

    @property
    def tasks(self) -> Collection[str]:
        """Names of the tasks."""
        return self._queues.keys()

    def configure(self, task: str, batch_size: int, endpoints: Collection[ReplicaEndpoint]) -> None:
        """Switch a stage to these replicas and this batch size, see :meth:`StageQueue.configure`."""
        self._queues[task].configure(batch_size, endpoints)

    def status(self, task: str) -> dict[str, Any]:
        """Report the state of a stage, see :meth:`StageQueue.status`."""
        return self._queues[task].status()


def _client(connect: Callable[[str, str], Client], task: str, address: str) -> Client:
    return connect(address, task)


def _named(task: str, error: ServingError) -> ServingError:
    """Return an error whose message begins with the stage."""
    message = str(error)
    return error if message.startswith("stage ") else type(error)(f"stage {task!r}: {message}")


def _select(answer: ModelInferResponse, names: list[str]) -> None:
    """Leave only the outputs of these names in an answer, in this order; all of them if none is named.

    Raises:
        MalformedRequestError: if there is no such output.
    """
    places = {output.name: place for place, output in enumerate(answer.outputs)}
    missing = [name for name in names if name not in places]
    if missing:
        raise MalformedRequestError(
            f"the pipeline has no output {missing[0]!r}; select among {', '.join(map(repr, places))}"
        )
    if not names or names == list(places):
        return
    outputs, raw = list(answer.outputs), list(answer.raw_output_contents)
    del answer.outputs[:], answer.raw_output_contents[:]
    answer.outputs.extend(outputs[places[name]] for name in names)
    if raw:
        answer.raw_output_contents.extend(raw[places[name]] for name in names)
