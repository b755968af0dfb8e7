"""What a user's model class looks like to the runtime ``python``, and how any model refuses a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from mlserver.grpc.dataplane_pb2 import ModelInferRequest


class PayloadError(ValueError):
    """A request is not valid input for the model; sending it again would not help."""


class Model(Protocol):
    """A model of a user; its class is called with the folder of its files and the settings of its variant."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Answer a batch.

        Args:
            inputs: tensors by name, all with the same number of rows; BYTES are object arrays of :class:`bytes`.

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
