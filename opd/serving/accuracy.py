"""Measure accuracy on labelled samples: of the variants whose task has labels, and of whole configurations.

The labels are a JSON list with one entry a sample, what the last stage should answer, or a mapping of tasks to such
lists. A sample of several rows has a list with one label a row. What a model answers is its first output, or the one
that the sample selects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.host.documents import DocumentError, read_json
from opd.host.errors import problem_list, reason_of
from opd.host.imports import import_object
from opd.profiling.pipeline_file import PipelineFile, TaskSection, VariantSection, pipeline_path
from opd.serving.adapters import next_request
from opd.serving.batching import rows
from opd.serving.stage_samples import StageSamples, answers_of, load_stage_samples
from opd.serving.tensors import tensors_of

Metric = Callable[[Sequence[Any], Sequence[Any]], float]
"""Accuracy from labels and answers, row by row."""

Labels = Mapping[str, Sequence[Any]]
"""Labels of the samples by task."""


class MetricError(ValueError):
    """A metric cannot be imported, or fails on the labels and answers."""


def load_metric(reference: str) -> Metric:
    """Import a metric.

    Args:
        reference: ``module:function``, called with labels and answers as those of scikit-learn, or a class of
            torchmetrics that needs no arguments.

    Raises:
        MetricError: if it cannot be imported.
    """
    try:
        found = import_object(reference)
    except ImportError as error:
        raise MetricError(f"metric {error}; write module:function") from error

    def metric(labels: Sequence[Any], answers: Sequence[Any]) -> float:
        try:
            return float(_torch_metric(found, labels, answers) if isinstance(found, type) else found(labels, answers))
        except Exception as error:  # it is a function of anybody
            first = f"first label {labels[0]!r:.40}, first answer {answers[0]!r:.40}"
            raise MetricError(f"metric {reference!r} fails, {first}: {reason_of(error)}") from error

    return metric


def _torch_metric(metric: Any, labels: Sequence[Any], answers: Sequence[Any]) -> Any:
    import torch  # takes a second to import

    if isinstance(labels[0], str):
        return metric()(list(answers), list(labels))
    return metric()(torch.tensor(answers), torch.tensor(labels))


def read_labels(pipeline: PipelineFile, folder: Path, samples: Sequence[ModelInferRequest]) -> Labels:
    """Read the labels that a pipeline file names, flattened to one entry a row.

    Args:
        pipeline: the pipeline file.
        folder: its folder.
        samples: the samples of the pipeline.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if there are no labels, or they do not fit the samples; it lists all problems.
    """
    if pipeline.labels is None:
        raise DocumentError(
            f"pipeline {pipeline.name!r} in {folder} names no labels; write labels: FILE, and metric: module:function"
        )
    path = folder / pipeline.labels
    content = read_json(path)
    by_task = content if isinstance(content, dict) else {pipeline.tasks[-1].name: content}
    known = [task.name for task in pipeline.tasks]
    problems = [f"{name!r} is no task; the pipeline has {', '.join(known)}" for name in by_task if name not in known]
    labels = {name: _flat(name, entries, samples, problems) for name, entries in by_task.items() if name in known}
    if problems:
        raise DocumentError(problem_list(f"{path} does not fit pipeline {pipeline.name!r}", problems))
    return labels


def _flat(task: str, entries: Any, samples: Sequence[ModelInferRequest], problems: list[str]) -> list[Any]:
    if not isinstance(entries, list) or len(entries) != len(samples):
        found = f"{len(entries)} entries" if isinstance(entries, list) else type(entries).__name__
        problems.append(f"labels of {task!r}: {found}; write a list with one label for each of {len(samples)} samples")
        return []
    flat = []
    for place, (entry, sample) in enumerate(zip(entries, samples, strict=True)):
        count = rows(sample)
        if count > 1 and not (isinstance(entry, list) and len(entry) == count):
            problems.append(f"labels of {task!r}[{place}]: {entry!r:.40}; write a list of {count}, one label a row")
        flat += entry if count > 1 and isinstance(entry, list) else [entry]
    return flat


def values_of(answers: Sequence[ModelInferResponse], outputs: Sequence[str] = ()) -> list[Any]:
    """Return what models answer, row by row: numbers, texts, or lists where a row has several.

    Args:
        answers: answers of a model.
        outputs: names of outputs, of which the first is taken; by default the first of the answer.
    """
    values: list[Any] = []
    for answer in answers:
        tensors = tensors_of(answer)
        array = tensors[next(iter(outputs or tensors))]
        values += [_value(row.tolist()) if array.ndim > 1 else _value([row]) for row in array]
    return values


def _value(row: list[Any]) -> Any:
    elements = [_plain(element) for element in row]
    return elements[0] if len(elements) == 1 else elements


def _plain(element: Any) -> Any:
    if isinstance(element, bytes):
        try:
            return element.decode()
        except UnicodeDecodeError:
            return element
    return element.item() if hasattr(element, "item") else element


@dataclass(frozen=True)
class LabelledPipeline:
    """A pipeline with labelled samples.

    Attributes:
        stages: requests of its stages.
        labels: labels by task, one a row.
        metric: accuracy of answers.
    """

    stages: StageSamples
    labels: Labels
    metric: Metric

    @property
    def pipeline(self) -> PipelineFile:
        """The pipeline file."""
        return self.stages.pipeline

    def measure_variants(self) -> pd.DataFrame:
        """Measure every variant of the tasks that have labels, on answers of the most accurate variants before it.

        Returns:
            Columns ``task, variant, stated, measured``: the accuracy in the pipeline file, and the measured one.

        Raises:
            opd.serving.stage_samples.SampleError: if a variant fails on a sample.
            MetricError: if the metric fails.
        """
        rows = []
        for task in (each for each in self.pipeline.tasks if each.name in self.labels):
            requests = self.stages.of(task.name)
            for variant in task.variants:
                answers = answers_of(self.stages.store, task, variant, requests)
                measured = self.metric(self.labels[task.name], values_of(answers, self._outputs(task)))
                rows.append([task.name, variant.name, variant.accuracy.value, measured])
        return pd.DataFrame(rows, columns=["task", "variant", "stated", "measured"])

    def measure_configurations(self) -> pd.DataFrame:
        """Measure every choice of variants, end to end. Every variant is started once.

        Returns:
            A column a task with the variant's name, ``accuracy_sum`` (Eq. 1, of the accuracies in the pipeline file)
            and ``measured``.

        Raises:
            ValueError: if the last task has no labels.
            opd.serving.stage_samples.SampleError: if a variant fails on a sample.
            MetricError: if the metric fails.
        """
        first, last = self.pipeline.tasks[0], self.pipeline.tasks[-1]
        if last.name not in self.labels:
            raise ValueError(f"only {', '.join(self.labels)} has labels; end to end, those of {last.name!r} are needed")
        runs: list[tuple[list[VariantSection], list[ModelInferRequest]]] = [([], self.stages.of(first.name))]
        rows = []
        for task, following in zip(self.pipeline.tasks, [*self.pipeline.tasks[1:], None], strict=True):
            before, runs = runs, []
            for variant in task.variants:
                everything = [request for _, requests in before for request in requests]
                answers = iter(answers_of(self.stages.store, task, variant, everything))
                for chosen, requests in before:
                    own = [(next(answers), request) for request in requests]
                    if following is None:
                        rows.append(self._row([*chosen, variant], [answer for answer, _ in own]))
                        continue
                    adapted = [self.stages.adapted(following, next_request(*pair)) for pair in own]
                    runs.append(([*chosen, variant], adapted))
        names = [task.name for task in self.pipeline.tasks]
        return pd.DataFrame(rows, columns=[*names, "accuracy_sum", "measured"])

    def _row(self, chosen: Sequence[VariantSection], answers: Sequence[ModelInferResponse]) -> list[Any]:
        last = self.pipeline.tasks[-1]
        measured = self.metric(self.labels[last.name], values_of(answers, self._outputs(last)))
        return [*(variant.name for variant in chosen), sum(variant.accuracy.value for variant in chosen), measured]

    def _outputs(self, task: TaskSection) -> list[str]:
        """Return the outputs that the samples select, which are those of the last stage."""
        return [output.name for output in self.stages.outputs(task)]


def labelled_pipeline(source: str | Path) -> LabelledPipeline:
    """Open a pipeline with the labels and the metric that its file names; its models are in the project's store.

    Args:
        source: name, folder or file of the pipeline.

    Raises:
        DocumentError: if there are no labels, or they do not fit the samples.
        MetricError: if the metric cannot be imported.
    """
    path = pipeline_path(source)
    stages = load_stage_samples(path)
    labels = read_labels(stages.pipeline, path.parent, stages.samples)
    return LabelledPipeline(stages, labels, load_metric(str(stages.pipeline.metric)))


def order_note(table: pd.DataFrame) -> str:
    """Say in a sentence whether measured accuracy and the sum of Eq. 1 order the configurations alike.

    Args:
        table: result of :meth:`LabelledPipeline.measure_configurations`.
    """
    tasks = [column for column in table.columns if column not in ("accuracy_sum", "measured")]
    names = ["/".join(map(str, row)) for row in table[tasks].values.tolist()]
    found = list(zip(names, table["accuracy_sum"], table["measured"], strict=True))
    pairs = [sorted(pair, key=lambda each: -each[1]) for pair in combinations(found, 2) if pair[0][1] != pair[1][1]]
    differing = [(high, low) for high, low in pairs if high[2] < low[2]]
    if not differing:
        return "Measured accuracy and the sum of Eq. 1 order the configurations alike."
    high, low = max(differing, key=lambda pair: pair[1][2] - pair[0][2])
    return (
        f"Measured accuracy and the sum of Eq. 1 order {len(differing)} of {len(pairs)} pairs of configurations "
        f"differently: most of all {high[0]} (sum {high[1]:.3f}, measured {high[2]:.3f}) and {low[0]} "
        f"(sum {low[1]:.3f}, measured {low[2]:.3f})."
    )
