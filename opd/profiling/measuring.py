"""Measure how long calls of the variants take, in the columns of :mod:`opd.profiling.profiles`.

Measurements have to survive a machine that does other work at the same time. A call of a network with random weights
is therefore timed by the CPU time of the calling thread, which does not count while it is preempted. On one core that
is the whole inference. On more, the calling thread does all the serial work and its even share of the parallel work,
and sleeps (``OMP_WAIT_POLICY=PASSIVE``) while the others finish theirs; the time to wake them is not in the figure.
Other programs that use caches and memory can still slow a run but never speed it up, hence the mean of the faster half.
Variants of the model store are measured in wall-clock time as they are served, on an idle machine.
"""

from __future__ import annotations

import os
import pkgutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from opd.host.progress import progress_bar
from opd.pipeline import batch_sizes_up_to
from opd.profiling.catalogue import Catalogue, load_catalogue
from opd.profiling.profiles import COLUMNS, extrapolate_cores, load_profiles, save_profiles

MEASURED_CORES = (1, 2)
"""Core counts of the reference table that were measured; the others are extrapolated."""

LONG_CALL = 2.0
"""Seconds from which a first call counts as a run and not as a warm-up."""

LONG_CALL_RUNS = 3
"""Sufficient runs of such a call."""

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported, which measuring does


class Measurable(Protocol):
    """Something that can be measured for a variant: an architecture with random weights, or a model as it is served.

    The catalogue names it as ``architecture``: a key of :data:`opd.profiling.architectures.ARCHITECTURES`, or
    ``module:Class``, a class that is constructed with the names of the task and the variant.
    """

    @property
    def max_cores(self) -> int:
        """Cores that it can use."""

    @property
    def pause(self) -> float:
        """Seconds to sleep before each call."""

    def clock(self) -> float:
        """Seconds of the clock by which a call is timed."""

    def loaded(self, seed: int) -> AbstractContextManager[tuple[Any, float]]:
        """The model, and the seconds that loading it and answering once took."""

    def threads(self, count: int) -> AbstractContextManager[None]:
        """Use ``count`` threads within the block."""

    def inputs(self, batch_size: int) -> Any:
        """Inputs of calls with ``batch_size`` requests."""

    def infer(self, model: Any, inputs: Any) -> Any:
        """Make one call of the model."""


def resolve_architecture(architecture: str, task: str, variant: str) -> Measurable:
    """Resolve the ``architecture`` of a variant in the catalogue to something that can be measured.

    Args:
        architecture: a key of :data:`opd.profiling.architectures.ARCHITECTURES`, or ``module:Class``.
        task: name in the catalogue.
        variant: name in the catalogue.

    Raises:
        ImportError: if the class cannot be imported.
        KeyError: if there is no such key; it lists the keys.
    """
    if ":" in architecture:
        try:
            measurable = pkgutil.resolve_name(architecture)
        except (AttributeError, ImportError, ValueError) as error:
            raise ImportError(
                f"architecture {architecture!r} of variant {variant!r} of task {task!r} cannot be imported: {error}"
            ) from error
        return measurable(task, variant)
    from opd.profiling.architectures import ARCHITECTURES  # torch and transformers take seconds to import

    if architecture not in ARCHITECTURES:
        raise KeyError(
            f"unknown architecture {architecture!r}; opd.profiling.architectures has {', '.join(ARCHITECTURES)}, and a "
            "class of another module is written as module:Class"
        )
    return ARCHITECTURES[architecture]


def measured_cores(measurable: Measurable) -> tuple[int, ...]:
    """Core counts to measure on this machine: those of :data:`MEASURED_CORES` that it and the model can use."""
    return tuple(count for count in MEASURED_CORES if count <= min(os.cpu_count() or 1, measurable.max_cores))


@dataclass(frozen=True)
class Effort:
    """Time and runs spent on one cell: one core count and batch size.

    Attributes:
        seconds: budget, after which no further run starts once there are ``min_runs``.
        min_runs: runs at least, however long they take.
        max_runs: runs at most.
    """

    seconds: float = 2.0
    min_runs: int = 5
    max_runs: int = 20


# ------------------------------------------------------------------------------------------------ one variant


def time_calls(
    call: Callable[[], Any], effort: Effort, clock: Callable[[], float] = time.thread_time, pause: float = 0.0
) -> np.ndarray:
    """Time repeated calls, by default in CPU seconds of the calling thread.

    The first call is a warm-up and not counted, unless it takes :data:`LONG_CALL`: then the share of the warm-up is
    negligible, so it counts, and :data:`LONG_CALL_RUNS` are enough.

    Args:
        call: what to time.
        effort: budget and number of runs.
        clock: returns seconds.
        pause: seconds to sleep before each call.

    Returns:
        (runs,) seconds.
    """

    def run() -> float:
        time.sleep(pause)
        start = clock()
        call()
        return clock() - start

    deadline = time.perf_counter() + effort.seconds
    first = run()
    durations = [first] if first >= LONG_CALL else []
    needed = min(effort.min_runs, LONG_CALL_RUNS) if first >= LONG_CALL else effort.min_runs
    while len(durations) < needed or (len(durations) < effort.max_runs and time.perf_counter() < deadline):
        durations.append(run())
    return np.array(durations)


