"""How fast the variants are: measuring them, and the catalogue's pipelines with what was measured.

``opd/examples/pipelines.yaml`` says which variants there are and how accurate, ``profiles.csv`` how long they
take. One row of a profile is one variant at one core count and batch size:

==============  ============================================================================================
column          meaning
==============  ============================================================================================
task, variant   names in the catalogue
cores           cores of the replica; torch uses as many threads, a stored model is measured on one
batch_size      requests in the call
latency_mean    seconds for one call: mean of the faster half of the runs, warm-up excluded
latency_p99     99th percentile of all runs, seconds
runs            runs behind the figures; 0 where extrapolated
kind            ``measured``, or ``extrapolated`` by Amdahl's law to more cores than the machine has
load_seconds    from the weights on disk to the first answer; one figure a variant
==============  ============================================================================================

Measurements are meant to survive a machine that does other work at the same time: a run is timed by the CPU
time of the calling thread, so that being preempted does not count. On one core that is the whole inference. On
more, the calling thread does all the serial work and its even share of the parallel work, and waits asleep
(``OMP_WAIT_POLICY=PASSIVE``) while the others finish theirs; what it takes to wake them is not in the figure.
Others' use of caches and memory still slows a run, and only ever slows it, hence the faster half. Variants of the
model store are measured as they are served (:mod:`opd.examples.ocr.stored`), in wall-clock time, on an idle machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.optimize import isotonic_regression, nnls
from tqdm.auto import tqdm

from opd.machine import hardware
from opd.paths import package_path
from opd.pipeline import Pipeline, Task, Variant

CORE_COUNTS = (1, 2, 4, 8, 16)
"""Cores a replica may be given."""

MEASURED_CORES = (1, 2)
"""Core counts of the reference table that were measured; the others are extrapolated."""

STORED = "store:"
"""What the architecture of a variant begins with that is loaded from the model store: ``store:task/variant``."""

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported, which measuring does

SLA_FACTOR = 5.0
"""A stage may take this many times the mean batch-1 latency of its variants (Swayam's heuristic, as in IPA)."""

LONG_CALL = 2.0
"""Seconds from which a call is not repeated just to warm up."""

COLUMNS = ["task", "variant", "cores", "batch_size", "latency_mean", "latency_p99", "runs", "kind", "load_seconds"]


def load_catalogue(catalogue: Path | None = None) -> dict[str, Any]:
    """The catalogue as nested dictionaries: ``container_startup``, ``tasks`` and ``pipelines``.

    Args:
        catalogue: the YAML file; the package's own if not given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a catalogue.
    """
    path = catalogue if catalogue is not None else package_path("examples", "pipelines.yaml")
    if not path.is_file():
        raise FileNotFoundError(f"no catalogue at {path}; leave it out for the package's own")
    content = yaml.safe_load(path.read_text())
    missing = {"container_startup", "tasks", "pipelines"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(f"{path} is not a catalogue: it lacks {', '.join(sorted(missing))}")
    return content


def load_profiles(profiles: Path | None = None) -> pd.DataFrame:
    """A profile table, as described at the top of this module.

    Args:
        profiles: the CSV file; the package's own if not given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if columns are missing.
    """
    path = profiles if profiles is not None else package_path("examples", "profiles.csv")
    if not path.is_file():
        raise FileNotFoundError(f"no latency profiles at {path}; measure them with notebook 01_profiling")
    table = pd.read_csv(path)
    missing = set(COLUMNS) - set(table.columns)
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}; measure it anew with 01_profiling")
    return table[COLUMNS]


def pipeline_settings(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of one pipeline of a catalogue.

    Raises:
        KeyError: naming the pipelines there are.
    """
    if name not in content["pipelines"]:
        raise KeyError(f"the catalogue has no pipeline {name!r}; it has {', '.join(content['pipelines'])}")
    return dict(content["pipelines"][name])


def batch_sizes_of(content: Mapping[str, Any], task: str) -> list[int]:
    """Batch sizes to profile for ``task``: powers of two up to the largest any pipeline allows it."""
    largest = max(p["max_batch_size"] for p in content["pipelines"].values() if task in p["tasks"])
    return [1 << power for power in range(int(largest).bit_length())]


# ---------------------------------------------------------------------------------------------- measuring


def _architecture(key: str) -> Any:
    """What is measured: an :class:`~opd.profiling.architectures.Architecture`, or a variant as it is served.

    Imported here because only measuring should cost the seconds that their packages take.
    """
    if key.startswith(STORED):
        from opd.examples.ocr.stored import StoredVariant

        return StoredVariant(*key.removeprefix(STORED).split("/"))
    from opd.profiling.architectures import ARCHITECTURES

    if key not in ARCHITECTURES:
        raise KeyError(f"unknown architecture {key!r}; opd.profiling.architectures has {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[key]


def measured_cores(architecture: str) -> tuple[int, ...]:
    """Core counts that a variant is measured at here: a stored model runs on a single thread."""
    return (1,) if architecture.startswith(STORED) else tuple(c for c in MEASURED_CORES if c <= (os.cpu_count() or 1))


def time_calls(
    call: Callable[[], Any],
    budget: float,
    min_runs: int,
    max_runs: int,
    clock: Callable[[], float] = time.thread_time,
    pause: float = 0.0,
) -> np.ndarray:
    """Seconds of one call, by default CPU seconds of the calling thread.

    The first call is a warm-up and not counted, unless it takes :data:`LONG_CALL`, when what a warm-up sets up
    no longer shows: then it counts, and three runs are enough.

    Args:
        call: what to time.
        budget: seconds after which no further run is started, once there are ``min_runs``.
        min_runs: runs at least, whatever they take.
        max_runs: runs at most.
        clock: what tells the seconds.
        pause: seconds to sleep before each call.

    Returns:
        (runs,) seconds.
    """

    def run() -> float:
        time.sleep(pause)
        start = clock()
        call()
        return clock() - start

    deadline = time.perf_counter() + budget
    first = run()
    durations = [first] if first >= LONG_CALL else []
    needed = min(min_runs, 3) if first >= LONG_CALL else min_runs
    while len(durations) < needed or (len(durations) < max_runs and time.perf_counter() < deadline):
        durations.append(run())
    return np.array(durations)


def measure(
    task: str,
    variant: str,
    batch_sizes: Sequence[int],
    cores: Sequence[int] = MEASURED_CORES,
    *,
    architecture: str,
    cell_seconds: float = 2.0,
    min_runs: int = 5,
    max_runs: int = 20,
    seed: int = 0,
    progress: Any = None,
) -> pd.DataFrame:
    """Measure one variant at every core count and batch size.

    Args:
        task: name in the catalogue, for the table.
        variant: name in the catalogue, for the table.
        batch_sizes: requests per call.
        cores: threads of the model; at most the machine's cores.
        architecture: key of :data:`opd.profiling.architectures.ARCHITECTURES`, or ``store:task/variant``.
        cell_seconds: budget of one cell (core count and batch size); ``min_runs`` has precedence.
        min_runs: runs per cell at least.
        max_runs: runs per cell at most.
        seed: of the random weights and inputs.
        progress: a tqdm bar that is advanced by one per cell.

    Returns:
        One row per cell, in the columns of :data:`COLUMNS`.

    Raises:
        ValueError: if more cores are asked for than there are.
    """
    available = os.cpu_count() or 1
    if max(cores) > available:
        raise ValueError(f"cannot measure on {max(cores)} cores: this machine has {available}; see extrapolate()")
    network = _architecture(architecture)
    runs = cell_seconds, min_runs, max_runs, network.clock, network.pause
    rows = []
    with network.loaded(seed) as (model, load_seconds):
        for count, batch_size in product(cores, batch_sizes):
            with network.threads(count):
                seconds = time_calls(partial(network.infer, model, network.inputs(batch_size)), *runs)
            faster_half = np.sort(seconds)[: (len(seconds) + 1) // 2]
            mean, p99 = float(faster_half.mean()), float(np.quantile(seconds, 0.99))
            rows.append([task, variant, count, batch_size, mean, p99, len(seconds), "measured", load_seconds])
            if progress is not None:
                progress.update()
    return pd.DataFrame(rows, columns=COLUMNS)


def amdahl(cores: Sequence[float], latency: Sequence[float]) -> tuple[float, float]:
    """Serial and parallel seconds of Amdahl's law, latency = serial + parallel / cores.

    Least squares with neither part negative: two core counts determine the law, more are averaged.
    """
    design = np.column_stack([np.ones(len(cores)), 1.0 / np.asarray(cores, dtype=float)])
    (serial, parallel), _ = nnls(design, np.asarray(latency, dtype=float))
    return float(serial), float(parallel)


def extrapolate(measured: pd.DataFrame, core_counts: Sequence[int] = CORE_COUNTS) -> pd.DataFrame:
    """Add rows for core counts that were not measured, by Amdahl's law for each variant and batch size.

    The 99th percentile keeps its ratio to the mean at the largest measured core count. What was measured at a single
    core count stays as it is: it does not say how much of the work is parallel.

    Returns:
        The measured rows and, marked ``extrapolated`` and with 0 runs, the others.
    """
    rows = []
    for (task, variant, batch_size), group in measured.groupby(["task", "variant", "batch_size"], sort=False):
        if group["cores"].nunique() == 1:
            continue
        serial, parallel = amdahl(group["cores"].tolist(), group["latency_mean"].tolist())
        largest = group.sort_values("cores").iloc[-1]
        tail = largest["latency_p99"] / largest["latency_mean"]
        for count in sorted(set(core_counts) - set(group["cores"])):
            mean = serial + parallel / count
            row = [task, variant, count, batch_size, mean, mean * tail, 0, "extrapolated", largest["load_seconds"]]
            rows.append(row)
    table = pd.concat([measured, pd.DataFrame(rows, columns=COLUMNS)]) if rows else measured
    order = {name: index for index, name in enumerate(dict.fromkeys(measured["variant"]))}
    table = table.assign(order=table["variant"].map(order)).sort_values(["order", "cores", "batch_size"])
    return table.drop(columns="order").reset_index(drop=True)


def measure_tasks(
    tasks: Sequence[str],
    content: Mapping[str, Any],
    *,
    save: Path | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Measure every variant of ``tasks`` and extrapolate to :data:`CORE_COUNTS`.

    With all tasks of the catalogue, ``cell_seconds=0.5`` and ``min_runs=3`` this is how
    ``opd/examples/profiles.csv`` was made, the last three tasks by a second process on the other core.

    Args:
        tasks: names in the catalogue.
        content: the catalogue.
        save: if given, the table is written there after every variant, with the hardware beside it as JSON.
        settings: of :func:`measure`.
    """
    jobs = [(task, name, v) for task in tasks for name, v in content["tasks"][task]["variants"].items()]
    total = sum(len(batch_sizes_of(content, task)) * len(measured_cores(v["architecture"])) for task, _, v in jobs)
    tables: list[pd.DataFrame] = []
    with tqdm(total=total, unit="cell", desc="profiling") as progress:
        for task, name, variant in jobs:
            progress.set_postfix_str(f"{task} {name}")
            sizes = batch_sizes_of(content, task)
            architecture = variant["architecture"]
            cells = dict(architecture=architecture, progress=progress, **settings)
            tables.append(measure(task, name, sizes, measured_cores(architecture), **cells))
            if save is not None:
                save_profiles(extrapolate(pd.concat(tables)), save)
    return extrapolate(pd.concat(tables))


def save_profiles(table: pd.DataFrame, path: Path) -> None:
    """Write a profile table as CSV, and the hardware it was measured on beside it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.5g")
    path.with_suffix(".json").write_text(json.dumps(hardware(), indent=2) + "\n")


# ------------------------------------------------------------------------------------- from profiles to pipelines


def latency_table(profiles: pd.DataFrame, task: str, variant: str, cores: int) -> dict[int, float]:
    """Mean latency in seconds by batch size, made non-decreasing.

    A larger batch cannot take less time than a smaller one; where noise says so, the isotonic (least-squares)
    fit takes its place.

    Raises:
        ValueError: if the profile lacks the variant or the core count.
    """
    rows = profiles[(profiles["task"] == task) & (profiles["variant"] == variant)]
    if rows.empty:
        known = ", ".join(profiles.loc[profiles["task"] == task, "variant"].unique()) or "no variant of that task"
        raise ValueError(
            f"no profile of variant {variant!r} of task {task!r} (profiled: {known}); measure it with 01_profiling"
        )
    rows = rows[rows["cores"] == cores].sort_values("batch_size")
    if rows.empty:
        raise ValueError(f"variant {variant!r} of task {task!r} has no profile at {cores} cores; see extrapolate()")
    fitted = isotonic_regression(rows["latency_mean"].to_numpy()).x
    return dict(zip(rows["batch_size"].astype(int).tolist(), fitted.tolist(), strict=True))


def stage_sla(profiles: pd.DataFrame, task: str) -> float:
    """Latency target of one stage in seconds: five times the mean over its variants at batch 1 on one core.

    IPA (Ghafouri et al. 2024) takes the rule from Swayam; the end-to-end target is the sum over stages.
    """
    rows = profiles[(profiles["task"] == task) & (profiles["cores"] == 1) & (profiles["batch_size"] == 1)]
    return SLA_FACTOR * float(rows["latency_mean"].mean())


def base_cores(latency: Mapping[int, float], threshold_rps: float, sla: float) -> int:
    """Cores of one replica by IPA's rule.

    The fewest cores at which the variant, one request at a time, serves ``threshold_rps`` requests/s and
    answers within ``sla``. Where no core count does, the largest that still gains: the one from which
    doubling the cores makes the variant less than 1.25 times as fast.

    Args:
        latency: batch-1 latency in seconds by core count.
        threshold_rps: requests/s one replica should carry.
        sla: seconds, of this stage.
    """
    counts = sorted(latency)
    for count in counts:
        if 1.0 / latency[count] >= threshold_rps and latency[count] <= sla:
            return count
    for count, following in zip(counts, counts[1:], strict=False):
        if latency[count] < 1.25 * latency[following]:
            return count
    return counts[-1]


def load_pipeline(name: str, catalogue: Path | None = None, profiles: Path | None = None, **overrides: Any) -> Pipeline:
    """A pipeline of the catalogue with its latency profiles.

    Cores per replica follow :func:`base_cores`, latencies are the profile's at those cores
    (:func:`latency_table`), a variant starts in ``container_startup`` plus its measured loading time, and the
    latency target is the sum of :func:`stage_sla` unless the catalogue names one.

    Args:
        name: pipeline in the catalogue.
        catalogue: its YAML file; the package's own if not given.
        profiles: the profile table; the package's own if not given.
        overrides: settings that replace the catalogue's: ``capacity`` and ``max_replicas``,
            ``max_batch_size``, ``latency_sla`` (s) and ``threshold_rps`` (requests/s).

    Raises:
        KeyError: if there is no such pipeline.
        FileNotFoundError: if a file is missing.
        ValueError: if an override is unknown, or a variant or batch size has no profile.
    """
    content, table = load_catalogue(catalogue), load_profiles(profiles)
    settings = pipeline_settings(content, name)
    unknown = set(overrides) - {"capacity", "max_replicas", "max_batch_size", "latency_sla", "threshold_rps"}
    if unknown:
        raise ValueError(
            f"unknown override {', '.join(sorted(unknown))}; a pipeline has capacity, max_replicas, max_batch_size, "
            "latency_sla and threshold_rps"
        )
    settings.update(overrides)
    tasks = tuple(_task(content, table, task, settings) for task in settings["tasks"])
    sla = settings.get("latency_sla") or sum(stage_sla(table, task) for task in settings["tasks"])
    return Pipeline(
        name=name,
        tasks=tasks,
        capacity=int(settings["capacity"]),
        max_replicas=int(settings["max_replicas"]),
        max_batch_size=int(settings["max_batch_size"]),
        latency_sla=float(sla),
    )


def _task(content: Mapping[str, Any], table: pd.DataFrame, name: str, settings: Mapping[str, Any]) -> Task:
    """One stage of a pipeline: the catalogue's variants with their profiles."""
    if name not in content["tasks"]:
        raise KeyError(f"the catalogue has no task {name!r}; it has {', '.join(content['tasks'])}")
    variants = []
    for variant, entry in content["tasks"][name]["variants"].items():
        profile = table[(table["task"] == name) & (table["variant"] == variant)]
        latency_table(table, name, variant, 1)  # names what is missing before anything is computed from it
        single = profile[profile["batch_size"] == 1].set_index("cores")["latency_mean"].to_dict()
        cores = base_cores(single, settings["threshold_rps"], stage_sla(table, name))
        startup = float(content["container_startup"]) + float(profile["load_seconds"].iloc[0])
        variants.append(
            Variant(variant, float(entry["accuracy"]), cores, latency_table(table, name, variant, cores), startup)
        )
    return Task(name, tuple(variants))


# ------------------------------------------------------------------------------------- the user's own measurements


def remeasure(
    name: str,
    seconds: float,
    *,
    max_batch_size: int | None = None,
    catalogue: Path | None = None,
    profiles: Path | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, list[str]]:
    """Measure a pipeline's variants on this machine, as many as fit a time budget.

    The stages take turns, smallest variants first, so that a short budget still sees every stage. What a variant
    will take is judged by the reference table; the smallest one of all is always measured.

    Args:
        name: pipeline in the catalogue.
        seconds: budget for all measurements.
        max_batch_size: largest batch size to measure; the pipeline's if not given.
        catalogue: the YAML file; the package's own if not given.
        profiles: the reference table; the package's own if not given.
        seed: of the random weights and inputs.

    Returns:
        The measured rows and, for each variant left out for want of time, ``task/variant``.

    Raises:
        KeyError: if there is no such pipeline.
        ValueError: if the budget is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"profile_seconds is {seconds}, but must be positive; 120 measures most of a pipeline")
    content, reference = load_catalogue(catalogue), load_profiles(profiles)
    settings = pipeline_settings(content, name)
    largest = min(max_batch_size or settings["max_batch_size"], settings["max_batch_size"])
    sizes = [size for size in (1 << power for power in range(largest.bit_length())) if size <= largest]
    jobs = _in_turns([[(task, v) for v in content["tasks"][task]["variants"]] for task in settings["tasks"]])
    tables: list[pd.DataFrame] = []
    left_out: list[str] = []
    deadline = time.perf_counter() + seconds
    with tqdm(total=len(jobs), unit="variant", desc=f"profiling {name}") as progress:
        for task, variant in jobs:
            progress.set_postfix_str(variant)
            key = content["tasks"][task]["variants"][variant]["architecture"]
            cores = measured_cores(key)
            remaining = deadline - time.perf_counter()
            if tables and _expected_seconds(reference, task, variant, sizes, cores) > remaining:
                left_out.append(f"{task}/{variant}")
            else:
                cells = dict(architecture=key, cell_seconds=seconds / 100, min_runs=2, seed=seed)
                tables.append(measure(task, variant, sizes, cores, **cells))
            progress.update()
    return pd.concat(tables, ignore_index=True), left_out


def _in_turns(stages: Sequence[Sequence[Any]]) -> list[Any]:
    """First of each stage, second of each stage, and so on."""
    longest = max(len(stage) for stage in stages)
    return [stage[index] for index in range(longest) for stage in stages if index < len(stage)]


def _expected_seconds(
    reference: pd.DataFrame, task: str, variant: str, sizes: Sequence[int], cores: Sequence[int]
) -> float:
    """Wall time that :func:`measure` will take for one variant with two runs a cell: warm-up, runs and loading."""
    rows = reference[(reference["task"] == task) & (reference["variant"] == variant)]
    cells = rows[rows["batch_size"].isin(sizes) & rows["cores"].isin(cores)]
    return 3.0 * float(cells["latency_mean"].sum()) + 2.0 * float(rows["load_seconds"].max())


def compare(measured: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """The cells measured in both tables, with the ratio of their mean latencies.

    Returns:
        Columns ``task, variant, cores, batch_size, measured, reference`` (seconds) and ``ratio``, above 1 where
        this machine is the slower one.
    """
    keys = ["task", "variant", "cores", "batch_size"]
    sides = [
        table.loc[table["kind"] == "measured", [*keys, "latency_mean"]].rename(columns={"latency_mean": name})
        for table, name in ((measured, "measured"), (reference, "reference"))
    ]
    both = sides[0].merge(sides[1], on=keys)
    return both.assign(ratio=both["measured"] / both["reference"])


def complete(measured: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """A whole profile table from the user's measurements: what they lack is the reference's, scaled.

    Variants and batch sizes that were not measured take the reference's latency times the median ratio of
    :func:`compare`, and are marked ``extrapolated``.

    Raises:
        ValueError: if the tables have no measured cell in common, so that there is nothing to scale by.
    """
    shared = compare(measured, reference)
    if shared.empty:
        raise ValueError("no cell is measured in both tables; measure a variant of the catalogue first")
    ratio = float(shared["ratio"].median())
    scaled = reference.assign(
        latency_mean=reference["latency_mean"] * ratio,
        latency_p99=reference["latency_p99"] * ratio,
        load_seconds=reference["load_seconds"] * ratio,
        runs=0,
        kind="extrapolated",
    )
    keys = ["task", "variant", "cores", "batch_size"]
    own = extrapolate(measured).set_index(keys)
    rest = scaled.set_index(keys)
    joined = pd.concat([own, rest.loc[rest.index.difference(own.index, sort=False)]]).reset_index()
    order = {(row.task, row.variant): index for index, row in enumerate(reference.itertuples())}
    joined["order"] = [order.get((row.task, row.variant), -1) for row in joined.itertuples()]
    return joined.sort_values(["order", "cores", "batch_size"])[COLUMNS].reset_index(drop=True)


def comparison_metrics(comparison: pd.DataFrame, left_out: Sequence[str]) -> dict[str, Any]:
    """The comparison in a few figures: median and quartiles of the ratio, cells compared, variants left out.

    Args:
        comparison: of :func:`compare`.
        left_out: of :func:`remeasure`.
    """
    low, median, high = comparison["ratio"].quantile([0.25, 0.5, 0.75])
    return {
        "median_ratio": round(float(median), 4),
        "quartiles_ratio": [round(float(low), 4), round(float(high), 4)],
        "cells": len(comparison),
        "variants": int(comparison[["task", "variant"]].drop_duplicates().shape[0]),
        "variants_left_out": len(left_out),
    }


def describe(pipeline: Pipeline) -> pd.DataFrame:
    """A pipeline's variants as a table: accuracy, cores, latency (s), throughput (requests/s) and start-up (s)."""
    rows = [
        {
            "task": task.name,
            "variant": variant.name,
            "accuracy": variant.accuracy,
            "cores": variant.cores,
            "latency at batch 1 (s)": variant.service_time(1),
            "highest throughput (requests/s)": max(variant.throughput(size) for size in pipeline.batch_sizes),
            "start-up (s)": variant.startup_time,
        }
        for task in pipeline.tasks
        for variant in task.variants
    ]
    return pd.DataFrame(rows)
