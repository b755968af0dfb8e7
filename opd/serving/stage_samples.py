"""Realistic requests of every stage: the samples of a pipeline, pushed through its earlier stages.

The requests of a stage are what the most accurate variant of the stage before answers, adapted. They are computed once
and kept, until a model, an adapter or the samples change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.host.archive import written_whole
from opd.host.paths import project_path
from opd.profiling.pipeline_file import PipelineFile, TaskSection, VariantSection, pipeline_path, read_pipeline_file
from opd.serving.adapters import Adapter, AdapterError, load_adapter, next_request
from opd.serving.contents import pack_bytes, unpack_bytes
from opd.serving.manifest import read_manifest
from opd.serving.measured_replica import measured_replica
from opd.serving.protocol import ServingError
from opd.serving.samples import read_samples
from opd.serving.store import ModelStore


class SampleError(RuntimeError):
    """A model fails on a sample, so the later stages have none."""


def adapter_of(task: TaskSection) -> Adapter:
    """Return the adapter of a stage, which does nothing unless the file has one.

    Raises:
        AdapterError: if its function cannot be imported.
    """
    return load_adapter(task.adapter_steps, task.name)


def most_accurate(task: TaskSection) -> VariantSection:
    """Return the variant of the highest accuracy, the first of several."""
    return max(task.variants, key=lambda variant: variant.accuracy.value)


def answers_of(
    store: ModelStore, task: TaskSection, variant: VariantSection, requests: Sequence[ModelInferRequest]
) -> list[ModelInferResponse]:
    """Return the answers of a variant, served by a replica, to some requests.

    Raises:
        SampleError: if it does not answer one of them.
        StartError: if it does not start.
    """
    answers = []
    with measured_replica(store.url, task.name, variant.name, variant.cores) as replica:
        for place, request in enumerate(requests):
            try:
                answers.append(replica.infer(request))
            except grpc.RpcError as error:
                raise SampleError(
                    f"variant {variant.name!r} of task {task.name!r} fails on sample {place}: {error.details()}"
                ) from error
    return answers


@dataclass(frozen=True)
class StageSamples:
    """Requests of the stages of a pipeline.

    Attributes:
        pipeline: the pipeline file.
        samples: requests to the pipeline.
        store: model store with its variants.
        cache: folder where computed requests are kept.
    """

    pipeline: PipelineFile
    samples: Sequence[ModelInferRequest]
    store: ModelStore
    cache: Path

    def of(self, task: str) -> list[ModelInferRequest]:
        """Return the requests of a stage, one per sample of the pipeline.

        Raises:
            SampleError: if a model of an earlier stage, or the adapter, fails on a sample.
            StartError: if a model of an earlier stage does not start.
            KeyError: if the store lacks a model of an earlier stage.
        """
        place = self._place(task)
        stage, path = self.pipeline.tasks[place], self.cache / f"{task}-{self.fingerprint(task)}.requests"
        if path.is_file():
            return [ModelInferRequest.FromString(message) for message in unpack_bytes(path.read_bytes())]
        if place:
            before = self.pipeline.tasks[place - 1]
            requests = self.of(before.name)
            answers = answers_of(self.store, before, most_accurate(before), requests)
            requests = [next_request(*pair) for pair in zip(answers, requests, strict=True)]
        else:
            requests = list(self.samples)
        requests = [self.adapted(stage, request) for request in requests]
        with written_whole(path) as unfinished:
            unfinished.write_bytes(pack_bytes([each.SerializeToString(deterministic=True) for each in requests]))
        return requests

    def adapted(self, task: TaskSection, request: ModelInferRequest) -> ModelInferRequest:
        """Return what a stage gets of a request to it, as in the served pipeline.

        Raises:
            SampleError: if the adapter of the stage fails.
        """
        own = ModelInferRequest()
        own.CopyFrom(request)
        del own.outputs[:]
        try:
            own = adapter_of(task)(own)
        except (AdapterError, ServingError) as error:
            raise SampleError(f"a sample cannot be adapted to task {task.name!r}: {error}") from error
        own.outputs.extend(self.outputs(task))
        return own

    def outputs(self, task: TaskSection) -> list[ModelInferRequest.InferRequestedOutputTensor]:
        """Return the outputs that the samples select, which are those of the last stage."""
        return list(self.samples[0].outputs) if task.name == self.pipeline.tasks[-1].name else []

    def fingerprint(self, task: str) -> str:
        """Hash what determines the requests of a stage."""
        place = self._place(task)
        if place:
            before = self.pipeline.tasks[place - 1]
            model = read_manifest(self.store.pull(before.name, most_accurate(before).name)).document
            origin: list[Any] = [self.fingerprint(before.name), model]
        else:
            origin = [sample.SerializeToString(deterministic=True).hex() for sample in self.samples]
        text = json.dumps([origin, self.pipeline.tasks[place].adapter_steps])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _place(self, task: str) -> int:
        return [stage.name for stage in self.pipeline.tasks].index(task)


def load_stage_samples(source: str | Path, store: ModelStore | None = None, cache: Path | None = None) -> StageSamples:
    """Load a pipeline file and the samples that it names.

    Args:
        source: name, folder or file of the pipeline; its models are in the store.
        store: the model store; that of the project if not given.
        cache: folder where the requests of later stages are kept; one of the project if not given.

    Raises:
        FileNotFoundError: if there is no such pipeline, or no file of samples.
        DocumentError: if either file is malformed.
        ValueError: if the pipeline names no samples.
    """
    path = pipeline_path(source)
    pipeline = read_pipeline_file(path)
    if pipeline.samples is None:
        raise ValueError(f"{path} names no samples; models are checked and measured with samples: FILE of requests")
    samples = read_samples(path.parent / pipeline.samples)
    return StageSamples(pipeline, samples, store or ModelStore(), cache or project_path(".cache", "samples"))
