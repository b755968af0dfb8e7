"""The gateway's gRPC endpoint: the Open Inference Protocol for one model, the pipeline."""

from __future__ import annotations

import logging

import grpc
from grpc import aio
from mlserver.grpc import dataplane_pb2 as messages
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceServicer, add_GRPCInferenceServiceServicer_to_server

from opd import __version__
from opd.serving.gateway.walk import Gateway
from opd.serving.protocol import SERVER_OPTIONS, ServingError

logger = logging.getLogger(__name__)

SERVER_NAME = "opd-gateway"


class GatewayServicer(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Hands requests to a gateway, and tells its errors by their status."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def ModelInfer(  # noqa: N802
        self, request: messages.ModelInferRequest, context: aio.ServicerContext
    ) -> messages.ModelInferResponse:
        """Answer a request."""
        await self._require(request.model_name, context)
        try:
            return await self._gateway.infer(request)
        except ServingError as error:
            code, details = error.code, str(error)
        except Exception as error:  # no error may end a call without a reason
            logger.exception("a request failed")
            code, details = grpc.StatusCode.INTERNAL, f"the gateway failed: {error}"
        await context.abort(code, details)

    async def ModelReady(  # noqa: N802
        self, request: messages.ModelReadyRequest, context: aio.ServicerContext
    ) -> messages.ModelReadyResponse:
        """Tell whether the pipeline takes requests."""
        return messages.ModelReadyResponse(ready=self._gateway.ready and request.name == self._gateway.name)

    async def ServerLive(  # noqa: N802
        self, request: messages.ServerLiveRequest, context: aio.ServicerContext
    ) -> messages.ServerLiveResponse:
        """Tell that the server runs."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: messages.ServerReadyRequest, context: aio.ServicerContext
    ) -> messages.ServerReadyResponse:
        """Tell that the server takes requests."""
        return messages.ServerReadyResponse(ready=self._gateway.ready)

    async def ServerMetadata(  # noqa: N802
        self, request: messages.ServerMetadataRequest, context: aio.ServicerContext
    ) -> messages.ServerMetadataResponse:
        """Name the server."""
        return messages.ServerMetadataResponse(name=SERVER_NAME, version=__version__)

    async def ModelMetadata(  # noqa: N802
        self, request: messages.ModelMetadataRequest, context: aio.ServicerContext
    ) -> messages.ModelMetadataResponse:
        """Name the pipeline; what tensors it takes is the models' affair."""
        await self._require(request.name, context)
        return messages.ModelMetadataResponse(name=self._gateway.name, platform=SERVER_NAME)

    async def _require(self, model: str, context: aio.ServicerContext) -> None:
        if model != self._gateway.name:
            await context.abort(grpc.StatusCode.NOT_FOUND, unknown_model(model, self._gateway))


def unknown_model(model: str, gateway: Gateway) -> str:
    """Return the message for a request to a model that is not the pipeline."""
    return f"there is no model {model!r} here; this gateway serves {gateway.name!r}"


def grpc_server(gateway: Gateway, address: str) -> aio.Server:
    """Return a server that listens at ``host:port`` once it is started.

    Raises:
        RuntimeError: if it cannot listen there.
    """
    server = aio.server(options=SERVER_OPTIONS)
    add_GRPCInferenceServiceServicer_to_server(GatewayServicer(gateway), server)
    server.add_insecure_port(address)
    return server
