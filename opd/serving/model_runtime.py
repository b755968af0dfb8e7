"""The runtime of replicas: an MLServer model that runs a variant of the model store by the variant's own runtime."""

from __future__ import annotations

import asyncio
import logging
import os
from time import perf_counter

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from mlserver.handlers import custom_handler
from mlserver.settings import ModelSettings
from pydantic import BaseModel, Field

from opd.serving import metrics
from opd.serving.loaded_model import LoadedModel
from opd.serving.message_server import MessageRuntime
from opd.serving.protocol import MalformedRequestError
from opd.serving.store import ModelStore

logger = logging.getLogger(__name__)


class DesiredVariant(BaseModel):
    """The variant that a standby replica should load, and the threads it may use."""

    variant: str
    cores: int = Field(default=1, ge=1)


class ModelRuntime(MessageRuntime):
    """Pulls a variant from the model store and answers batches with it.

    Parameters: ``pipeline``, ``task``, ``variant`` and ``store``, the URL of the model store.
    Without a variant it is a standby, which has imported everything and loads a variant later.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._model: LoadedModel | None = None
        self._loading: asyncio.Task[None] | None = None

    async def load(self) -> bool:
        """Load the variant, if one is set."""
        variant = self._parameters.get("variant")
        if variant:
            await self._load(str(variant))
        return self._model is not None

    async def _load(self, variant: str) -> None:
        def pull() -> LoadedModel:
            folder = ModelStore(self._parameters["store"]).pull(self._parameters["task"], variant)
            return LoadedModel(folder, self.name)

        self._model = await asyncio.to_thread(pull)
        self._seconds = metrics.model_seconds.labels(self._parameters["pipeline"], self._parameters["task"], variant)

    @custom_handler(rest_path="/variant", rest_method="PUT")
    async def assign(self, desired: DesiredVariant) -> dict[str, str]:
        """Start loading a variant; the replica is ready once it is loaded, and ends if that fails.

        Raises:
            MalformedRequestError: if the replica has a variant already.
        """
        if self._loading is not None or self._model is not None:
            raise MalformedRequestError("this replica already has a variant; start another replica")
        os.environ["OMP_NUM_THREADS"] = str(desired.cores)  # read by numerical libraries when they are loaded
        self._loading = asyncio.create_task(self._load_or_end(desired.variant))
        return {"loading": desired.variant}

    async def _load_or_end(self, variant: str) -> None:
        try:
            await self._load(variant)
        except Exception:
            logger.exception("loading variant %s failed", variant)
            logging.shutdown()
            os._exit(1)  # there is no request to finish; after a signal the exit code would be 0
        self.ready = True

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Answer a batch.

        Raises:
            MalformedRequestError: if the model refuses the batch.
            ServingError: if the model fails.
        """
        assert self._model is not None  # MLServer calls only models that are ready
        begin = perf_counter()
        answer = await asyncio.wrap_future(self._model.submit(request))
        self._seconds.observe(perf_counter() - begin)
        return answer
