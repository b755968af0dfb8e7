"""The Open Inference Protocol as the pipeline speaks it, and how a request can end.

A request carries payloads (an encoded image, a text) as one tensor of BYTES, one element a payload: encoded bytes
cost far less to pack than the numbers they stand for. Clients and queues send the protocol's own messages over gRPC;
the runtimes get them as MLServer's types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grpc import StatusCode
from mlserver.errors import MLServerError
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.utils import STATUS_CODE_MAPPING
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, RequestInput, ResponseOutput

TENSOR = "payload"
"""Name of the only tensor of a request, and of its answer."""

DATATYPE = "BYTES"

AGE = "age"
"""Request parameter: seconds since the request entered the pipeline, by the clock of whoever sends it on."""

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Largest message a client or server of the pipeline accepts."""


class ServingError(MLServerError):
    """A request that gets no answer from the models; the subclass says why."""

    http_status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message, self.http_status)


class MalformedRequestError(ServingError):
    """What was sent is not what the pipeline serves; sending it again would not help."""

    http_status = 400


class QueueFullError(ServingError):
    """The stage has as many requests waiting as it takes; nothing was begun."""

    http_status = 429


class ReplicaFailedError(ServingError):
    """Two replicas failed with this request in their hands; a third is not risked."""

    http_status = 409


class StageUnreachableError(ServingError):
    """A stage could not be reached as long as the request was young."""

    http_status = 503


class TooOldError(ServingError):
    """The request waited longer than ``drop_after`` in the pipeline."""

    http_status = 504


# MLServer answers a status it does not know with UNKNOWN; these are the ones its own errors never have.
STATUS_CODE_MAPPING.update(
    {
        409: StatusCode.ABORTED,
        429: StatusCode.RESOURCE_EXHAUSTED,
        503: StatusCode.UNAVAILABLE,
        504: StatusCode.DEADLINE_EXCEEDED,
    }
)

COMPLETED, REJECTED, DROPPED, FAILED = OUTCOMES = ("completed", "rejected", "dropped", "failed")
"""How a request can end: answered, refused at a full queue, given up for its age, or anything else."""

_OUTCOME_OF: Mapping[StatusCode, str] = {
    StatusCode.OK: COMPLETED,
    StatusCode.RESOURCE_EXHAUSTED: REJECTED,
    StatusCode.DEADLINE_EXCEEDED: DROPPED,
}


def outcome_of(code: StatusCode) -> str:
    """The one of :data:`OUTCOMES` that a gRPC status stands for."""
    return _OUTCOME_OF.get(code, FAILED)


def infer_request(model: str, payloads: Sequence[bytes], age: float = 0.0) -> messages.ModelInferRequest:
    """The message that asks ``model`` for one answer to each payload.

    Args:
        model: name of the model, stage or pipeline, as its server knows it.
        payloads: one element each of the tensor.
        age: seconds since the request entered the pipeline.
    """
    tensor = messages.ModelInferRequest.InferInputTensor(name=TENSOR, datatype=DATATYPE, shape=[len(payloads)])
    tensor.contents.bytes_contents.extend(payloads)
    request = messages.ModelInferRequest(model_name=model, inputs=[tensor])
    request.parameters[AGE].string_param = f"{age:.6f}"
    return request


def answers_of(response: messages.ModelInferResponse) -> list[bytes]:
    """The answers in a server's message, one for each payload of the request."""
    return list(response.outputs[0].contents.bytes_contents)


def payloads_of(request: InferenceRequest) -> list[bytes]:
    """The payloads of a request as a runtime gets it.

    Raises:
        MalformedRequestError: unless it holds one tensor of BYTES with at least one element.
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
    """Seconds the request had spent in the pipeline when it was sent; 0 where it does not say.

    Raises:
        MalformedRequestError: if what it says is no such number.
    """
    text = getattr(request.parameters, AGE, None) if request.parameters else None
    if text is None:
        return 0.0
    try:
        age = float(text)
    except (TypeError, ValueError):
        age = -1.0
    if not 0.0 <= age < float("inf"):
        raise MalformedRequestError(f"parameter {AGE!r} is {text!r}; it must be seconds, finite and not negative")
    return age


def infer_response(model: str, answers: Sequence[bytes]) -> InferenceResponse:
    """What a runtime returns: one tensor of BYTES with the answers."""
    tensor = ResponseOutput.model_construct(name=TENSOR, datatype=DATATYPE, shape=[len(answers)], data=list(answers))
    return InferenceResponse.model_construct(
        model_name=model, outputs=[tensor], id=None, model_version=None, parameters=Parameters.model_construct()
    )
