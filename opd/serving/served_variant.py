"""Measure the variants of a pipeline file as they are served: each call goes to a replica in another process."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import numpy as np
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving.batching import join, joinable
from opd.serving.manifest import read_manifest
from opd.serving.measured_replica import MeasuredReplica, measured_replica
from opd.serving.stage_samples import StageSamples, load_stage_samples
from opd.serving.store import ModelStore

STARTS = 3
"""Starts of a replica, of whose times the median counts."""


class ServedVariant:
    """A variant as :class:`opd.profiling.measuring.Measurable`.

    The time of a call is what a stage's queue waits for: in addition to the model's own time, it includes gRPC,
    MLServer and waking up a process that slept. Other load on the machine counts as well.

    Args:
        task: name of the task in the store.
        variant: name of the variant in the store.
        cores: cores of a replica.
        samples: requests of all stages.

    Attributes:
        max_cores: cores of this machine; whether the model can use them is up to the model.
        pause: seconds before each call, as under light load.
    """

    pause = 0.1
    clock = staticmethod(time.perf_counter)

    def __init__(self, task: str, variant: str, cores: int, samples: StageSamples) -> None:
        self.task, self.variant, self.max_cores = task, variant, os.cpu_count() or 1
        self.cores = min(cores, self.max_cores)
        self._samples, self._stack, self._threads = samples, ExitStack(), 0
        self._replica: MeasuredReplica

    def fingerprint(self) -> str:
        """Hash of the variant's files and of the requests."""
        manifest = read_manifest(self._samples.store.pull(self.task, self.variant)).document
        return hashlib.sha256(f"{manifest}{self._samples.fingerprint(self.task)}".encode()).hexdigest()

    @contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[ServedVariant, float]]:
        """Start a replica of the variant, with its own cores.

        Args:
            seed: not used; the weights are real.

        Yields:
            This object, and the median of the seconds from the start of a replica until it is ready.

        Raises:
            KeyError: if the store has no such variant.
            opd.serving.processes.StartError: if a replica does not become ready.
        """
        self._samples.store.pull(self.task, self.variant)
        seconds = []
        with self._stack:
            for _ in range(STARTS):
                self._start(self.cores)
                seconds.append(self._replica.startup_seconds)
            yield self, float(np.median(seconds))

    def _start(self, cores: int) -> None:
        """Replace the replica by one that runs its model on ``cores`` threads."""
        self._stack.close()
        url = self._samples.store.url
        self._replica = self._stack.enter_context(measured_replica(url, self.task, self.variant, cores))
        self._threads = cores

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Run the model on ``count`` threads; a replica with another number is replaced."""
        if count != self._threads:
            self._start(count)
        yield

    def memory_mb(self, model: ServedVariant) -> float:
        """Resident memory of the replica."""
        return self._replica.memory_mb

    def inputs(self, batch_size: int) -> Iterator[ModelInferRequest]:
        """Endless batches of the samples that a queue would join, in turn; none is made while a call is timed."""
        requests = joinable(self._samples.of(self.task))
        turns = cycle(requests)
        return cycle([join([next(turns) for _ in range(batch_size)]) for _ in requests])

    def infer(self, model: ServedVariant, inputs: Iterator[ModelInferRequest]) -> ModelInferResponse:
        """Send the next batch to the replica.

        Raises:
            grpc.RpcError: if the call fails.
        """
        return self._replica.infer(next(inputs))


def served_variants(
    source: str | Path, store: ModelStore | None = None, cache: Path | None = None
) -> Callable[[str, str], ServedVariant]:
    """Return what gives the variants of a pipeline as they are served, for :mod:`opd.profiling.profiler`.

    Args:
        source: name, folder or file of the pipeline; its models are in the store.
        store: the model store; that of the project if not given.
        cache: folder where the requests of later stages are kept; one of the project if not given.

    Raises:
        ValueError: if the pipeline has no samples.
    """
    stages = load_stage_samples(source, store, cache)
    cores = {(task.name, variant.name): variant.cores for task in stages.pipeline.tasks for variant in task.variants}
    return lambda task, variant: ServedVariant(task, variant, cores[task, variant], stages)
