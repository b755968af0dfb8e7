"""One replica, started to be asked: models are checked and measured in a process of their own, as they are served."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import psutil
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub

from opd.serving.client import CHANNEL_OPTIONS
from opd.serving.processes import START_SECONDS, model_process, running

CALL_SECONDS = 30.0
"""Time limit of one call."""


@dataclass(frozen=True)
class MeasuredReplica:
    """A replica that is ready. It is called synchronously, so that this works in notebooks, which run an event loop.

    Attributes:
        task: name of the task.
        startup_seconds: seconds from its start until it was ready.
    """

    task: str
    startup_seconds: float
    _pid: int
    _stub: GRPCInferenceServiceStub

    def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Send a request; the model's name is set in it, not in a copy.

        Raises:
            grpc.RpcError: if it fails.
        """
        request.model_name = self.task
        return self._stub.ModelInfer(request, timeout=CALL_SECONDS)

    @property
    def memory_mb(self) -> float:
        """Resident memory of its process."""
        return psutil.Process(self._pid).memory_info().rss / 1e6


@contextmanager
def measured_replica(store: str, task: str, variant: str, cores: int = 1) -> Iterator[MeasuredReplica]:
    """Start a replica, and stop it after the block.

    Args:
        store: URL of the model store.
        task: name of the task in the store.
        variant: name of the variant in the store.
        cores: threads of its model.

    Raises:
        StartError: if it does not become ready.
    """
    with TemporaryDirectory() as folder:
        begin = time.perf_counter()
        process = model_process(variant, "measuring", task, variant, store, Path(folder), cores)
        with running(process, START_SECONDS):
            seconds = time.perf_counter() - begin
            with grpc.insecure_channel(process.grpc_address, options=CHANNEL_OPTIONS) as channel:
                yield MeasuredReplica(task, seconds, process.pid, GRPCInferenceServiceStub(channel))
