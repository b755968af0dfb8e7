"""Requests and answers in the JSON form of the Open Inference Protocol; requests are checked value by value.

A request is ``{"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1.5]}]}``, optionally with
``id``, ``parameters`` and the selected ``outputs``. Values are nested or flat in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from mlserver.grpc.dataplane_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from pydantic import Field, model_validator

from opd.host.documents import DocumentModel
from opd.serving.contents import DATATYPES, TensorError
from opd.serving.protocol import ServingError
from opd.serving.tensors import add_tensor, tensors_of

ParameterValues: TypeAlias = dict[str, bool | Annotated[int, Field(ge=-(2**63), lt=2**63)] | str]


class JsonTensor(DocumentModel):
    """An input tensor."""

    name: Annotated[str, Field(min_length=1)]
    """Name that the model gives to this input."""

    shape: list[int]
    """Axes; the first counts the rows, such as [1, 4] for one row of four values."""

    datatype: str
    """Datatype of the protocol, such as FP32, INT64 or BYTES."""

    data: list[Any]
    """Values, nested or flat in row-major order."""

    parameters: ParameterValues = {}
    """Parameters of the tensor."""

    @model_validator(mode="after")
    def _check_values(self) -> JsonTensor:
        self.array()
        return self

    def array(self) -> npt.NDArray[Any]:
        """Return the values."""
        return array_of(self.data, self.datatype, self.shape)


class JsonOutput(DocumentModel):
    """A selected output."""

    name: Annotated[str, Field(min_length=1)]
    """Name of the output."""

    parameters: ParameterValues = {}
    """Parameters of the output."""


class JsonRequest(DocumentModel):
    """A request."""

    inputs: Annotated[list[JsonTensor], Field(min_length=1)]
    """Tensors, such as {name: x, shape: [1, 4], datatype: FP32, data: [1, 2, 3, 4]}."""

    id: str = ""
    """Identifier, which comes back in the answer."""

    parameters: ParameterValues = {}
    """Parameters, which all models of the pipeline get."""

    outputs: list[JsonOutput] = []
    """Outputs of the pipeline that are wanted; all if there are none."""

    def message(self) -> ModelInferRequest:
        """Return the request as a message with raw contents."""
        request = ModelInferRequest(id=self.id, parameters=_parameters(self.parameters))
        for tensor in self.inputs:
            added = add_tensor(request, tensor.name, tensor.array())
            for name, parameter in _parameters(tensor.parameters).items():
                added.parameters[name].CopyFrom(parameter)
        for output in self.outputs:
            request.outputs.add(name=output.name, parameters=_parameters(output.parameters))
        return request


def _parameters(values: Mapping[str, bool | int | str]) -> dict[str, InferParameter]:
    fields = {bool: "bool_param", int: "int64_param", str: "string_param"}
    return {name: InferParameter(**{fields[type(value)]: value}) for name, value in values.items()}


def answer_document(answer: ModelInferResponse) -> dict[str, Any]:
    """Return an answer as plain data for JSON: values flat in row-major order, text for BYTES, null for "not a number".

    Args:
        answer: whose contents fit its shapes.

    Raises:
        ServingError: if BYTES are not text in UTF-8.
    """
    arrays = tensors_of(answer)
    return {
        "model_name": answer.model_name,
        "id": answer.id,
        "parameters": _values(answer.parameters),
        "outputs": [
            {
                "name": tensor.name,
                "shape": list(tensor.shape),
                "datatype": tensor.datatype,
                "parameters": _values(tensor.parameters),
                "data": _json_values(tensor.name, arrays[tensor.name]),
            }
            for tensor in answer.outputs
        ],
    }


def _values(parameters: Mapping[str, InferParameter]) -> dict[str, Any]:
    return {
        name: getattr(parameter, field)
        for name, parameter in parameters.items()
        if (field := parameter.WhichOneof("parameter_choice"))
    }


def _json_values(name: str, array: npt.NDArray[Any]) -> list[Any]:
    values = array.ravel().tolist()
    if array.dtype.kind == "f":
        return [value if math.isfinite(value) else None for value in values]
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError as error:
        raise ServingError(f"output {name!r} is not text, which JSON cannot hold; ask by gRPC") from error


# ------------------------------------------------------------------------------------------------------ values

_EXPECTED: Mapping[str, tuple[tuple[type, ...], str]] = {
    "BO": ((bool,), "true or false"),
    "IN": ((int,), "a whole number"),
    "UI": ((int,), "a whole number"),
    "FP": ((int, float), "a number"),
    "BY": ((str, bytes), "text"),
}
"""Types and description of the values of each group of datatypes, by the first letters of their names."""


def array_of(values: Sequence[Any], datatype: str, shape: Sequence[int]) -> npt.NDArray[Any]:
    """Convert the values of a tensor in JSON; whole numbers are never rounded, and nothing overflows.

    Args:
        values: nested or flat in row-major order.
        datatype: the protocol's name.
        shape: of the tensor.

    Raises:
        TensorError: if a value does not fit the datatype, or their number does not fit the shape.
    """
    if datatype not in DATATYPES:
        raise TensorError(f"datatype {datatype!r} is not known; known are {', '.join(DATATYPES)}")
    if not shape or shape[0] < 1 or min(shape) < 0:
        raise TensorError(
            f"shape {list(shape)} must begin with the number of rows, at least 1, and have no axis below 0"
        )
    flat = _flat(values)
    if len(flat) != math.prod(shape):
        raise TensorError(f"{len(flat)} values do not fit shape {list(shape)}, which needs {math.prod(shape)}")
    types, expected = _EXPECTED[datatype[:2]]
    for value in flat:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TensorError(f"value {value!r} must be {expected} for datatype {datatype}")
    dtype = DATATYPES[datatype].dtype
    if dtype.kind in "iuf":
        _check_range(flat, datatype, np.iinfo(dtype) if dtype.kind in "iu" else np.finfo(dtype))
    array = np.empty(len(flat), dtype)
    array[:] = [value.encode() if isinstance(value, str) else value for value in flat] if datatype == "BYTES" else flat
    return array.reshape(tuple(shape))


def _flat(values: Sequence[Any]) -> list[Any]:
    flat = list(values)
    while any(isinstance(value, list) for value in flat):
        flat = [each for value in flat for each in (value if isinstance(value, list) else [value])]
    return flat


def _check_range(values: Sequence[float], datatype: str, limits: np.iinfo[Any] | np.finfo[Any]) -> None:
    low, high = (float(limits.min), float(limits.max)) if isinstance(limits, np.finfo) else (limits.min, limits.max)
    for value in values:
        if (value < low or value > high) and abs(value) != math.inf:
            raise TensorError(f"value {value!r} is outside {low} to {high}, the range of datatype {datatype}")
