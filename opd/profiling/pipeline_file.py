"""Pipeline files: the schema of ``pipeline.yaml``, which describes a pipeline and what its users want of it.

Every pipeline is such a file, those that ship with the package included (``opd/examples/<name>/pipeline.yaml``);
``docs/pipeline-file.md`` explains it. Latencies and start-up times do not belong here: they are measured, and stand in
the profile beside the file (:mod:`opd.profiling.profiles`). :func:`opd.profiling.pipelines.load_pipeline` joins both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from opd.host.documents import DocumentModel, Location, read_as
from opd.host.paths import package_path, project_path
from opd.objective import Weights
from opd.pipeline import ServiceLevel
from opd.profiling.figures import Name, Seconds

FILE_NAME = "pipeline.yaml"
"""Name of the file in the folder of a pipeline."""

VERSION = 1
"""Version of the format. A file of another one is refused, because its keys may mean something else."""

STORE = "store"
"""Value of ``model`` for a variant that is in the model store already."""

RuntimeName = Literal["onnx", "sklearn", "xgboost", "lightgbm", "mlflow", "huggingface", "python"]
"""What can load and run a model."""


# ------------------------------------------------------------------------------------------------ kinds of values


def _check_inside(path: str) -> str:
    """Check that a path names something in the folder of its pipeline file."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if not parts or parts[0] in ("/", "~") or ".." in parts or "://" in path or "\0" in path:
        raise ValueError(
            f"{path[:80]!r} is not inside the folder of the pipeline file; copy it there and write its path within the "
            "folder, such as models/small.onnx"
        )
    return path


def _check_model(model: str) -> str:
    return model if is_reference(model) else _check_inside(model)


def _check_reference(text: str) -> str:
    if not is_reference(text):
        raise ValueError(f"{text[:80]!r} is not of the form module:name")
    return text


def is_reference(text: str) -> bool:
    """Tell whether a text has the form ``module:name`` of something that Python can import."""
    module, separator, name = text.partition(":")
    parts = [*module.split("."), *name.split(".")]
    return bool(separator) and all(part.isidentifier() for part in parts)


def _check_version(version: int) -> int:
    if version != VERSION:
        remedy = "install a newer opd" if version > VERSION else "leave it out"
        raise ValueError(f"{version} is not {VERSION}, the version of pipeline files that this opd reads; {remedy}")
    return version


def _check_power_of_two(size: int) -> int:
    if size & (size - 1):
        lower = 1 << (size.bit_length() - 1)
        raise ValueError(f"{size} is not a power of two; write {lower} or {2 * lower}")
    return size


def _spelled_out(accuracy: Any) -> Any:
    return accuracy if isinstance(accuracy, Mapping | AccuracySection) else {"value": accuracy}


def _no_percentage(accuracy: Any) -> Any:
    if isinstance(accuracy, int | float) and 1 < accuracy <= 100:
        raise ValueError(f"{accuracy} is not a fraction of 0..1; if it is a percentage, write {accuracy / 100:g}")
    return accuracy


Inside = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_inside)]
Reference = Annotated[str, Field(max_length=1000), AfterValidator(_check_reference)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0), BeforeValidator(_no_percentage)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
BatchSize = Annotated[int, Field(ge=1, le=1024), AfterValidator(_check_power_of_two)]


# --------------------------------------------------------------------------------------------------- the sections


class DeviceSection(DocumentModel):
    """The device that all replicas share."""

    cores: int = Field(ge=1, le=10_000)
    """CPU cores of the device, a whole number"""


class LimitsSection(DocumentModel):
    """Limits of what a configuration may choose for a task."""

    replicas: int = Field(ge=1, le=1000)
    """replicas that a task may have"""
    batch_size: BatchSize
    """requests that a call may serve, a power of two"""


class LatencySection(DocumentModel):
    """The latency that users ask for, end to end."""

    seconds: Seconds
    """seconds within which a request should be answered, such as 0.5 for 500 ms"""
    percentile: float = Field(default=95.0, ge=50.0, lt=100.0)
    """percent of the requests that should be answered in time, such as 95"""


class AccuracyObjectiveSection(DocumentModel):
    """The accuracy that users ask for, as the mean over the tasks."""

    floor: Fraction = 0.0
    """least mean accuracy, a fraction of 0..1"""
    weight: Weight = 0.0
    """cores that +1.00 of mean accuracy is worth"""


class WeightsSection(DocumentModel):
    """Weights of the paper's objective, :class:`opd.objective.Weights`; those left out have its defaults."""

    alpha: Weight = Weights.alpha
    """QoS per unit of summed accuracy"""
    beta: Weight = Weights.beta
    """QoS per request/s of throughput"""
    gamma: Weight = Weights.gamma
    """QoS lost per request/s of unmet demand"""
    delta: Weight = Weights.delta
    """QoS lost per request/s of spare capacity"""
    cost_weight: Weight = Weights.cost_weight
    """reward lost per core"""
    batch_weight: Weight = Weights.batch_weight
    """reward lost per request of the largest batch size"""


