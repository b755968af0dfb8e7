"""Settings of stages and of server processes."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

from opd.host.documents import DocumentModel

RUNTIMES = {"model": "opd.serving.model_runtime.ModelRuntime"}
"""Import paths of the runtimes of this package, by kind."""


class StageSettings(DocumentModel):
    """Batching of a stage, and the limits of its queue."""

    batch_size: int = Field(default=1, ge=1)
    """Requests in one call to a replica."""

    batch_timeout: float = Field(default=0.25, ge=0.0)
    """Seconds the oldest request waits for its batch to fill."""

    drop_after: float = Field(default=10.0, ge=0.0)
    """Age in seconds at which a waiting request is dropped."""

    max_queue: int = Field(default=1000, ge=1)
    """Requests that may wait; the next one is rejected."""

    call_timeout: float = Field(default=10.0, ge=0.0)
    """Seconds a replica may take for a batch before it counts as failed."""

    @property
    def request_seconds(self) -> float:
        """Longest life of a request: just before it is dropped a replica may take it, which then finishes it."""
        return self.drop_after + self.call_timeout


class ProcessSettings(DocumentModel):
    """Name, addresses and life of a server process, ``python -m MODULE FILE`` with these settings in the file."""

    module: ClassVar[str]
    """The module that reads the settings and serves."""

    name: str
    """Name of the model it serves: the task, or the pipeline for a gateway."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    http_port: int = 8080
    """Port for health checks, the server's own routes and REST inference."""

    grpc_port: int = 8081
    """Port for inference."""

    metrics_port: int = 8082
    """Port of ``/metrics``."""

    end_with_parent: bool = False
    """End when standard input closes, which happens when the parent process ends."""

    @property
    def document(self) -> str:
        """JSON document of the settings, which the server process reads."""
        return self.model_dump_json(indent=2) + "\n"


class ServerSettings(ProcessSettings):
    """Settings of the process of a replica."""

    module = "opd.serving.server"

    kind: str = "model"
    """One of :data:`RUNTIMES`, or the import path of another runtime."""

    parameters: dict[str, Any] = {}
    """Parameters of the runtime."""

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str) -> str:
        if kind not in RUNTIMES and "." not in kind:
            raise ValueError(f"{kind!r} is neither one of {', '.join(RUNTIMES)} nor an import path")
        return kind

    @property
    def runtime(self) -> str:
        """Import path of the runtime."""
        return RUNTIMES.get(self.kind, self.kind)


class GatewayStage(DocumentModel):
    """A stage of the pipeline."""

    task: str = Field(min_length=1)
    """Name of the task, and of the model that its replicas serve."""

    adapter: dict[str, Any] = {}
    """Steps that make the input of the stage, see :mod:`opd.serving.adapters`; none if empty."""


class GatewaySettings(ProcessSettings):
    """Settings of the process of a gateway."""

    module = "opd.serving.gateway"

    stages: list[GatewayStage] = Field(min_length=1)
    """In the order in which a request visits them."""

    queue: StageSettings = StageSettings()
    """Of the queue of every stage; the batch size is set while it runs."""

    objective: float = Field(gt=0.0)
    """Seconds of the service level: requests that are completed within them are counted."""
