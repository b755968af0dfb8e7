"""The runtime of ONNX files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from opd.serving.contents import DATATYPES
from opd.serving.message_server import MessageRuntime
from opd.serving.models import PayloadError, selected_outputs
from opd.serving.tensors import answer_of, tensors_of

BYTES = "BYTES"

_NUMBERS = {"float16": "FP16", "float": "FP32", "double": "FP64"}


def open_session(path: str) -> ort.InferenceSession:
    """Load a network to run on as many threads as ``OMP_NUM_THREADS`` says, which sleep when idle."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class OnnxModel(MessageRuntime):
    """An ONNX file; the names of its inputs and outputs are the names of the tensors.

    Numbers are converted where that loses nothing but precision. Outputs that are no tensors, such as the maps that
    converters of scikit-learn models add, are left out.
    """

    async def load(self) -> bool:
        """Load the network.

        Raises:
            ValueError: if there are settings, of which it has none.
        """
        if self._parameters:
            raise ValueError(f"ONNX models have no setting {sorted(self._parameters)[0]!r}")
        self._session = open_session(str(self.settings.parameters.uri))
        self._inputs = {each.name: (_datatype(each.type), list(each.shape)) for each in self._session.get_inputs()}
        self._outputs = [each.name for each in self._session.get_outputs() if each.type.startswith("tensor(")]
        return True

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Run the network once.

        Raises:
            PayloadError: if the tensors are not what the network takes; names tensor, shape and type.
        """
        arrays = tensors_of(request)
        if arrays.keys() != self._inputs.keys():
            raise PayloadError(
                f"the request has the tensors {', '.join(map(repr, arrays))}; the model takes {self._signature()}; "
                "rename or pick them by an adapter of the task"
            )
        feeds = {tensor.name: self._checked(tensor, arrays[tensor.name]) for tensor in request.inputs}
        wanted = selected_outputs(request, self._outputs)
        try:
            results = self._session.run(wanted, feeds)
        except InvalidArgument as error:
            raise PayloadError(f"the network refuses its input: {error}") from error
        return answer_of(dict(zip(wanted, results, strict=True)), raw=bool(request.raw_input_contents))

    def _signature(self) -> str:
        return ", ".join(f"{name!r} {datatype} {_sizes(shape)}" for name, (datatype, shape) in self._inputs.items())

    def _checked(self, tensor: ModelInferRequest.InferInputTensor, array: np.ndarray) -> np.ndarray:
        """Return a tensor as the network takes it."""
        datatype, shape = self._inputs[tensor.name]
        if len(shape) != array.ndim or any(
            isinstance(size, int) and size != found for size, found in zip(shape, array.shape, strict=True)
        ):
            raise PayloadError(
                f"tensor {tensor.name!r} has shape {list(array.shape)}, but the model takes {_sizes(shape)}"
                + _fixed_batch(shape, array.shape)
            )
        if BYTES in (datatype, tensor.datatype) and datatype != tensor.datatype:
            raise _wrong_type(tensor, datatype)
        return _texts(tensor, array) if datatype == BYTES else _converted(tensor, array, datatype)


def _datatype(onnx_type: str) -> str:
    """Translate a type such as ``tensor(float)``; what the protocol lacks is only put into capitals."""
    element = onnx_type.removeprefix("tensor(").rstrip(")")
    return {**_NUMBERS, "string": BYTES}.get(element, element.upper())


def _sizes(shape: list[Any]) -> list[int]:
    """Write free axes as -1."""
    return [size if isinstance(size, int) else -1 for size in shape]


def _fixed_batch(shape: list[Any], found: tuple[int, ...]) -> str:
    if len(shape) == len(found) > 0 and isinstance(shape[0], int) and shape[0] != found[0]:
        return "; its first axis is fixed, so it takes no other batch: export it with a dynamic first axis"
    return ""


def _wrong_type(tensor: ModelInferRequest.InferInputTensor, datatype: str) -> PayloadError:
    return PayloadError(f"tensor {tensor.name!r} is of type {tensor.datatype}, but the model takes {datatype}")


def _converted(tensor: ModelInferRequest.InferInputTensor, array: np.ndarray, datatype: str) -> np.ndarray:
    if tensor.datatype == datatype:
        return array
    if datatype not in DATATYPES or not np.can_cast(array.dtype, DATATYPES[datatype].dtype, "same_kind"):
        raise _wrong_type(tensor, datatype)
    with np.errstate(over="ignore"):
        converted = array.astype(DATATYPES[datatype].dtype)
    whole = converted.dtype.kind in "iu"
    changed = converted != array if whole else np.isfinite(converted) != np.isfinite(array)
    if changed.any():
        raise PayloadError(
            f"tensor {tensor.name!r} has the value {array[changed][0]}, which does not fit the model's type {datatype}"
        )
    return converted


def _texts(tensor: ModelInferRequest.InferInputTensor, array: np.ndarray) -> np.ndarray:
    try:
        texts = np.array([element.decode() for element in array.flat], dtype=object)
    except UnicodeDecodeError as error:
        raise PayloadError(f"tensor {tensor.name!r} is not text in UTF-8: {error}") from error
    return texts.reshape(array.shape)
