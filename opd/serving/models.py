"""Classes of users as models: what they look like to the runtime ``python``, and how they refuse a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from opd.host.imports import import_object
from opd.serving.manifest import read_manifest

if TYPE_CHECKING:
    from mlserver.grpc.dataplane_pb2 import ModelInferRequest


CLASS = "class"
"""Setting with the class as ``module:Class``; all other settings are its keyword arguments."""


class PayloadError(ValueError):
    """A request is not valid input for the model; sending it again would not help."""


class Model(Protocol):
    """A model of a user; its class is called with the folder of its files and the settings of its variant."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Answer a batch.

        Args:
            inputs: tensors by name, read-only, all with as many rows; BYTES are object arrays of :class:`bytes`.

        Returns:
            tensors by name, with as many rows; text may be given as :class:`str` or :class:`bytes`.

        Raises:
            PayloadError: if the input is invalid; the message reaches the client.
        """
        ...


def selected_outputs(request: ModelInferRequest, outputs: Collection[str]) -> list[str]:
    """Return the names of the outputs that a request asks for: all that there are, unless it selects some.

    Raises:
        PayloadError: if it selects one that the model does not have.
    """
    wanted = [output.name for output in request.outputs] or list(outputs)
    if unknown := set(wanted) - set(outputs):
        raise PayloadError(f"the model has no output {sorted(unknown)[0]!r}; it has {', '.join(map(repr, outputs))}")
    return wanted


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
        model_class = import_object(name)
    except ImportError as error:
        raise ImportError(f"class {error}") from error
    return model_class(folder, **arguments)


def open_object(folder: Path) -> Any:
    """Construct the class of a variant of the kind ``python`` in this process, to call its own methods.

    Args:
        folder: folder of the variant.
    """
    settings = read_manifest(folder).settings
    return build_object(folder / settings.get("uri", ""), settings["extra"])
