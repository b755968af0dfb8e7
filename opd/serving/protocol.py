"""The pipeline's use of the Open Inference Protocol, and the outcomes of requests.

Requests and answers are the protocol's own messages, whole: any number of named tensors of any datatype, with typed or
raw contents, an id, parameters, and a selection of outputs. The first axis of every tensor counts the rows of a
request. Clients and gateways pass the messages on over gRPC as they are, and models get them so
(:mod:`opd.serving.message_server`).
"""

from __future__ import annotations

from collections.abc import Mapping

from grpc import StatusCode
from mlserver.errors import MLServerError
from mlserver.grpc.dataplane_pb2 import ModelInferRequest
from mlserver.grpc.utils import STATUS_CODE_MAPPING

AGE = "age"
"""Request parameter: seconds since the request entered the pipeline, measured by the sender."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest request that the pipeline accepts, and largest batch that a queue forms."""

GRPC_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES
"""Largest message that clients and servers receive: the gateway can still tell the sender of a request that is too
large what to do about it."""


class ServingError(MLServerError):
    """A request fails; the subclass gives the reason."""

    http_status, code = 500, StatusCode.INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(message, self.http_status)


class MalformedRequestError(ServingError):
    """The request is invalid; retrying it would not help."""

    http_status, code = 400, StatusCode.INVALID_ARGUMENT


class QueueFullError(ServingError):
    """The queue of a stage is full; the request was not started."""

    http_status, code = 429, StatusCode.RESOURCE_EXHAUSTED


class ReplicaFailedError(ServingError):
    """Two replicas failed while working on this request; a third is not risked."""

    http_status, code = 409, StatusCode.ABORTED


class TooOldError(ServingError):
    """The request waited in the pipeline for longer than ``drop_after``."""

    http_status, code = 504, StatusCode.DEADLINE_EXCEEDED


# MLServer answers with UNKNOWN for an HTTP status that it does not know; its own errors never use these.
STATUS_CODE_MAPPING.update({error.http_status: error.code for error in ServingError.__subclasses__()})

COMPLETED, REJECTED, DROPPED, FAILED = OUTCOMES = ("completed", "rejected", "dropped", "failed")
"""Outcomes of requests: answered, rejected by a full queue, dropped for age, or anything else."""

_OUTCOME_OF: Mapping[StatusCode, str] = {
    StatusCode.OK: COMPLETED,
    StatusCode.RESOURCE_EXHAUSTED: REJECTED,
    StatusCode.DEADLINE_EXCEEDED: DROPPED,
}


def outcome_of(code: StatusCode) -> str:
    """Return the one of :data:`OUTCOMES` that a gRPC status stands for."""
    return _OUTCOME_OF.get(code, FAILED)


def set_age(request: ModelInferRequest, age: float) -> None:
    """Note in a request that it entered the pipeline ``age`` seconds ago."""
    request.parameters[AGE].string_param = f"{age:.6f}"


def age_of(request: ModelInferRequest) -> float:
    """Return the seconds that a request had spent in the pipeline when it was sent; 0 if the parameter is missing.

    Raises:
        MalformedRequestError: if the parameter is not a finite number of at least 0.
    """
    if AGE not in request.parameters:  # looking it up would add it
        return 0.0
    parameter = request.parameters[AGE]
    value = getattr(parameter, parameter.WhichOneof("parameter_choice") or "string_param")
    try:
        age = float(value)
    except ValueError:
        age = -1.0
    if isinstance(value, bool) or not 0.0 <= age < float("inf"):
        raise MalformedRequestError(
            f"parameter {AGE!r} is {value!r}; it must be a finite number of seconds, at least 0"
        )
    return age
