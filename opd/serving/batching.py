"""Batches of requests: checked, joined along the first axis of their tensors, and split again.

Values are copied as they are: raw contents as bytes, typed contents as lists. ``batch_size`` counts requests, as in the
simulator; a request of many rows brings all of them into its batch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, pairwise

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving.contents import DATATYPES, TensorError, check_tensors, pack_bytes, unpack_bytes
from opd.serving.protocol import AGE, MAX_MESSAGE_BYTES, MalformedRequestError, ServingError


def check_request(request: ModelInferRequest) -> None:
    """Check that a request can be served, joined with others and split again.

    Raises:
        MalformedRequestError: names the tensor, its value, the limit and the remedy.
    """
    if request.ByteSize() > MAX_MESSAGE_BYTES:
        raise MalformedRequestError(
            f"the request has {request.ByteSize()} bytes, the limit is {MAX_MESSAGE_BYTES}; send fewer rows, or "
            "encoded data such as JPEG as BYTES"
        )
    try:
        check_tensors(request)
    except TensorError as error:
        raise MalformedRequestError(str(error)) from None
    first = request.inputs[0]
    for tensor in request.inputs:
        if tensor.shape[0] < 1:
            raise MalformedRequestError(
                f"tensor {tensor.name!r} has shape {list(tensor.shape)}; its first axis counts the rows, send at "
                "least 1"
            )
        if tensor.shape[0] != first.shape[0]:
            raise MalformedRequestError(
                f"tensor {tensor.name!r} has {tensor.shape[0]} rows and tensor {first.name!r} has {first.shape[0]}; "
                "the first axis counts the rows of the request, send as many in every tensor"
            )


def rows(request: ModelInferRequest) -> int:
    """Return the number of rows of a checked request."""
    return request.inputs[0].shape[0]


def signature(request: ModelInferRequest) -> Hashable:
    """Return what two requests must have in common to be joined.

    That is everything but the values, the number of rows, the id and the age: names, datatypes, further axes and
    parameters of the tensors in their order, raw or typed contents, parameters, and selected outputs.
    """
    tensors = tuple((t.name, t.datatype, *t.shape[1:], _parameters(t)) for t in request.inputs)
    outputs = tuple((output.name, _parameters(output)) for output in request.outputs)
    return tensors, bool(request.raw_input_contents), _parameters(request), outputs


def joinable(requests: Sequence[ModelInferRequest]) -> list[ModelInferRequest]:
    """Return the requests of the most frequent signature."""
    signatures = [signature(request) for request in requests]
    ((frequent, _),) = Counter(signatures).most_common(1)
    return [request for request, found in zip(requests, signatures, strict=True) if found == frequent]


def _parameters(
    part: ModelInferRequest | ModelInferRequest.InferInputTensor | ModelInferRequest.InferRequestedOutputTensor,
) -> Hashable:
    given = part.parameters
    return tuple(sorted((key, given[key].SerializeToString()) for key in given if key != AGE))


def join(requests: Sequence[ModelInferRequest]) -> ModelInferRequest:
    """Join checked requests of one signature to one request without id; a single one is returned as it is."""
    if len(requests) == 1:
        return requests[0]
    joined = ModelInferRequest()
    joined.CopyFrom(requests[0])
    joined.id = ""
    if joined.raw_input_contents:
        columns = zip(*(request.raw_input_contents for request in requests), strict=True)
        joined.raw_input_contents[:] = [b"".join(column) for column in columns]
    total = sum(map(rows, requests))
    for place, tensor in enumerate(joined.inputs):
        tensor.shape[0] = total
        if not joined.raw_input_contents:
            for request in requests[1:]:
                tensor.contents.MergeFrom(request.inputs[place].contents)  # extends the list
    return joined


def split(answer: ModelInferResponse, counts: Sequence[int], model: str) -> list[ModelInferResponse]:
    """Split the answer to a batch.

    Args:
        answer: of the model; the only part of a batch of one request.
        counts: rows of the joined requests.
        model: name of the model, for errors.

    Raises:
        ServingError: if the answer is malformed or a tensor has not one row per row of the batch.
    """
    expected = sum(counts)
    try:
        check_tensors(answer)
    except TensorError as error:
        raise ServingError(f"model {model!r} gave a malformed answer: {error}") from None
    for tensor in answer.outputs:
        if tensor.shape[0] != expected:
            raise ServingError(
                f"model {model!r} answered {expected} rows with tensor {tensor.name!r} of shape {list(tensor.shape)}; "
                f"its first axis must be {expected}, one row for each"
            )
    if len(counts) == 1:
        return [answer]
    parts = [ModelInferResponse(parameters=answer.parameters) for _ in counts]
    for place, tensor in enumerate(answer.outputs):
        field = DATATYPES[tensor.datatype].field
        values = (
            answer.raw_output_contents[place] if answer.raw_output_contents else getattr(tensor.contents, str(field))
        )
        for part, count, block in zip(parts, counts, _blocks(tensor, values, counts), strict=True):
            shape = [count, *tensor.shape[1:]]
            output = part.outputs.add(
                name=tensor.name, datatype=tensor.datatype, shape=shape, parameters=tensor.parameters
            )
            if isinstance(block, bytes):
                part.raw_output_contents.append(block)
            else:
                getattr(output.contents, str(field)).extend(block)
    return parts


def _blocks(
    tensor: ModelInferResponse.InferOutputTensor, values: bytes | Sequence[object], counts: Sequence[int]
) -> Iterator[bytes | Sequence[object]]:
    """Yield the values of each part."""
    width = math.prod(tensor.shape[1:])  # elements of a row
    pack = None
    if isinstance(values, bytes) and tensor.datatype == "BYTES":
        values, pack = unpack_bytes(values), pack_bytes
    elif isinstance(values, bytes):
        width *= DATATYPES[tensor.datatype].dtype.itemsize
    for begin, end in pairwise(accumulate(counts, initial=0)):
        block = values[begin * width : end * width]
        yield pack(block) if pack else block  # type: ignore[arg-type]
