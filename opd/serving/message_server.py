"""MLServer's gRPC endpoint for runtimes that work on the protocol's messages as they arrive.

MLServer turns the values of a request into Python lists and those of an answer back. Models that use numpy read raw
contents directly.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import grpc
from grpc import aio
from mlserver import MLModel
from mlserver.errors import ModelNotReady
from mlserver.grpc.converters import (
    ModelInferRequestConverter,
    ModelInferResponseConverter,
    ParametersConverter,
)
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from mlserver.grpc.dataplane_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from mlserver.grpc.server import GRPCServer
from mlserver.grpc.servicers import InferenceServicer
from mlserver.grpc.utils import handle_mlserver_error
from mlserver.settings import ModelSettings
from mlserver.types import InferenceRequest, InferenceResponse

from opd.serving.contents import TensorError
from opd.serving.json_requests import array_of
from opd.serving.protocol import MalformedRequestError
from opd.serving.tensors import add_tensor


class MessageRuntime(MLModel):
    """Base of runtimes that answer messages.

    ``_parameters`` are those of :class:`opd.serving.settings.ServerSettings`.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._parameters: dict[str, Any] = dict(settings.parameters.extra or {})  # type: ignore[union-attr]

    @abstractmethod
    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Answer a request.

        Raises:
            ServingError: with the status of the failure.
        """

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer a request that came by REST."""
        request = ModelInferRequestConverter.from_types(payload.model_copy(update={"inputs": []}), self.name)
        for tensor in payload.inputs:
            datatype = str(getattr(tensor.datatype, "value", tensor.datatype))
            values = getattr(tensor.data, "root", tensor.data)
            try:
                added = add_tensor(request, tensor.name, array_of(values, datatype, tensor.shape))
            except TensorError as error:
                raise MalformedRequestError(f"tensor {tensor.name!r}: {error}") from None
            if tensor.parameters is not None:
                for name, parameter in ParametersConverter.from_types(tensor.parameters).items():
                    added.parameters[name].CopyFrom(parameter)
        return ModelInferResponseConverter.to_types(await self.infer(request))


class MessageServicer(InferenceServicer):
    """Hands messages to a :class:`MessageRuntime`; other runtimes get MLServer's types."""

    @handle_mlserver_error
    async def ModelInfer(  # noqa: N802
        self, request: ModelInferRequest, context: grpc.ServicerContext
    ) -> ModelInferResponse:
        """Answer a request."""
        model = await self._data_plane._model_registry.get_model(request.model_name, request.model_version)
        if not isinstance(model, MessageRuntime):
            return await super().ModelInfer(request, context)
        if not model.ready:
            raise ModelNotReady(request.model_name)
        return await model.infer(request)


class MessageServer(GRPCServer):
    """MLServer's gRPC server with :class:`MessageServicer`."""

    def _create_server(self) -> aio.Server:
        self._server = aio.server(options=self._get_options())
        servicer = MessageServicer(self._data_plane, self._model_repository_handlers)
        add_GRPCInferenceServiceServicer_to_server(servicer, self._server)
        self._server.add_insecure_port(f"{self._settings.host}:{self._settings.grpc_port}")
        return self._server
