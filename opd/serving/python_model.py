"""The runtime of users' own classes."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving.manifest import read_manifest
from opd.serving.message_server import MessageRuntime
from opd.serving.models import Model, selected_outputs
from opd.serving.tensors import answer_of, tensors_of

CLASS = "class"
"""Setting with the class as ``module:Class``; all other settings are its keyword arguments."""


def build_object(folder: Path, settings: Mapping[str, Any]) -> Any:
    """Construct a user's class.

    Args:
        folder: folder of its files, its first argument.
        settings: :data:`CLASS`, and its keyword arguments.

    Raises:
        ImportError: if the class cannot be imported.
    """
    arguments = dict(settings)
    name = str(arguments.pop(CLASS, ""))
    if ":" not in name:
        raise ImportError(f"setting {CLASS!r} is {name!r}; write the class as module:Class")
    try:
        model_class = pkgutil.resolve_name(name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ImportError(f"class {name!r} cannot be imported: {error}") from error
    return model_class(folder, **arguments)


def open_object(folder: Path) -> Any:
    """Construct the class of a variant of the kind ``python`` in this process, to call its own methods.

    Args:
        folder: folder of the variant.
    """
    settings = read_manifest(folder).settings
    return build_object(folder / settings.get("uri", ""), settings["extra"])


class PythonModel(MessageRuntime):
    """A class of a user, :class:`opd.serving.models.Model`."""

    async def load(self) -> bool:
        """Construct the class."""
        parameters = self.settings.parameters
        self._model: Model = build_object(Path(parameters.uri), parameters.extra)
        return True

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Call the object.

        Raises:
            PayloadError: if the request selects outputs that the object does not return.
            TypeError: if it returns anything but arrays by name.
        """
        outputs = self._model(tensors_of(request))
        if not isinstance(outputs, Mapping) or not outputs:
            raise TypeError(f"{type(self._model).__name__} returned {outputs!r:.80}; return a dict of arrays by name")
        chosen = {name: outputs[name] for name in selected_outputs(request, outputs)}
        return answer_of(chosen, raw=bool(request.raw_input_contents))
