"""The runtime of replicas, an MLServer model.

Parameters come from :class:`opd.serving.settings.ServerSettings`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from mlserver.handlers import custom_handler
from mlserver.settings import ModelSettings
from pydantic import BaseModel, Field

from opd.serving import metrics
from opd.serving.contents import TensorError, payload_answer, payloads_of
from opd.serving.message_server import MessageRuntime
from opd.serving.models import Model, PayloadError, load_model
from opd.serving.protocol import MalformedRequestError
from opd.serving.store import ModelStore

logger = logging.getLogger(__name__)


class DesiredVariant(BaseModel):
    """The variant that a standby replica should load."""

    variant: str
    cores: int = Field(default=1, ge=1)


class ModelRuntime(MessageRuntime):
    """Pulls a variant from the model store and answers batches with it.

    Parameters: ``pipeline``, ``task``, ``variant`` and ``store``, the URL of the model store.
    Without a variant it is a standby, which has imported everything and loads a variant later.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__(settings)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._model: Model | None = None
        self._loading: asyncio.Task[None] | None = None

    async def load(self) -> bool:
        """Load the variant, if one is set."""
        variant = self._parameters.get("variant")
        if variant:
            await self._load(str(variant))
        return self._model is not None

    async def _load(self, variant: str) -> None:
        def pull() -> Model:
            return load_model(ModelStore(self._parameters["store"]).pull(self._parameters["task"], variant))

        self._model = await asyncio.get_running_loop().run_in_executor(self._executor, pull)
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
            os.kill(os.getpid(), signal.SIGTERM)
            return
        self.ready = True

    async def infer(self, request: ModelInferRequest) -> ModelInferResponse:
        """Return one answer for each payload of a batch.

        Raises:
            MalformedRequestError: if the model refuses a payload.
        """
        assert self._model is not None  # only models that are ready are called
        try:
            payloads = payloads_of(request)
            answers = await asyncio.get_running_loop().run_in_executor(self._executor, self._infer, payloads)
        except (PayloadError, TensorError) as error:
            raise MalformedRequestError(str(error)) from error
        answer = payload_answer(answers)
        answer.model_name, answer.id = self.name, request.id
        return answer

    def _infer(self, payloads: list[bytes]) -> list[bytes]:
        assert self._model is not None
        begin = perf_counter()
        answers = self._model(payloads)
        self._seconds.observe(perf_counter() - begin)
        return answers
