"""Find the variants of a pipeline whose outputs do not fit the next stage, before anything is deployed.

A sample is pushed through every variant of the first stage, every different form of their answers through every variant
of the second, and so on. Two answers have the same form if a queue would join them in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import grpc
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.profiling.pipeline_file import TaskSection, VariantSection
from opd.serving.adapters import AdapterError, next_request
from opd.serving.batching import join, rows, signature, split
from opd.serving.measured_replica import MeasuredReplica, measured_replica
from opd.serving.processes import StartError
from opd.serving.protocol import ServingError
from opd.serving.stage_samples import SampleError, StageSamples, adapter_of
from opd.serving.store import ModelStore

REMEDY = "rename, pick or convert the tensors by an adapter of the task, or change the model"


@dataclass(frozen=True)
class Mismatch:
    """Something that a variant does not do for the pipeline.

    Attributes:
        task: name of the task.
        variant: name of the variant; empty if it is the adapter of the task that fails.
        given: where its input comes from, and its form.
        problem: what it says to that.
        remedy: what to do.
    """

    task: str
    variant: str
    given: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        """Place, value, problem and remedy in a sentence."""
        who = f"variant {self.variant!r}" if self.variant else "the adapter"
        return f"task {self.task!r}: {who}, given {self.given}: {self.problem}; {self.remedy}"


@dataclass(frozen=True)
class Example:
    """A request of one form to a stage.

    Attributes:
        request: the request, adapted.
        origin: which variant or sample it comes from.
    """

    request: ModelInferRequest
    origin: str

    @property
    def given(self) -> str:
        """Origin and tensors."""
        return f"{self.origin} ({', '.join(map(_described, self.request.inputs))})"


def find_mismatches(stages: StageSamples) -> list[Mismatch]:
    """Push samples through all variants, each served by a replica.

    Args:
        stages: a pipeline whose models are in the store, and its samples; of those of one form the first is used.

    Returns:
        All mismatches, in the order of the stages. A stage is tried with what the stages before it do answer.
    """
    found: list[Mismatch] = []
    batch = 2 if stages.pipeline.limits.batch_size > 1 else 1
    requests = [(sample, f"sample {place}") for place, sample in enumerate(stages.samples)]
    for task in stages.pipeline.tasks:
        examples, requests = _adapted(stages, task, requests, found), []
        for variant in task.variants if examples else ():
            requests += _tried(task, variant, examples, batch, stages.store, found)
    return found  # without requests nothing is known about what the later stages get


def _adapted(
    stages: StageSamples, task: TaskSection, requests: Sequence[tuple[ModelInferRequest, str]], found: list[Mismatch]
) -> list[Example]:
    """Return one request of every form that the stage may get; a failure of the adapter is noted once."""

    def note(given: str, error: Exception) -> None:
        found.append(Mismatch(task.name, "", given, str(error), "correct the adapter"))

    try:
        adapter_of(task)
    except AdapterError as error:
        note("no request", error)
        return []
    examples: dict[Hashable, Example] = {}
    noted: set[Hashable] = set()
    for request, origin in requests:
        try:
            example = Example(stages.adapted(task, request), origin)
        except SampleError as error:
            # Another sample or variant with the same tensors, or with the same outcome, tells nothing new.
            failure = {signature(request), str(error)}
            if not noted & failure:
                note(Example(request, origin).given, error)
            noted |= failure
            continue
        examples.setdefault(signature(example.request), example)
    return list(examples.values())


def _tried(
    task: TaskSection,
    variant: VariantSection,
    examples: Sequence[Example],
    batch: int,
    store: ModelStore,
    found: list[Mismatch],
) -> list[tuple[ModelInferRequest, str]]:
    """Return what a variant makes of each example, as requests to the next stage."""

    def note(given: str, problem: str, remedy: str) -> None:
        found.append(Mismatch(task.name, variant.name, given, problem, remedy))

    answers = []
    try:
        with measured_replica(store.url, task.name, variant.name, variant.cores) as replica:
            for example in examples:
                answer = _answer(replica, example, 1, note)
                if answer is not None and (batch == 1 or _answer(replica, example, batch, note) is not None):
                    answers.append((next_request(answer, example.request), f"the answer of variant {variant.name!r}"))
    except StartError as error:
        note("no request", str(error), "correct the model, or install what it needs")
    return answers


def _answer(
    replica: MeasuredReplica, example: Example, count: int, note: Callable[[str, str, str], None]
) -> ModelInferResponse | None:
    """Ask a replica for a batch of ``count`` equal requests; None if it does not answer every row."""
    request = ModelInferRequest()
    request.CopyFrom(join([example.request] * count))
    given = example.given if count == 1 else f"{count} times {example.given} in one batch"
    remedy = REMEDY if count == 1 else "make the model take batches along the first axis, or set limits.batch_size to 1"
    try:
        return split(replica.infer(request), [rows(request)], replica.task)[0]
    except grpc.RpcError as error:
        note(given, error.details() or error.code().name, remedy)
    except ServingError as error:
        note(given, str(error), remedy)
    return None


def _described(tensor: ModelInferRequest.InferInputTensor) -> str:
    return f"{tensor.name!r} {tensor.datatype} {list(tensor.shape)}"
