"""Pipelines, their tasks and variants, and the configurations that a pipeline can run (Sec. III-B).

A :class:`Pipeline` is a chain of :class:`Task`, and each task can run one of several :class:`Variant`. A
:class:`Configuration` picks the variant, the replicas and the batch size of every task: the action of Eq. 6. It is a
tuple where people read it and an (N, 3) integer array where it is computed with; all conversions are here. Pipelines
are immutable, and :attr:`Pipeline.tables` holds the same data as dense arrays for compiled code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


class InfeasibleError(ValueError):
    """A configuration violates a limit of Eq. 4, or no configuration can keep them all."""


@dataclass(frozen=True)
class Variant:
    """One model that can serve a task.

    Attributes:
        name: identifier, unique within its task.
        accuracy: v_n(z), published quality as a fraction 0..1 (Eq. 1).
        cores: CPU cores of one replica: on a CPU-only device both its cost c_n(z) (Eq. 2) and the resource w_n(z) that
            it occupies (Eq. 4).
        latency: mean seconds of one inference call by batch size (requests per call).
        startup_time: seconds from ordering a replica until it serves.
        assumed: True if somebody typed latency or start-up time instead of measuring them.

    Raises:
        ValueError: if a figure is out of range.
    """

    name: str
    accuracy: float
    cores: int
    latency: Mapping[int, float]
    startup_time: float
    assumed: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.accuracy <= 1.0:
            raise ValueError(f"variant {self.name!r}: accuracy {self.accuracy} is not a fraction between 0 and 1")
        if self.cores < 1:
            raise ValueError(f"variant {self.name!r}: {self.cores} cores per replica, but at least 1 is needed")
        if not 0.0 <= self.startup_time < np.inf:
            raise ValueError(f"variant {self.name!r}: start-up time {self.startup_time} s must be finite, at least 0")
        if not self.latency:
            raise ValueError(f"variant {self.name!r} has no latency profile; measure it with `opd profile`")
        for batch_size, seconds in self.latency.items():
            if not (seconds > 0.0 and np.isfinite(seconds)):
                raise ValueError(f"variant {self.name!r}: latency {seconds} s at batch {batch_size} must be positive")

    def service_time(self, batch_size: int) -> float:
        """Seconds of one call with ``batch_size`` requests, interpolated linearly between profiled sizes.

        Raises:
            ValueError: if ``batch_size`` lies outside the profile.
        """
        sizes = sorted(self.latency)
        if not sizes[0] <= batch_size <= sizes[-1]:
            raise ValueError(
                f"variant {self.name!r} has no profile for batch {batch_size} (profiled: {sizes}); "
                "measure this batch size with `opd profile` or lower max_batch_size"
            )
        return float(np.interp(batch_size, sizes, [self.latency[size] for size in sizes]))

    def throughput(self, batch_size: int) -> float:
        """Requests/s of one replica that always finds a full batch."""
        return batch_size / self.service_time(batch_size)


@dataclass(frozen=True)
class Task:
    """One stage n of a pipeline.

    Attributes:
        name: identifier, unique within the pipeline.
        variants: that can serve it, in the order of the pipeline file.
        adapter: how served outputs of the task before become its inputs, see :mod:`opd.serving.adapters`; nothing else
            depends on it.

    Raises:
        ValueError: if there is no variant, or two have the same name.
    """

    name: str
    variants: tuple[Variant, ...]
    adapter: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError(f"task {self.name!r} has no variant")
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError(f"task {self.name!r} has two variants of the same name: {names}")

    def variant_index(self, name: str) -> int:
        """Position of the variant named ``name``.

        Raises:
            KeyError: naming the variants there are.
        """
        for index, variant in enumerate(self.variants):
            if variant.name == name:
                return index
        known = ", ".join(variant.name for variant in self.variants)
        raise KeyError(f"task {self.name!r} has no variant {name!r}; it has {known}")


class StageConfiguration(NamedTuple):
    """Configuration of one task, a triple of Eq. 6: index of the variant, replicas f_n, batch size b_n."""

    variant: int
    replicas: int
    batch_size: int


Configuration = tuple[StageConfiguration, ...]
"""One :class:`StageConfiguration` for every task, in pipeline order."""


def as_array(configuration: Configuration) -> np.ndarray:
    """Convert a configuration to (N, 3) integers: variant, replicas and batch size of every task."""
    return np.array(configuration, dtype=np.int64)


def as_configuration(rows: np.ndarray) -> Configuration:
    """Convert an (N, 3) integer array to a configuration; the inverse of :func:`as_array`."""
    return tuple(StageConfiguration(*row) for row in rows.tolist())


def to_choices(configurations: np.ndarray) -> np.ndarray:
    """Convert configurations to the indices a policy network chooses from: variant, replicas - 1, log2 of batch size.

    Args:
        configurations: (..., N, 3) variant, replicas and batch size.

    Returns:
        (..., N, 3) indices, each from 0.
    """
    choices = np.array(configurations)
    choices[..., 1] -= 1
    choices[..., 2] = np.log2(choices[..., 2])
    return choices


def from_choices(choices: np.ndarray) -> np.ndarray:
    """Convert (..., N, 3) indices to configurations of the same shape; the inverse of :func:`to_choices`."""
    configurations = np.array(choices)
    configurations[..., 1] += 1
    configurations[..., 2] = 1 << configurations[..., 2]
    return configurations


def batch_sizes_up_to(largest: int) -> tuple[int, ...]:
    """Powers of two up to ``largest``: 1, 2, 4 .."""
    return tuple(1 << power for power in range(largest.bit_length()))


def configuration_text(pipeline: Pipeline, configuration: Configuration) -> str:
    """A configuration in words: ``detection 2 x small batch 4, recognition 1 x tiny batch 1``."""
    chosen = zip(pipeline.tasks, pipeline.selected(configuration), strict=True)
    return ", ".join(f"{task.name} {s.replicas} x {variant.name} batch {s.batch_size}" for task, (variant, s) in chosen)


class Tables(NamedTuple):
    """A pipeline as dense arrays; N tasks, Z the largest number of variants, K batch sizes.

    Tasks with fewer than Z variants are padded with variants of infinite cores and service time, which can never be
    selected.

    Attributes:
        accuracy: (N, Z) fraction.
        cores: (N, Z) cores of one replica.
        startup_time: (N, Z) seconds.
        batch_sizes: (K,) allowed batch sizes, powers of two.
        service_time: (N, Z, max_batch_size + 1) seconds for a batch of 0..max_batch_size requests.
        variant_counts: (N,) number of variants of each task.
    """

    accuracy: np.ndarray
    cores: np.ndarray
    startup_time: np.ndarray
    batch_sizes: np.ndarray
    service_time: np.ndarray
    variant_counts: np.ndarray


@dataclass(frozen=True)
class ServiceLevel:
    """What the users of a pipeline ask of it: a latency that a share of the requests keeps, and accurate answers.

    Attributes:
        seconds: end-to-end latency target.
        percentile: percent of the requests that must be answered within ``seconds``, above 0 and below 100.
        accuracy_floor: smallest accuracy, mean over the tasks, as a fraction 0..1; 0 for none.
        accuracy_weight: cores that +1.00 of mean accuracy is worth; 0 if only the floor counts.

    Raises:
        ValueError: if a figure is out of range.
    """

    seconds: float
    percentile: float = 95.0
    accuracy_floor: float = 0.0
    accuracy_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds < np.inf:
            raise ValueError(f"service level: latency {self.seconds} s must be finite, above 0")
        if not 0.0 < self.percentile < 100.0:
            raise ValueError(f"service level: percentile {self.percentile} must be above 0 and below 100, such as 95")
        if not 0.0 <= self.accuracy_floor <= 1.0:
            raise ValueError(f"service level: accuracy floor {self.accuracy_floor} is not a fraction between 0 and 1")
        if not 0.0 <= self.accuracy_weight < np.inf:
            raise ValueError(f"service level: accuracy weight {self.accuracy_weight} must be finite, at least 0")

    def stated(self, within: float) -> str:
        """State a share of requests beside the level: ``97.2% within 0.5 s, objective 95%``; NaN is unknown."""
        share = "unknown share" if np.isnan(within) else f"{within:.1%}"
        return f"{share} within {self.seconds:g} s, objective {self.percentile:g}%"


@dataclass(frozen=True)
class Pipeline:
    """A linear chain of tasks on a device, with the limits of Eq. 4.

    Attributes:
        name: identifier of the pipeline.
        tasks: the stages, in the order in which a request visits them.
        capacity: W_max, CPU cores of the device.
        max_replicas: F_max, replicas that each task may have.
        max_batch_size: B_max, a power of two; batch sizes are the powers of two up to it.
        service_level: latency and accuracy asked of it; IPA's latency constraint is its ``seconds``.

    Raises:
        InfeasibleError: if not even the smallest configuration fits ``capacity``.
        ValueError: if a limit is out of range or a profile lacks a batch size.
    """

    name: str
    tasks: tuple[Task, ...]
    capacity: int
    max_replicas: int
    max_batch_size: int
    service_level: ServiceLevel

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError(f"pipeline {self.name!r} has no task")
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"pipeline {self.name!r} has two tasks of the same name: {names}")
        if self.max_replicas < 1:
            raise ValueError(f"pipeline {self.name!r}: max_replicas is {self.max_replicas}, but must be at least 1")
        if self.max_batch_size < 1 or self.max_batch_size & (self.max_batch_size - 1):
            raise ValueError(
                f"pipeline {self.name!r}: max_batch_size {self.max_batch_size} is not a power of two of at least 1"
            )
        for task in self.tasks:
            for variant in task.variants:
                for batch_size in self.batch_sizes:
                    variant.service_time(batch_size)  # raises if the profile lacks it
        smallest = sum(min(variant.cores for variant in task.variants) for task in self.tasks)
        if smallest > self.capacity:
            raise InfeasibleError(
                f"pipeline {self.name!r}: capacity {self.capacity} cores is too small for any configuration; "
                f"the smallest needs {smallest} cores. Raise capacity or add smaller variants"
            )

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Allowed batch sizes: 1, 2, 4 .. ``max_batch_size``."""
        return batch_sizes_up_to(self.max_batch_size)

    @property
    def assumed_variants(self) -> list[str]:
        """Variants whose profile somebody typed, as ``task/variant``."""
        return [f"{task.name}/{each.name}" for task in self.tasks for each in task.variants if each.assumed]

    @property
    def assumed_note(self) -> str:
        """The same in words; empty if all profiles were measured."""
        return f"assumed, not measured: {', '.join(self.assumed_variants)}" if self.assumed_variants else ""

    @cached_property
    def tables(self) -> Tables:
        """The pipeline as dense arrays for compiled code."""
        shape = (len(self.tasks), max(len(task.variants) for task in self.tasks))
        accuracy = np.zeros(shape)
        cores = np.full(shape, np.inf)
        startup_time = np.full(shape, np.inf)
        service_time = np.full((*shape, self.max_batch_size + 1), np.inf)
        for n, task in enumerate(self.tasks):
            for z, variant in enumerate(task.variants):
                accuracy[n, z] = variant.accuracy
                cores[n, z] = variant.cores
                startup_time[n, z] = variant.startup_time
                service_time[n, z, 0] = 0.0
                service_time[n, z, 1:] = [variant.service_time(size + 1) for size in range(self.max_batch_size)]
        variant_counts = np.array([len(task.variants) for task in self.tasks], dtype=np.int64)
        return Tables(accuracy, cores, startup_time, np.array(self.batch_sizes), service_time, variant_counts)

    def smallest_configuration(self) -> Configuration:
        """One replica of the variant with the fewest cores for every task, batch size 1."""
        return tuple(
            StageConfiguration(min(range(len(task.variants)), key=lambda z: task.variants[z].cores), 1, 1)
            for task in self.tasks
        )

    @property
    def smallest_cores(self) -> int:
        """Cores of :meth:`smallest_configuration`, which are whole."""
        return int(used_cores(self, self.smallest_configuration()))

    def selected(self, configuration: Configuration) -> Iterator[tuple[Variant, StageConfiguration]]:
        """Iterate over the tasks: the variant that ``configuration`` selects, and the stage configuration."""
        for task, stage in zip(self.tasks, configuration, strict=True):
            yield task.variants[stage.variant], stage


