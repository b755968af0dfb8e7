"""Adapters between stages: the outputs of one stage become the inputs of the next.

Without an adapter they keep names, datatypes and shapes. A task of the pipeline file may have one of these:

* ``{pick: [name, ...]}``: only these tensors are passed on, in this order;
* ``{rename: {old: new}}``: other tensors keep their names; together with ``pick`` it comes second;
* ``module:function``: a function that turns a dict of numpy arrays by name into another. The module is installed, or a
  file of the project folder.

The adapter of the first task works on the request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.host.errors import reason_of
from opd.host.imports import import_object
from opd.serving.contents import TensorError, check_tensors
from opd.serving.protocol import ServingError
from opd.serving.tensors import message_of, tensors_of

Adapter: TypeAlias = Callable[[ModelInferRequest], ModelInferRequest]
"""Turns what the previous stage gave into the input of a stage, a new message."""


class AdapterError(ValueError):
    """An adapter is malformed, names a function that does not exist, or a tensor that it does not get."""


def load_adapter(specification: Mapping[str, Any] | None, task: str) -> Adapter:
    """Build the adapter of a task.

    Args:
        specification: ``pick``, ``rename`` and ``function``, as far as there are any.
        task: its name, for errors.

    Returns:
        A function that raises :class:`opd.serving.protocol.ServingError`, naming stage, adapter and tensor.

    Raises:
        AdapterError: if there is no such kind of adapter, or the function cannot be imported.
    """
    given = specification or {}
    unknown = given.keys() - _STEPS.keys()
    if unknown:
        raise AdapterError(f"task {task!r}: {min(unknown)!r} is no adapter; use {', '.join(_STEPS)}")
    steps: list[tuple[str, Adapter]] = []
    for kind, step in _STEPS.items():
        if given.get(kind):
            value = _imported(given[kind]) if kind == "function" else given[kind]
            steps.append((given[kind] if kind == "function" else kind, partial(step, value)))

    def adapt(request: ModelInferRequest) -> ModelInferRequest:
        for label, step in steps:
            try:
                request = step(request)
                check_tensors(request)
            except Exception as error:  # a function of the user may raise anything
                reason = str(error) if isinstance(error, AdapterError | TensorError) else reason_of(error)
                raise ServingError(f"stage {task!r}, adapter {label}: {reason}") from error
        return request

    return adapt


def _imported(path: str) -> Callable[..., Any]:
    try:
        function = import_object(path)
    except ImportError as error:
        raise AdapterError(f"function {error}; write module:function") from error
    if not callable(function):
        raise AdapterError(f"{path!r} is no function but {type(function).__name__}; write module:function")
    return function


def _pick(names: Sequence[str], request: ModelInferRequest) -> ModelInferRequest:
    places = _require(request, names)
    picked = _inherited(ModelInferRequest(), request)
    for name in names:
        picked.inputs.append(request.inputs[places[name]])
        if request.raw_input_contents:
            picked.raw_input_contents.append(request.raw_input_contents[places[name]])
    return picked


def _rename(names: Mapping[str, str], request: ModelInferRequest) -> ModelInferRequest:
    _require(request, names)
    renamed = ModelInferRequest()
    renamed.CopyFrom(request)
    for tensor in renamed.inputs:
        tensor.name = names.get(tensor.name, tensor.name)
    return renamed


def _apply(function: Callable[..., Any], request: ModelInferRequest) -> ModelInferRequest:
    tensors = function(tensors_of(request))
    if not isinstance(tensors, Mapping):
        raise AdapterError(f"the function returned {type(tensors).__name__}, not a dict of arrays by name")
    return _inherited(message_of(tensors, raw=bool(request.raw_input_contents)), request)


def _inherited(message: ModelInferRequest, request: ModelInferRequest) -> ModelInferRequest:
    """Give ``message`` the id and parameters of ``request``."""
    message.MergeFrom(ModelInferRequest(id=request.id, parameters=request.parameters))
    return message


def _require(request: ModelInferRequest, names: Mapping[str, Any] | Sequence[str]) -> dict[str, int]:
    """Return the places of the tensors by name; all of ``names`` must be among them."""
    places = {tensor.name: place for place, tensor in enumerate(request.inputs)}
    missing = [name for name in names if name not in places]
    if missing:
        raise AdapterError(f"there is no tensor {missing[0]!r}; it gets {', '.join(map(repr, places))}")
    return places


_STEPS: Mapping[str, Callable[[Any, ModelInferRequest], ModelInferRequest]] = {
    "pick": _pick,
    "rename": _rename,
    "function": _apply,
}
"""Kinds of adapters in the order in which they are applied."""


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
            contents=output.contents if output.HasField("contents") else None,
        )
    return message
