"""Measure variants of the model store as they are served: each call goes to a replica in another process."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from opd.serving.client import Client
from opd.serving.contents import payload_request, payloads_of
from opd.serving.models import load_model
from opd.serving.processes import START_SECONDS, model_process, running
from opd.serving.store import ModelStore, store_url

CALL_SECONDS = 10.0
"""Time limit of one call to a replica."""

InferBatch = Callable[[Sequence[bytes]], list[bytes]]
"""Sends a batch to a replica and returns its answers."""


@dataclass(frozen=True)
class ServedVariant(ABC):
    """A variant as :class:`opd.profiling.measuring.Measurable`; subclasses provide the payloads.

    The catalogue refers to a subclass as ``architecture: module:Class``. The time of a call is what a stage's queue
    waits for: in addition to the model's own time, it includes gRPC, MLServer and waking up a process that slept. Other
    load on the machine counts as well.

    Attributes:
        task: name in the store.
        variant: name in the store.
        pause: seconds before each call, as under light load.
        max_cores: replicas run their models on one thread.
    """

    task: str
    variant: str
    pause: ClassVar[float] = 0.1
    max_cores: ClassVar[int] = 1
    clock = staticmethod(time.perf_counter)

    @abstractmethod
    def payloads(self) -> Sequence[bytes]:
        """Valid payloads of the task, which calls use in turn."""

    @contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[InferBatch, float]]:
        """Start a replica of the variant.

        Args:
            seed: not used; the weights are real.

        Yields:
            The replica, and the CPU seconds it takes to pull and load the variant and to answer once.

        Raises:
            KeyError: if the store has no such variant.
            StartError: if the replica does not become ready.
        """
        seconds = self._load_seconds()
        with TemporaryDirectory() as folder, asyncio.Runner() as runner:
            process = model_process("replica", "profiling", self.task, self.variant, store_url(), Path(folder))
            with running(process, START_SECONDS):
                client = runner.run(self._connect(process.grpc_address))
                try:
                    yield lambda payloads: runner.run(self._infer(client, payloads)), seconds
                finally:
                    runner.run(client.close())

    async def _infer(self, client: Client, payloads: Sequence[bytes]) -> list[bytes]:
        return payloads_of(await client.infer(payload_request(payloads), 0.0, CALL_SECONDS))

    def _load_seconds(self) -> float:
        payload = self.payloads()[0]
        start = time.thread_time()
        load_model(ModelStore().pull(self.task, self.variant))([payload])
        return time.thread_time() - start

    async def _connect(self, address: str) -> Client:
        return Client(address, self.task)  # its channel belongs to the event loop that runs now

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Accept one thread, which is what replicas use.

        Raises:
            ValueError: if ``count`` is larger.
        """
        if count != 1:
            raise ValueError(f"{self.task}/{self.variant} runs on one thread and cannot be measured on {count} cores")
        yield

    def inputs(self, batch_size: int) -> Iterator[list[bytes]]:
        """Endless batches of the payloads in turn."""
        payloads = cycle(self.payloads())
        while True:
            yield [next(payloads) for _ in range(batch_size)]

    def infer(self, model: InferBatch, inputs: Iterator[list[bytes]]) -> list[bytes]:
        """Send the next batch to the replica."""
        return model(next(inputs))
