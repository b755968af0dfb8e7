"""Measure variants of the model store as they are served: each call goes to a replica in another process."""

from __future__ import annotations

import asyncio
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, NamedTuple

import psutil

from opd.serving.client import Client
from opd.serving.contents import payload_request, payloads_of
from opd.serving.manifest import MANIFEST
from opd.serving.processes import START_SECONDS, model_process, running
from opd.serving.store import ModelStore, store_url

CALL_SECONDS = 10.0
"""Time limit of one call to a replica."""


class MeasuredReplica(NamedTuple):
    """A replica that is measured.

    Attributes:
        infer: sends a batch to it and returns its answers.
        pid: its process.
    """

    infer: Callable[[Sequence[bytes]], list[bytes]]
    pid: int


@dataclass(frozen=True)
class ServedVariant(ABC):
    """A variant as :class:`opd.profiling.measuring.Measurable`; subclasses provide the payloads.

    The time of a call is what a stage's queue waits for: in addition to the model's own time, it includes gRPC,
    MLServer and waking up a process that slept. Other load on the machine counts as well.

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

    def fingerprint(self) -> str:
        """Hashes of the variant's files and of the payloads."""
        manifest = (ModelStore().pull(self.task, self.variant) / MANIFEST).read_bytes()
        return hashlib.sha256(b"".join([manifest, *self.payloads()])).hexdigest()

    @contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[MeasuredReplica, float]]:
        """Start a replica of the variant.

        Args:
            seed: not used; the weights are real.

        Yields:
            The replica, and the seconds from its start until it is ready.

        Raises:
            KeyError: if the store has no such variant.
            StartError: if the replica does not become ready.
        """
        with TemporaryDirectory() as folder, asyncio.Runner() as runner:
            start = time.perf_counter()
            process = model_process("replica", "profiling", self.task, self.variant, store_url(), Path(folder))
            with running(process, START_SECONDS):
                seconds = time.perf_counter() - start
                client = runner.run(self._connect(process.grpc_address))
                try:
                    yield (
                        MeasuredReplica(lambda payloads: runner.run(self._infer(client, payloads)), process.pid),
                        seconds,
                    )
                finally:
                    runner.run(client.close())

    @staticmethod
    def memory_mb(model: MeasuredReplica) -> float:
        """Memory of the replica's process, resident set size."""
        return psutil.Process(model.pid).memory_info().rss / 1e6

    async def _infer(self, client: Client, payloads: Sequence[bytes]) -> list[bytes]:
        return payloads_of(await client.infer(payload_request(payloads), 0.0, CALL_SECONDS))

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

    def infer(self, model: MeasuredReplica, inputs: Iterator[list[bytes]]) -> list[bytes]:
        """Send the next batch to the replica."""
        return model.infer(next(inputs))
