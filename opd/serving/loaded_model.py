"""A variant loaded into this process, by whatever runtime its manifest names."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from mlserver import MLModel
from mlserver.errors import MLServerError
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse
from mlserver.settings import ModelParameters, ModelSettings
from mlserver.types import InferenceResponse

from opd.host.errors import reason_of
from opd.host.imports import import_object
from opd.serving.batching import check_request
from opd.serving.manifest import CODE, Manifest, read_manifest
from opd.serving.message_server import MessageRuntime
from opd.serving.model_kinds import installation_hint
from opd.serving.models import PayloadError
from opd.serving.protocol import MalformedRequestError, ServingError


class ModelError(RuntimeError):
    """A variant cannot be loaded."""


class LoadedModel:
    """A variant that answers requests one after the other, in a thread of its own.

    The model is created and called in that thread alone, within its event loop: some libraries want it so, and the
    caller stays responsive.

    Args:
        folder: folder of the variant.
        name: name of the model, for its answers and errors.

    Raises:
        FileNotFoundError: if it is not a variant.
        ModelError: if it cannot be loaded.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="inference")
        self._runner = asyncio.Runner()
        try:
            self._model: MLModel = self._thread.submit(self._load, folder).result()
        except BaseException:
            self.close()
            raise

    def submit(self, request: ModelInferRequest) -> Future[ModelInferResponse]:
        """Begin to answer a request, once those before it are answered.

        The future raises:
            MalformedRequestError: if the request is malformed, or the model refuses it.
            ServingError: if the model fails.
        """
        return self._thread.submit(self._infer, request)

    def __call__(self, request: ModelInferRequest) -> ModelInferResponse:
        """Answer a request; for errors see :meth:`submit`."""
        return self.submit(request).result()

    def close(self) -> None:
        """End the thread after the running request."""
        self._thread.submit(self._runner.close)
        self._thread.shutdown()

    def _load(self, folder: Path) -> MLModel:
        manifest = read_manifest(folder)
        if (folder / CODE).is_dir() and str(folder / CODE) not in sys.path:
            sys.path.insert(0, str(folder / CODE))
        try:
            model = runtime_class(manifest.runtime)(_model_settings(self.name, manifest, folder))
            model.ready = self._runner.run(model.load())
        except ModelError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelError(f"{self.name} in {folder} cannot be loaded: {reason_of(error)}") from error
        return model

    def _infer(self, request: ModelInferRequest) -> ModelInferResponse:
        check_request(request)
        try:
            answer = self._runner.run(_answer(self._model, request))
        except PayloadError as error:
            raise MalformedRequestError(str(error)) from error
        except MLServerError:
            raise
        except (Exception, SystemExit) as error:
            raise ServingError(f"{self.name} failed: {reason_of(error)}") from error
        answer.id, answer.model_name = request.id, self.name
        return answer


async def _answer(model: MLModel, request: ModelInferRequest) -> ModelInferResponse:
    if isinstance(model, MessageRuntime):
        return await model.infer(request)
    response = await model.predict(ModelInferRequestConverter.to_types(request))
    datatypes = _make_sendable(response)
    raw = bool(request.raw_input_contents) or "FP16" in datatypes  # which has no typed contents
    return ModelInferResponseConverter.from_types(response, use_raw=raw)


def _make_sendable(response: InferenceResponse) -> list[str]:
    """Correct what MLServer's codecs produce but gRPC cannot carry: text in BYTES, and None for "not a number".

    Returns:
        the datatypes of the outputs.
    """
    datatypes = [str(getattr(tensor.datatype, "value", tensor.datatype)) for tensor in response.outputs]
    for tensor, datatype in zip(response.outputs, datatypes, strict=True):
        if datatype == "BYTES":
            tensor.data = [element.encode() if isinstance(element, str) else element for element in tensor.data]
        elif datatype.startswith("FP"):
            tensor.data = [float("nan") if element is None else element for element in tensor.data]
    return datatypes


def runtime_class(path: str) -> type[MLModel]:
    """Import a runtime.

    Args:
        path: import path of the class.

    Raises:
        ModelError: if it cannot be imported, or is not a runtime; names the extra that has it.
    """
    try:
        found = import_object(path)
    except ImportError as error:
        raise ModelError(f"runtime {error}{installation_hint(path)}") from error
    if not (isinstance(found, type) and issubclass(found, MLModel)):
        raise ModelError(f"runtime {path} is not a subclass of mlserver.MLModel")
    return found


def _model_settings(name: str, manifest: Manifest, folder: Path) -> ModelSettings:
    settings = {**manifest.settings, "uri": str(folder / manifest.settings.get("uri", ""))}
    return ModelSettings(name=name, implementation=manifest.runtime, parameters=ModelParameters(**settings))
