"""Replicas of a gateway under test: real processes that answer well, answer garbage, or hang."""

import asyncio

from mlserver.grpc.dataplane_pb2 import ModelInferResponse

from opd.serving.message_server import MessageRuntime
from opd.serving.tensors import answer_of, tensors_of


class Upper(MessageRuntime):
    """Answers texts in capitals, a batch after the other; each takes ``seconds``."""

    async def load(self):
        self._lock = asyncio.Lock()
        return True

    async def infer(self, request):
        async with self._lock:
            await asyncio.sleep(self._parameters.get("seconds", 0.0))
        return answer_of({"payload": [text.upper() for text in tensors_of(request)["payload"]]})


class Garbage(MessageRuntime):
    """Answers without a tensor."""

    async def load(self):
        return True

    async def infer(self, request):
        return ModelInferResponse()


class Hanging(MessageRuntime):
    """Is ready, and never answers."""

    async def load(self):
        return True

    async def infer(self, request):
        await asyncio.sleep(3600)
