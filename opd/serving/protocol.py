"""The pipeline's use of the Open Inference Protocol, and its errors.

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

from opd.serving.outcomes import COMPLETED, DROPPED, FAILED, REJECTED

AGE = "age"
"""Request parameter: seconds since the request entered the pipeline, measured by the sender."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest request that the pipeline accepts, and largest batch that a queue forms."""

GRPC_MESSAGE_BYTES = 2 * MAX_MESSAGE_BYTES
"""Largest message that clients and servers receive: the gateway can still tell the sender of a request that is too
large what to do about it."""

PING_SECONDS = 2.0
"""Seconds without a sign of the other end of a connection, while a call runs, after which it is asked for one; it has
as long to answer, or the call fails. So a lost machine, which closes no connection, is noticed long before a call would
time out."""

SERVER_OPTIONS = (
    ("grpc.max_send_message_length", GRPC_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", GRPC_MESSAGE_BYTES),
    # With port reuse, two servers could share a port and each receive some of the requests.
    ("grpc.so_reuseport", 0),
    # By default a server closes the connection of a caller that asks more than every five minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", int(500 * PING_SECONDS)),
)
"""Options of every gRPC server of requests."""


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

_OUTCOME_OF: Mapping[StatusCode, str] = {
    StatusCode.OK: COMPLETED,
    StatusCode.RESOURCE_EXHAUSTED: REJECTED,
    StatusCode.DEADLINE_EXCEEDED: DROPPED,
}


def outcome_of(code: StatusCode) -> str:
    """Return the one of :data:`opd.serving.outcomes.OUTCOMES` that a gRPC status stands for."""
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