class ObjectiveSection(DocumentModel):
    """What users want: a service level, or the paper's objective where weights are given."""

    latency: LatencySection
    """latency that users ask for; a constraint of IPA also where weights are given"""
    accuracy: AccuracyObjectiveSection = AccuracyObjectiveSection()
    """accuracy that users ask for"""
    cores: int | None = Field(default=None, ge=1, le=10_000)
    """budget of cores for all replicas; the cores of the device if left out"""
    weights: WeightsSection | None = None
    """weights of the paper's objective, {} for their defaults; a service level is the objective if left out"""


class AccuracySection(DocumentModel):
    """Accuracy of a variant, and where it comes from."""

    value: Fraction
    """accuracy as a fraction of 0..1, such as 0.83 for 83 %"""
    metric: str | None = Field(default=None, max_length=1000)
    """what the accuracy is, if it differs from the metric of the task"""
    source: str | None = Field(default=None, max_length=1000)
    """where the accuracy was published or how it was measured"""


class VariantSection(DocumentModel):
    """A model that can serve a task."""

    name: Name
    """name of the variant, unique within its task: letters, digits, '.', '_' and '-'"""
    model: Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_check_model)] | None = None
    """a file or folder beside the pipeline file, module:Class, or store for a variant in the model store"""
    runtime: RuntimeName | None = None
    """what runs the model; inferred from the model if left out"""
    architecture: str | None = Field(default=None, min_length=1, max_length=1000)
    """in place of a model: a network of opd.profiling.architectures with random weights, to measure but not to serve"""
    settings: dict[str, Any] = {}
    """settings of the runtime or class"""
    checkpoint: str | None = Field(default=None, max_length=1000)
    """published model that the accuracy belongs to"""
    accuracy: Annotated[
        AccuracySection, BeforeValidator(_spelled_out, json_schema_input_type=Fraction | "AccuracySection")
    ]
    """accuracy as a fraction of 0..1, or a mapping of value, metric and source"""
    cores: int = Field(ge=1, le=256)
    """CPU cores of one replica, a whole number"""

    @classmethod
    def conflicts(cls, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
        """A variant has a model or an architecture, and an architecture no runtime."""
        given = [key for key in ("model", "architecture") if content.get(key) is not None]
        if not given:
            yield (), f"the variant {content.get('name')!r:.80} has neither model nor architecture; give one of them"
        if len(given) > 1:
            yield ("architecture",), "there is a model, too; give one of them"
        if "architecture" in given and content.get("runtime") is not None:
            yield ("runtime",), "an architecture needs no runtime; leave it out"


class AdapterSection(DocumentModel):
    """What turns the outputs of a stage into the inputs of the next one."""

    pick: list[str] | None = Field(default=None, min_length=1)
    """names of the outputs to pass on; the others are left out"""
    rename: dict[str, str] | None = Field(default=None, min_length=1)
    """new names by old ones, after picking"""
    function: Reference | None = None
    """module:function, from the outputs of a stage to the inputs of the next one"""

    @classmethod
    def conflicts(cls, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
        """A function does everything itself."""
        given = {key for key in ("pick", "rename", "function") if content.get(key) is not None}
        if not given:
            yield (), "the adapter does nothing; give pick, rename, or module:function, or leave it out"
        if "function" in given and len(given) > 1:
            yield ("function",), "a function cannot be combined with pick or rename"


def _named_function(adapter: Any) -> Any:
    return {"function": adapter} if isinstance(adapter, str) else adapter


class TaskSection(DocumentModel):
    """A stage of the pipeline."""

    name: Name
    """name of the task, unique within the pipeline: letters, digits, '.', '_' and '-'"""
    metric: str | None = Field(default=None, max_length=1000)
    """what the accuracy of its variants is"""
    adapter: Annotated[
        AdapterSection | None, BeforeValidator(_named_function, json_schema_input_type=str | AdapterSection | None)
    ] = None
    """how the outputs of the stage before become its inputs: module:function, or a mapping of pick and rename"""
    variants: list[VariantSection] = Field(min_length=1, max_length=100)
    """models that can serve the task"""

    @classmethod
    def conflicts(cls, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
        """Variants of a task have different names."""
        return _repeated_names("variants", content)

    @property
    def adapter_steps(self) -> dict[str, Any] | None:
        """Steps of the adapter as plain data, by the keys of the file; None without an adapter."""
        return None if self.adapter is None else self.adapter.model_dump(exclude_none=True)


class PipelineFile(DocumentModel):
    """A pipeline file as a whole."""

    name: Name
    """name of the pipeline: letters, digits, '.', '_' and '-'"""
    description: str | None = Field(default=None, max_length=10_000)
    """what the pipeline is for"""
    device: DeviceSection
    """the device that all replicas share"""
    limits: LimitsSection
    """limits of what a configuration may choose for a task"""
    objective: ObjectiveSection
    """what users want of the pipeline"""
    samples: Inside | None = None
    """file of requests to measure, check and load with, beside the pipeline file: JSON, or Parquet with bytes"""
    labels: Inside | None = None
    """JSON file of one label a request, to measure accuracy with metric"""
    metric: Reference | None = None
    """module:function from labels and answers to an accuracy, such as sklearn.metrics:accuracy_score"""
    tasks: list[TaskSection] = Field(min_length=1, max_length=100)
    """stages in the order in which a request visits them"""
    version: Annotated[int, AfterValidator(_check_version)] = VERSION
    """version of the format of this file"""

    @classmethod
    def conflicts(cls, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
        """Tasks have different names; labels need samples and a metric."""
        yield from _repeated_names("tasks", content)
        given = {key for key in ("samples", "labels", "metric") if content.get(key) is not None}
        for key, other in (("labels", "samples"), ("labels", "metric"), ("metric", "labels")):
            if key in given and other not in given:
                yield (key,), f"{key} cannot be used without {other}; give both"

    @model_validator(mode="after")
    def _check_cores(self) -> PipelineFile:
        least = sum(min(variant.cores for variant in task.variants) for task in self.tasks)
        if least > self.capacity:
            place = "objective.cores" if self.capacity == self.objective.cores else "device.cores"
            raise ValueError(
                f"{place} is {self.capacity}, too small for any configuration: one replica of the smallest variant of "
                f"every task needs {least}; raise it, or add smaller variants"
            )
        return self

    @property
    def capacity(self) -> int:
        """Cores that all replicas may use: those of the device, or the budget of the objective if that is less."""
        return min(self.device.cores, self.objective.cores or self.device.cores)

    @property
    def service_level(self) -> ServiceLevel:
        """Latency and accuracy that users ask for."""
        latency, accuracy = self.objective.latency, self.objective.accuracy
        return ServiceLevel(latency.seconds, latency.percentile, accuracy.floor, accuracy.weight)

    @property
    def weights(self) -> Weights | None:
        """Weights of the paper's objective; None where the service level is the objective."""
        given = self.objective.weights
        return None if given is None else Weights(**given.model_dump())


def _repeated_names(key: str, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
    """Find the entries of a list whose name an earlier entry has."""
    entries = content.get(key)
    seen = set()
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        if isinstance(name, str):
            if name in seen:
                yield (key, number, "name"), f"the name {name!r:.80} is taken by an earlier entry; give another one"
            seen.add(name)


def json_schema() -> str:
    """JSON Schema of pipeline files for editors: the content of ``pipeline.schema.json`` beside this module."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **PipelineFile.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


# --------------------------------------------------------------------------------------------------- finding files


def shipped_pipelines() -> list[str]:
    """Names of the pipelines that ship with the package."""
    return sorted(path.parent.name for path in package_path("examples").glob(f"*/{FILE_NAME}"))


def pipeline_path(source: str | Path) -> Path:
    """Find the file of a pipeline.

    Args:
        source: name of a pipeline that ships with the package, the folder of a pipeline, or its YAML file. A path that
            is given as text is relative to the project (:func:`opd.host.paths.project_path`).

    Raises:
        FileNotFoundError: if there is no such pipeline; it lists those that ship with the package.
    """
    shipped = shipped_pipelines()
    if source in shipped:
        return package_path("examples", str(source), FILE_NAME)
    path = project_path(source) if isinstance(source, str) else source
    file = path / FILE_NAME if path.is_dir() else path
    # An error must not show the content of any other file.
    if not file.is_file() or file.suffix not in (".yaml", ".yml"):
        raise FileNotFoundError(
            f"there is no pipeline {str(source)!r:.200}: it is neither a YAML file, nor a folder with {FILE_NAME}, nor "
            f"one of the pipelines that ship with the package: {', '.join(shipped)}"
        )
    return file


def read_pipeline_file(source: str | Path) -> PipelineFile:
    """Read the file of a pipeline.

    Args:
        source: as for :func:`pipeline_path`.

    Raises:
        FileNotFoundError: if there is no such pipeline.
        DocumentError: if the file is not a plain YAML document of limited size, or not a pipeline file; it lists all
            problems.
    """
    return read_as(PipelineFile, pipeline_path(source))
