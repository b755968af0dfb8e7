"""The runtime of users' own classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving.message_server import MessageRuntime
from opd.serving.models import Model, build_object, selected_outputs
from opd.serving.tensors import answer_of, tensors_of


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