def measure_variant(
    task: str,
    variant: str,
    measurable: Measurable,
    batch_sizes: Sequence[int],
    cores: Sequence[int],
    effort: Effort = Effort(),
    *,
    seed: int = 0,
    progress: Any = None,
) -> pd.DataFrame:
    """Measure one variant at every core count and batch size.

    Args:
        task: name in the catalogue, for the table.
        variant: name in the catalogue, for the table.
        measurable: result of :func:`resolve_architecture`.
        batch_sizes: requests per call.
        cores: threads of the model, at most the machine's cores.
        effort: budget and number of runs of each cell.
        seed: of the random weights and inputs.
        progress: a progress bar that advances by one per cell.

    Returns:
        One row per cell, in the columns of :data:`COLUMNS`.

    Raises:
        ValueError: if the machine or the model has fewer cores.
    """
    available = os.cpu_count() or 1
    if max(cores) > available:
        raise ValueError(
            f"cannot measure on {max(cores)} cores: this machine has {available}; measure on fewer and extrapolate"
        )
    rows = []
    with measurable.loaded(seed) as (model, load_seconds):
        for count, batch_size in product(cores, batch_sizes):
            with measurable.threads(count):
                call = partial(measurable.infer, model, measurable.inputs(batch_size))
                seconds = time_calls(call, effort, measurable.clock, measurable.pause)
            faster_half = np.sort(seconds)[: (len(seconds) + 1) // 2]
            mean, p99 = float(faster_half.mean()), float(np.quantile(seconds, 0.99))
            rows.append([task, variant, count, batch_size, mean, p99, len(seconds), "measured", load_seconds])
            if progress is not None:
                progress.update()
    return pd.DataFrame(rows, columns=COLUMNS)


# ---------------------------------------------------------------------------------------------- many variants


def measure_all_variants(
    tasks: Sequence[str], catalogue: Catalogue, effort: Effort = Effort(), *, seed: int = 0, save: Path | None = None
) -> pd.DataFrame:
    """Measure every variant of some tasks and extrapolate to :data:`opd.profiling.profiles.CORE_COUNTS`.

    With all tasks of the catalogue and ``Effort(0.5, 3)`` this is how ``opd/examples/profiles.csv`` was made, the last
    three tasks by a second process on the other core.

    Args:
        tasks: names in the catalogue.
        catalogue: the catalogue.
        effort: budget and number of runs of each cell.
        seed: of the random weights and inputs.
        save: if given, the table is written there after every variant, with the hardware next to it as JSON.
    """
    jobs = [
        (task, name, resolve_architecture(entry.architecture, task, name))
        for task in tasks
        for name, entry in catalogue.tasks[task].variants.items()
    ]
    cells = sum(len(catalogue.batch_sizes(task)) * len(measured_cores(measurable)) for task, _, measurable in jobs)
    tables: list[pd.DataFrame] = []
    with progress_bar(total=cells, unit="cell", desc="profiling") as progress:
        for task, name, measurable in jobs:
            progress.set_postfix_str(f"{task} {name}")
            where = catalogue.batch_sizes(task), measured_cores(measurable)
            tables.append(measure_variant(task, name, measurable, *where, effort, seed=seed, progress=progress))
            if save is not None:
                save_profiles(extrapolate_cores(pd.concat(tables)), save)
    return extrapolate_cores(pd.concat(tables))


def measure_within_budget(
    name: str,
    seconds: float,
    *,
    max_batch_size: int | None = None,
    catalogue: Path | None = None,
    profiles: Path | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Measure as many variants of a pipeline as fit a time budget.

    The stages take turns, smallest variants first, so even a short budget covers every stage. The reference table
    predicts how long a variant will take; the first one is always measured.

    Args:
        name: pipeline in the catalogue.
        seconds: budget for all measurements.
        max_batch_size: largest batch size to measure; the pipeline's if not given.
        catalogue: the YAML file; the package's own if not given.
        profiles: the reference table; the package's own if not given.
        seed: of the random weights and inputs.

    Returns:
        The measured rows and, as ``task/variant``, the variants that did not fit.

    Raises:
        KeyError: if there is no such pipeline.
        ValueError: if the budget is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"profile_seconds is {seconds}, but must be positive; 120 measures most of a pipeline")
    content, reference = load_catalogue(catalogue), load_profiles(profiles)
    settings = content.pipeline(name)
    sizes = batch_sizes_up_to(min(max_batch_size or settings.max_batch_size, settings.max_batch_size))
    tables: list[pd.DataFrame] = []
    left_out: list[str] = []
    deadline = time.perf_counter() + seconds
    progress = progress_bar(_variants_in_turns(content, name), unit="variant", desc=f"profiling {name}")
    for task, variant in progress:
        progress.set_postfix_str(variant)
        measurable = resolve_architecture(content.tasks[task].variants[variant].architecture, task, variant)
        cores = measured_cores(measurable)
        expected = _expected_seconds(reference, task, variant, sizes, cores)
        if tables and expected > deadline - time.perf_counter():
            left_out.append(f"{task}/{variant}")
        else:
            effort = Effort(seconds / 100, min_runs=2)
            tables.append(measure_variant(task, variant, measurable, sizes, cores, effort, seed=seed))
    return pd.concat(tables, ignore_index=True), left_out


def _variants_in_turns(catalogue: Catalogue, pipeline: str) -> list[tuple[str, str]]:
    """List tasks and variants: the first variant of each stage, the second of each stage, and so on."""
    stages = [[(task, name) for name in catalogue.tasks[task].variants] for task in catalogue.pipeline(pipeline).tasks]
    return [variant for turn in zip_longest(*stages) for variant in turn if variant is not None]


def _expected_seconds(
    reference: pd.DataFrame, task: str, variant: str, sizes: Sequence[int], cores: Sequence[int]
) -> float:
    """Predict the seconds of measuring one variant with two runs per cell: warm-up, runs and loading."""
    rows = reference[(reference["task"] == task) & (reference["variant"] == variant)]
    cells = rows[rows["batch_size"].isin(sizes) & rows["cores"].isin(cores)]
    return 3.0 * float(cells["latency_mean"].sum()) + 2.0 * float(rows["load_seconds"].max())