def stage_cores(pipeline: Pipeline, configurations: Configuration | np.ndarray) -> np.ndarray:
    """Cores of all replicas of every task, w_n(z) f_n.

    Args:
        pipeline: the pipeline.
        configurations: one configuration, or an integer array (..., N, 3) of them.

    Returns:
        (..., N) cores.
    """
    chosen = np.asarray(configurations)
    return chosen[..., 1] * pipeline.tables.cores[np.arange(len(pipeline.tasks)), chosen[..., 0]]


def used_cores(pipeline: Pipeline, configurations: Configuration | np.ndarray) -> np.ndarray:
    """Cores of all replicas: the cost C of Eq. 2, which on a CPU-only device is what Eq. 4 limits to the capacity.

    Args:
        pipeline: the pipeline.
        configurations: one configuration, or an integer array (..., N, 3) of them.

    Returns:
        (...) cores; a scalar for one configuration.
    """
    return np.sum(stage_cores(pipeline, configurations), axis=-1)


def check_stage(pipeline: Pipeline, task: Task, stage: StageConfiguration) -> None:
    """Check that the configuration of one task keeps the limits of a stage.

    Raises:
        InfeasibleError: naming the task, the value and the limit.
    """
    if not all(isinstance(value, (int, np.integer)) for value in stage):
        raise InfeasibleError(
            f"task {task.name!r}: variant, replicas and batch size {tuple(stage)} are not whole numbers"
        )
    if not 0 <= stage.variant < len(task.variants):
        raise InfeasibleError(
            f"task {task.name!r}: variant index {stage.variant} is not within 0..{len(task.variants) - 1}"
        )
    if not 1 <= stage.replicas <= pipeline.max_replicas:
        raise InfeasibleError(
            f"task {task.name!r}: {stage.replicas} replicas are not within 1..{pipeline.max_replicas}"
        )
    if stage.batch_size not in pipeline.batch_sizes:
        raise InfeasibleError(f"task {task.name!r}: batch size {stage.batch_size} is not one of {pipeline.batch_sizes}")


def check_feasible(pipeline: Pipeline, configuration: Configuration) -> None:
    """Check that ``configuration`` keeps every limit of Eq. 4.

    Raises:
        InfeasibleError: naming the task, the value and the limit.
    """
    if len(configuration) != len(pipeline.tasks):
        raise InfeasibleError(
            f"pipeline {pipeline.name!r} has {len(pipeline.tasks)} tasks, the configuration {len(configuration)}"
        )
    for task, stage in zip(pipeline.tasks, configuration, strict=True):
        check_stage(pipeline, task, stage)
    cores = used_cores(pipeline, configuration)
    if cores > pipeline.capacity:
        raise InfeasibleError(
            f"pipeline {pipeline.name!r}: the configuration needs {cores:g} cores, the device has {pipeline.capacity}"
        )
