"""Tensors of Open Inference messages: datatypes, contents and their checks.

A message holds the values of its tensors either in typed lists, a list per tensor, or as raw contents: bytes in
little-endian row-major order, and for BYTES each element behind its length in four bytes. Conversion to and from numpy
is in :mod:`opd.serving.tensors`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

Message: TypeAlias = ModelInferRequest | ModelInferResponse
Tensor: TypeAlias = ModelInferRequest.InferInputTensor | ModelInferResponse.InferOutputTensor

PAYLOAD = "payload"
"""Name of the tensor of a request that is one tensor of BYTES, such as an encoded image or a text in each row."""

_LENGTH = struct.Struct("<I")
_LIST_ITEM_BYTES = 4  # typed lists hold whole numbers of fewer bytes as well


class TensorError(ValueError):
    """A tensor is malformed, or values do not fit its datatype or shape."""


class ElementType(NamedTuple):
    """Elements of a datatype of the protocol.

    Attributes:
        dtype: numpy's type of the elements.
        field: typed list that holds them; FP16 has none.
    """

    dtype: np.dtype[Any]
    field: str | None


DATATYPES = {
    "BOOL": ElementType(np.dtype("?"), "bool_contents"),
    **{f"UINT{8 * size}": ElementType(np.dtype(f"<u{size}"), "uint_contents") for size in (1, 2, 4)},
    "UINT64": ElementType(np.dtype("<u8"), "uint64_contents"),
    **{f"INT{8 * size}": ElementType(np.dtype(f"<i{size}"), "int_contents") for size in (1, 2, 4)},
    "INT64": ElementType(np.dtype("<i8"), "int64_contents"),
    "FP16": ElementType(np.dtype("<f2"), None),
    "FP32": ElementType(np.dtype("<f4"), "fp32_contents"),
    "FP64": ElementType(np.dtype("<f8"), "fp64_contents"),
    "BYTES": ElementType(np.dtype("O"), "bytes_contents"),
}
"""Element types by the protocol's name of the datatype."""


def contents_of(message: Message) -> tuple[Sequence[Tensor], Sequence[bytes]]:
    """Return the tensors of a request or an answer and its raw contents, which are empty if the contents are typed."""
    if isinstance(message, ModelInferRequest):
        return message.inputs, message.raw_input_contents
    return message.outputs, message.raw_output_contents


def unpack_bytes(raw: bytes) -> list[bytes]:
    """Return the elements of a BYTES tensor in raw contents.

    Raises:
        TensorError: if an element is cut short.
    """
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw):
        begin = offset + _LENGTH.size
        end = begin + (_LENGTH.unpack_from(raw, offset)[0] if begin <= len(raw) else 0)
        if max(begin, end) > len(raw):
            raise TensorError(
                f"element {len(elements)} of its raw contents is cut short; write each element behind its length in "
                "four bytes, little-endian"
            )
        elements.append(raw[begin:end])
        offset = end
    return elements


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """Return the raw contents of a BYTES tensor with these elements."""
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


# ------------------------------------------------------------------------------------------------------ checks


def check_tensors(message: Message) -> None:
    """Check that a message has tensors, that their names differ, and that contents fit datatypes and shapes.

    Raises:
        TensorError: names the tensor, what is wrong and what would be right.
    """
    tensors, raw = contents_of(message)
    if not tensors:
        raise TensorError("the message has no tensor; send at least one")
    if raw and len(raw) != len(tensors):
        raise TensorError(
            f"the message has {len(tensors)} tensors and {len(raw)} raw contents; give raw contents for every tensor "
            "or for none"
        )
    if len(tensors) > 1:
        names = [tensor.name for tensor in tensors]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise TensorError(f"{len(twice)} tensors are named {twice[0]!r}; give each a name of its own")
    for place, tensor in enumerate(tensors):
        if not tensor.name:
            raise TensorError(f"tensor {place} has no name; give it one")
        _check_contents(tensor, raw[place] if raw else None)


def _check_contents(tensor: Tensor, raw: bytes | None) -> None:
    name, shape = f"tensor {tensor.name!r}", list(tensor.shape)
    if tensor.datatype not in DATATYPES:
        raise TensorError(f"{name} has datatype {tensor.datatype!r}; known are {', '.join(DATATYPES)}")
    if not shape:
        raise TensorError(f"{name} has no shape; give one whose first axis counts the rows, such as [1] for one value")
    if min(shape) < 0:
        raise TensorError(f"{name} has shape {shape}; no axis may be negative")
    found, expected = _count(tensor, raw), math.prod(shape)
    if found != expected:
        raise TensorError(f"{name} has shape {shape} and {found} elements; that shape needs {expected}")


def _count(tensor: Tensor, raw: bytes | None) -> int:
    """Count the elements in the contents of a tensor."""
    name, (dtype, field) = f"tensor {tensor.name!r}", DATATYPES[tensor.datatype]
    if raw is None:
        if field is None:
            raise TensorError(f"{name} has typed contents, which the protocol lacks for FP16; send raw contents")
        given = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
        if given not in ([field], []):
            raise TensorError(f"{name} of {tensor.datatype} has values in {', '.join(given)}; put them in {field}")
        values = getattr(tensor.contents, field)
        if values and dtype.kind in "iu" and dtype.itemsize < _LIST_ITEM_BYTES:
            _check_range(name, tensor.datatype, min(values), max(values))
        return len(values)
    if tensor.contents.ListFields():
        raise TensorError(f"{name} has typed and raw contents; give one of them")
    if tensor.datatype == "BYTES":
        try:
            return len(unpack_bytes(raw))
        except TensorError as error:
            raise TensorError(f"{name}: {error}") from None
    count, rest = divmod(len(raw), dtype.itemsize)
    if rest:
        raise TensorError(
            f"{name} has {len(raw)} bytes of raw contents; {tensor.datatype} takes {dtype.itemsize} an element"
        )
    return count


def _check_range(name: str, datatype: str, smallest: int, largest: int) -> None:
    limits = np.iinfo(DATATYPES[datatype].dtype)
    for value in (smallest, largest):
        if not limits.min <= value <= limits.max:
            raise TensorError(f"{name} has value {value}; {datatype} ranges from {limits.min} to {limits.max}")


# --------------------------------------------------------------------------------------- one tensor of payloads


def payload_request(payloads: Sequence[bytes]) -> ModelInferRequest:
    """Build a request of one tensor of BYTES with a row per payload.

    An encoded image or a text costs far less to pack this way than the numbers it stands for.
    """
    request = ModelInferRequest()
    tensor = request.inputs.add(name=PAYLOAD, datatype="BYTES", shape=[len(payloads)])
    tensor.contents.bytes_contents.extend(payloads)
    return request


def payloads_of(message: Message) -> list[bytes]:
    """Return the payloads of a message, one per row.

    Raises:
        TensorError: if it is not one tensor of BYTES of shape [n] with n elements, at least one.
    """
    tensors, raw = contents_of(message)
    if len(tensors) != 1:
        raise TensorError(f"the message has {len(tensors)} tensors; send one, of BYTES")
    (tensor,) = tensors
    if tensor.datatype != "BYTES":
        raise TensorError(f"tensor {tensor.name!r} is of type {tensor.datatype}; send BYTES")
    payloads = unpack_bytes(raw[0]) if raw else list(tensor.contents.bytes_contents)
    if not payloads or list(tensor.shape) != [len(payloads)]:
        raise TensorError(
            f"tensor {tensor.name!r} has shape {list(tensor.shape)} and {len(payloads)} elements; send shape [n] with "
            "n elements, at least one"
        )
    return payloads
