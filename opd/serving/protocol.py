"""The pipeline's use of the Open Inference Protocol, and the outcomes of requests.

A request carries payloads (an encoded image, a text) as one tensor of BYTES with one element per payload: encoded bytes
cost far less to pack than the numbers they represent. Clients and queues send the protocol's own messages over gRPC;
runtimes receive them as MLServer's types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpc import StatusCode
from mlserver.errors import MLServerError
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.utils import STATUS_CODE_MAPPING
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, RequestInput, ResponseOutput

TENSOR = "payload"
"""Name of the only tensor of a request and of its answer."""

DATATYPE = "BYTES"

AGE = "age"
"""Request parameter: seconds since the request entered the pipeline, measured by the sender."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message that clients and servers of the pipeline accept."""


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


class StageUnreachableError(ServingError):
    """A stage stayed unavailable until the request reached its maximum age."""

    http_status, code = 503, StatusCode.UNAVAILABLE


class TooOldError(ServingError):
    """The request waited in the pipeline for longer than ``drop_after``."""

    http_status, code = 504, StatusCode.DEADLINE_EXCEEDED


ERRORS = {error.code: error for error in ServingError.__subclasses__()}
"""Errors by their gRPC status."""

# MLServer answers with UNKNOWN for an HTTP status that it does not know; its own errors never use these.
STATUS_CODE_MAPPING.update({error.http_status: code for code, error in ERRORS.items()})

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


def infer_request(model: str, payloads: Sequence[bytes], age: float = 0.0) -> messages.ModelInferRequest:
    """Build the message that asks for one answer per payload.

    Args:
        model: name of the model on its server: the task, or the pipeline for the router.
        payloads: elements of the tensor.
        age: seconds since the request entered the pipeline.
    """
    tensor = messages.ModelInferRequest.InferInputTensor(name=TENSOR, datatype=DATATYPE, shape=[len(payloads)])
    tensor.contents.bytes_contents.extend(payloads)
    request = messages.ModelInferRequest(model_name=model, inputs=[tensor])
    request.parameters[AGE].string_param = f"{age:.6f}"
    return request


def answers_of(response: messages.ModelInferResponse) -> list[bytes]:
    """Return the answers in a server's message, one per payload of the request."""
    return list(response.outputs[0].contents.bytes_contents)


def payloads_of(request: InferenceRequest) -> list[bytes]:
    """Return the payloads of a request as a runtime receives it.

    Raises:
        MalformedRequestError: if it is not one tensor of BYTES with at least one element.
    """
    inputs = request.inputs
    if len(inputs) != 1:
        raise MalformedRequestError(f"the request has {len(inputs)} tensors; send one, named {TENSOR!r}")
    tensor: RequestInput = inputs[0]
    if str(getattr(tensor.datatype, "value", tensor.datatype)) != DATATYPE:
        raise MalformedRequestError(f"tensor {tensor.name!r} is of type {tensor.datatype}; send {DATATYPE}")
    payloads = list(getattr(tensor.data, "root", tensor.data) or ())
    if not payloads or list(tensor.shape) != [len(payloads)]:
        raise MalformedRequestError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)} and {len(payloads)} elements; send shape [n] "
            "with n elements, at least one"
        )
    return [element.encode() if isinstance(element, str) else bytes(element) for element in payloads]


def age_of(request: InferenceRequest) -> float:
    """Return the seconds that a request had spent in the pipeline when it was sent; 0 if the parameter is missing.

    Raises:
        MalformedRequestError: if the parameter is not a finite number of at least 0.
    """
    text = getattr(request.parameters, AGE, None) if request.parameters else None
    if text is None:
        return 0.0
    try:
        age = float(text)
    except (TypeError, ValueError):
        age = -1.0
    if not 0.0 <= age < float("inf"):
        raise MalformedRequestError(f"parameter {AGE!r} is {text!r}; it must be a finite number of seconds, at least 0")
    return age


def infer_response(model: str, answers: Sequence[bytes]) -> InferenceResponse:
    """Build the response of a runtime: one tensor of BYTES with the answers."""
    tensor = ResponseOutput.model_construct(name=TENSOR, datatype=DATATYPE, shape=[len(answers)], data=list(answers))
    return InferenceResponse.model_construct(
        model_name=model, outputs=[tensor], id=None, model_version=None, parameters=Parameters.model_construct()
    )
