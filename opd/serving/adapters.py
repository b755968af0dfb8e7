"""Adapters between stages: the outputs of one stage become the inputs of the next.

Without an adapter they keep names, datatypes and shapes. An adapter is one of

* ``{rename: {old: new}}``: tensors that are not named keep their names;
* ``{pick: [name, ...]}``: only these tensors are passed on, in this order;
* ``module:function``: a function that turns a dict of numpy arrays by name into another;

or several of them, applied in the order given: ``{pick: [scores], rename: {scores: x}}`` or a list. The adapter of the
first stage works on the request.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving.contents import TensorError, check_tensors
from opd.serving.protocol import ServingError
from opd.serving.tensors import message_of, tensors_of

AdapterSpecification: TypeAlias = str | Mapping[str, Any] | Sequence[Any] | None
"""An adapter as the pipeline file has it."""

Adapter: TypeAlias = Callable[[ModelInferRequest], ModelInferRequest]
"""Turns what the previous stage gave into the input of a stage, in place or as a new message."""


class AdapterError(ValueError):
    """An adapter is malformed, names a function that does not exist, or a tensor that it does not get."""


def load_adapter(specification: AdapterSpecification, stage: str) -> Adapter:
    """Build the adapter of a stage.

    Args:
        specification: as in the module's description; nothing for none.
        stage: name of the task, for errors.

    Returns:
        A function that raises :class:`opd.serving.protocol.ServingError`, naming the stage, the adapter and the tensor.

    Raises:
        AdapterError: if the specification is malformed or a function cannot be imported.
    """
    steps = [(label, _step(kind, value, label)) for kind, value, label in _parts(specification)]

    def adapt(request: ModelInferRequest) -> ModelInferRequest:
        for label, step in steps:
            try:
                request = step(request)
                check_tensors(request)
            except Exception as error:  # a function of the user may raise anything
                kind = "" if isinstance(error, AdapterError | TensorError) else f"{type(error).__name__}: "
                raise ServingError(f"stage {stage!r}, adapter {label}: {kind}{error}") from error
        return request

    return adapt


def _parts(specification: AdapterSpecification) -> list[tuple[str, Any, str]]:
    """Return kind, value and label of each step."""
    if not specification:
        return []
    if isinstance(specification, str):
        return [("function", specification, specification)]
    if isinstance(specification, Mapping):
        return [(str(kind), value, str(kind)) for kind, value in specification.items()]
    if isinstance(specification, Sequence):
        return [part for each in specification for part in _parts(each)]
    raise AdapterError(f"an adapter is rename, pick or module:function, not {specification!r}")


def _step(kind: str, value: Any, label: str) -> Adapter:
    match kind:
        case "rename" if isinstance(value, Mapping):
            return lambda request: _rename(request, value)
        case "pick" if isinstance(value, Sequence) and not isinstance(value, str) and value:
            return lambda request: _pick(request, value)
        case "function":
            function = _imported(value)
            return lambda request: _apply(request, function)
        case "rename":
            raise AdapterError(f"rename needs a mapping of old to new names, not {value!r}")
        case "pick":
            raise AdapterError(f"pick needs a list of at least one name, not {value!r}")
    raise AdapterError(f"{kind!r} is no adapter; use rename, pick or module:function")


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise AdapterError(f"function {path!r} cannot be imported ({error}); write module:function") from error
    if not callable(function):
        raise AdapterError(f"{path!r} is no function but {type(function).__name__}")
    return function


def _rename(request: ModelInferRequest, names: Mapping[str, str]) -> ModelInferRequest:
    _require(request, names)
    for tensor in request.inputs:
        tensor.name = names.get(tensor.name, tensor.name)
    return request


def _pick(request: ModelInferRequest, names: Sequence[str]) -> ModelInferRequest:
    places = _require(request, names)
    picked = _with_tensors_of(request, ModelInferRequest())
    for name in names:
        picked.inputs.append(request.inputs[places[name]])
        if request.raw_input_contents:
            picked.raw_input_contents.append(request.raw_input_contents[places[name]])
    return picked


def _apply(request: ModelInferRequest, function: Callable[..., Any]) -> ModelInferRequest:
    tensors = function(tensors_of(request))
    if not isinstance(tensors, Mapping):
        raise AdapterError(f"the function returned {type(tensors).__name__}, not a dict of arrays by name")
    return _with_tensors_of(request, message_of(tensors, raw=bool(request.raw_input_contents)))


def _with_tensors_of(request: ModelInferRequest, message: ModelInferRequest) -> ModelInferRequest:
    """Give ``message`` the id, parameters and selected outputs of ``request``."""
    message.id = request.id
    message.outputs.extend(request.outputs)
    message.MergeFrom(ModelInferRequest(parameters=request.parameters))
    return message


def _require(request: ModelInferRequest, names: Mapping[str, Any] | Sequence[str]) -> dict[str, int]:
    """Return the places of the tensors by name; all of ``names`` must be among them."""
    places = {tensor.name: place for place, tensor in enumerate(request.inputs)}
    missing = [name for name in names if name not in places]
    if missing:
        raise AdapterError(f"there is no tensor {missing[0]!r}; it gets {', '.join(map(repr, places))}")
    return places


def next_request(answer: ModelInferResponse, request: ModelInferRequest) -> ModelInferRequest:
    """Make the outputs of a stage the inputs of the next; id and parameters stay those of ``request``."""
    message = ModelInferRequest(
        id=request.id, parameters=request.parameters, raw_input_contents=answer.raw_output_contents
    )
    for output in answer.outputs:
        message.inputs.add(
            name=output.name,
            datatype=output.datatype,
            shape=output.shape,
            parameters=output.parameters,
            contents=output.contents,
        )
    return message
