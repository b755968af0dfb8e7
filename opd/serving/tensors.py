"""Conversion between Open Inference messages and numpy arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving.contents import DATATYPES, Message, Tensor, TensorError, contents_of, pack_bytes, unpack_bytes

Arrays: TypeAlias = dict[str, npt.NDArray[Any]]
"""Tensors by name."""

_NAMES = {element.dtype: name for name, element in DATATYPES.items()}


def tensors_of(message: Message) -> Arrays:
    """Return the tensors of a checked message by name: BYTES as arrays of bytes objects, raw contents read-only."""
    tensors, raw = contents_of(message)
    return {tensor.name: _array(tensor, raw[place] if raw else None) for place, tensor in enumerate(tensors)}


def _array(tensor: Tensor, raw: bytes | None) -> npt.NDArray[Any]:
    dtype, field = DATATYPES[tensor.datatype]
    if tensor.datatype == "BYTES":
        elements = tensor.contents.bytes_contents if raw is None else unpack_bytes(raw)
        array = np.empty(len(elements), dtype)
        array[:] = elements
    elif raw is None:
        array = np.array(getattr(tensor.contents, str(field)), dtype)
    else:
        array = np.frombuffer(raw, dtype)
    return array.reshape(tuple(tensor.shape))


def text_of(message: Message) -> str:
    """Return the values of a checked message as text: those of a single tensor of BYTES joined, others as JSON."""
    tensors = tensors_of(message)
    if len(tensors) == 1 and contents_of(message)[0][0].datatype == "BYTES":
        (texts,) = tensors.values()
        return b"".join(texts.ravel()).decode(errors="replace")
    values = {name: array.tolist() for name, array in tensors.items()}
    return json.dumps(values, default=lambda value: value.decode(errors="replace"))


def message_of(tensors: Mapping[str, npt.ArrayLike], raw: bool = True) -> ModelInferRequest:
    """Build a request from arrays.

    Args:
        tensors: by name; texts become BYTES in UTF-8.
        raw: put the values into raw contents, which is faster. FP16 needs them.

    Raises:
        TensorError: if an array has no axis or a type that the protocol lacks.
    """
    request = ModelInferRequest()
    _fill(request, tensors, raw)
    return request


def answer_of(tensors: Mapping[str, npt.ArrayLike], raw: bool = True) -> ModelInferResponse:
    """Build an answer from arrays; otherwise like :func:`message_of`."""
    answer = ModelInferResponse()
    _fill(answer, tensors, raw)
    return answer


def _fill(message: Message, tensors: Mapping[str, npt.ArrayLike], raw: bool) -> None:
    arrays = {name: np.asarray(values) for name, values in tensors.items()}
    raw = raw or any(array.dtype == np.float16 for array in arrays.values())
    for name, array in arrays.items():
        add_tensor(message, name, array, raw)


def add_tensor(message: Message, name: str, array: npt.NDArray[Any], raw: bool = True) -> Tensor:
    """Add an array to a message, see :func:`message_of`, and return the tensor there."""
    if not array.ndim:
        raise TensorError(f"tensor {name!r} is a single value; give it an axis that counts the rows, such as [value]")
    if array.dtype.kind in "OUS":
        datatype, elements = "BYTES", [_as_bytes(name, element) for element in array.ravel().tolist()]
    else:
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            known = ", ".join(str(element.dtype) for element in DATATYPES.values())
            raise TensorError(f"tensor {name!r} has elements of type {array.dtype}; convert them to one of {known}")
        datatype, array = _NAMES[dtype], array.astype(dtype, copy=False)
    tensors = message.inputs if isinstance(message, ModelInferRequest) else message.outputs
    tensor = tensors.add(name=name, datatype=datatype, shape=array.shape)
    if raw:
        contents = message.raw_input_contents if isinstance(message, ModelInferRequest) else message.raw_output_contents
        contents.append(pack_bytes(elements) if datatype == "BYTES" else array.tobytes())
    else:
        values = elements if datatype == "BYTES" else array.ravel().tolist()
        getattr(tensor.contents, str(DATATYPES[datatype].field)).extend(values)
    return tensor


def _as_bytes(name: str, element: object) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes | bytearray):
        return bytes(element)
    raise TensorError(f"tensor {name!r} has an element of type {type(element).__name__}; BYTES holds text and bytes")
