"""Latency profiles: a table of call durations by variant, cores and batch size.

``profiles.csv``, which ships with the package, is the reference. One row is one cell: a variant at one core count and
batch size.

==============  ============================================================================================
column          meaning
==============  ============================================================================================
task, variant   names in the catalogue
cores           cores of the replica: torch uses as many threads, a stored model is measured on one
batch_size      requests in the call
latency_mean    seconds for one call: mean of the faster half of the runs, warm-up excluded
latency_p99     99th percentile of all runs, seconds
runs            runs behind the figures; 0 where extrapolated
kind            ``measured``, or ``extrapolated`` by Amdahl's law to more cores than the machine has
load_seconds    from the weights on disk to the first answer; one figure a variant
==============  ============================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression, nnls

from opd.host.machine import hardware
from opd.host.paths import package_path

CORE_COUNTS = (1, 2, 4, 8, 16)
"""Cores that a replica may be given."""

CELL = ["task", "variant", "cores", "batch_size"]
"""Columns that identify a row."""

COLUMNS = [*CELL, "latency_mean", "latency_p99", "runs", "kind", "load_seconds"]


def load_profiles(profiles: Path | None = None) -> pd.DataFrame:
    """Read a profile table.

    Args:
        profiles: the CSV file; the package's own if not given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if columns are missing.
    """
    path = profiles or package_path("examples", "profiles.csv")
    if not path.is_file():
        raise FileNotFoundError(f"no latency profiles at {path}; measure them with notebook 01_profiling")
    table = pd.read_csv(path)
    missing = set(COLUMNS) - set(table.columns)
    if missing:
        raise ValueError(f"{path} lacks the columns {', '.join(sorted(missing))}; measure again with 01_profiling")
    return table[COLUMNS]


def save_profiles(table: pd.DataFrame, path: Path) -> None:
    """Write a profile table as CSV, and next to it the hardware it was measured on as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.5g")
    path.with_suffix(".json").write_text(json.dumps(hardware(), indent=2) + "\n")


def variant_rows(profiles: pd.DataFrame, task: str, variant: str) -> pd.DataFrame:
    """Select the rows of one variant.

    Raises:
        ValueError: if this variant was not profiled; it lists those that were.
    """
    rows = profiles[(profiles["task"] == task) & (profiles["variant"] == variant)]
    if rows.empty:
        known = ", ".join(profiles.loc[profiles["task"] == task, "variant"].unique()) or "no variant of that task"
        raise ValueError(
            f"no profile of variant {variant!r} of task {task!r} (profiled: {known}); measure it with 01_profiling"
        )
    return rows


def latency_by_batch_size(profiles: pd.DataFrame, task: str, variant: str, cores: int) -> dict[int, float]:
    """Mean latency in seconds by batch size, made non-decreasing.

    A larger batch cannot take less time than a smaller one. Where measurements say so, they are noise, and the isotonic
    (least-squares) fit replaces them.

    Raises:
        ValueError: if the profile lacks the variant or the core count.
    """
    rows = variant_rows(profiles, task, variant)
    known = sorted(rows["cores"].unique().tolist())
    rows = rows[rows["cores"] == cores].sort_values("batch_size")
    if rows.empty:
        raise ValueError(
            f"variant {variant!r} of task {task!r} has no profile at {cores} cores (profiled: {known}); measure it "
            "with 01_profiling"
        )
    fitted = isotonic_regression(rows["latency_mean"].to_numpy()).x
    return dict(zip(rows["batch_size"].astype(int).tolist(), fitted.tolist(), strict=True))


# ------------------------------------------------------------------------------------------------ extrapolating


def amdahl(cores: Sequence[float], latency: Sequence[float]) -> tuple[float, float]:
    """Fit Amdahl's law, latency = serial + parallel / cores, and return its serial and parallel seconds.

    Least squares with neither part negative: two core counts determine the law, more are averaged.
    """
    design = np.column_stack([np.ones(len(cores)), 1.0 / np.asarray(cores, dtype=float)])
    (serial, parallel), _ = nnls(design, np.asarray(latency, dtype=float))
    return float(serial), float(parallel)


def extrapolate_cores(measured: pd.DataFrame, core_counts: Sequence[int] = CORE_COUNTS) -> pd.DataFrame:
    """Add rows for core counts that were not measured, by Amdahl's law for each variant and batch size.

    The 99th percentile keeps its ratio to the mean at the largest measured core count. A variant measured at a single
    core count gets no rows: one point does not tell how much of the work is parallel.

    Returns:
        The measured rows and, marked ``extrapolated`` and with 0 runs, the added ones.
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


# ----------------------------------------------------------------------------------------------- two machines


def compare_latencies(measured: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Join the cells measured in both tables, with the ratio of their mean latencies.

    Returns:
        Columns ``task, variant, cores, batch_size, measured, reference`` (seconds) and ``ratio``, above 1 where
        this machine is the slower one.
    """
    sides = [
        table.loc[table["kind"] == "measured", [*CELL, "latency_mean"]].rename(columns={"latency_mean": name})
        for table, name in ((measured, "measured"), (reference, "reference"))
    ]
    both = sides[0].merge(sides[1], on=CELL)
    return both.assign(ratio=both["measured"] / both["reference"])


def comparison_metrics(comparison: pd.DataFrame, left_out: Sequence[str]) -> dict[str, Any]:
    """Summarise a comparison: median and quartiles of the ratio, numbers of cells and of variants.

    Args:
        comparison: result of :func:`compare_latencies`.
        left_out: variants that were not measured.
    """
    low, median, high = comparison["ratio"].quantile([0.25, 0.5, 0.75])
    return {
        "median_ratio": round(float(median), 4),
        "quartiles_ratio": [round(float(low), 4), round(float(high), 4)],
        "cells": len(comparison),
        "variants": int(comparison[["task", "variant"]].drop_duplicates().shape[0]),
        "variants_left_out": len(left_out),
    }


def fill_from_reference(measured: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Complete the measurements of this machine to a table of all variants.

    Variants and batch sizes that were not measured take the reference's latency times the median ratio of
    :func:`compare_latencies`, and are marked ``extrapolated``.

    Raises:
        ValueError: if the tables have no measured cell in common, so there is no ratio.
    """
    shared = compare_latencies(measured, reference)
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
    own = extrapolate_cores(measured).set_index(CELL)
    rest = scaled.set_index(CELL)
    joined = pd.concat([own, rest.loc[rest.index.difference(own.index, sort=False)]]).reset_index()
    order = {(row.task, row.variant): index for index, row in enumerate(reference.itertuples())}
    joined["order"] = [order.get((row.task, row.variant), -1) for row in joined.itertuples()]
    return joined.sort_values(["order", "cores", "batch_size"])[COLUMNS].reset_index(drop=True)
