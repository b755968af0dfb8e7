"""Profiles: tables of how long calls and starts of the variants take.

A profile is a CSV file beside its pipeline file, ``profile.csv``, with one row a cell: a variant at one number of cores
and one batch size (:class:`ProfileRow`). ``profile.json`` beside it names hardware and versions. People may write a
profile by hand where they cannot measure; ``kind`` is ``assumed`` then, and whatever shows the variant says so.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field
from scipy.optimize import isotonic_regression, nnls

from opd.host.documents import DocumentError, DocumentModel, Location, as_model
from opd.host.machine import hardware
from opd.host.paths import package_path
from opd.profiling.figures import Name, Seconds, StartupSeconds

FILE_NAME = "profile.csv"
"""Name of the profile in the folder of a pipeline."""

MAX_BYTES = 4 * 1024 * 1024
"""Limit of a profile, some 50,000 rows."""

CORE_COUNTS = (1, 2, 4, 8, 16)
"""Numbers of cores to extrapolate to."""

CELL = ["task", "variant", "cores", "batch_size"]
"""Columns that identify a row."""


class ProfileRow(DocumentModel):
    """One row of a profile."""

    task: Name
    """name of the task in the pipeline file"""
    variant: Name
    """name of the variant in the pipeline file"""
    cores: int = Field(ge=1, le=256)
    """CPU cores of the replica, a whole number"""
    batch_size: int = Field(ge=1, le=1024)
    """requests in the call, a whole number"""
    latency_mean: Seconds
    """seconds of a call: mean of the faster half of the runs, warm-up excluded"""
    latency_p99: Seconds | None = None
    """99th percentile of all runs in seconds; the mean if left empty"""
    runs: int = Field(default=0, ge=0)
    """runs behind the figures, 0 if not measured"""
    kind: Literal["measured", "extrapolated", "assumed"]
    """measured; extrapolated from other core counts or another machine; or assumed, typed by hand"""
    startup_seconds: StartupSeconds
    """seconds from ordering a replica until it serves; one figure a variant"""
    memory_mb: Annotated[float, Field(gt=0.0)] | None = None
    """memory of a serving replica in MB, may be empty"""


COLUMNS = list(ProfileRow.model_fields)

OPTIONAL = [name for name, field in ProfileRow.model_fields.items() if not field.is_required()]
"""Columns that may be left out."""


class ProfileRows(DocumentModel):
    """All rows of a profile."""

    rows: list[ProfileRow] = Field(min_length=1)
    """one row a variant, number of cores and batch size"""

    @classmethod
    def conflicts(cls, content: Mapping[Any, Any]) -> Iterator[tuple[Location, str]]:
        """No cell occurs twice."""
        first: dict[tuple[Any, ...], int] = {}
        for number, row in enumerate(content["rows"]):
            cell = tuple(row.get(column) for column in CELL)
            if first.setdefault(cell, number) != number:
                yield ("rows", number), f"{_cell_text(*cell)} stands in rows[{first[cell]}] already; keep one of them"


def _cell_text(task: Any, variant: Any, cores: Any, batch_size: Any) -> str:
    return f"variant {variant} of task {task} at {cores} cores and batch size {batch_size}"[:200]


def load_profile(path: Path) -> pd.DataFrame:
    """Read a profile.

    Args:
        path: the CSV file.

    Returns:
        Columns :data:`COLUMNS`; ``memory_mb`` is NaN where unknown.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not a profile; it lists all problems.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no profile {path}; measure one with `opd profile {path.parent}`")
    if path.stat().st_size > MAX_BYTES:
        raise DocumentError(f"{path} is larger than {MAX_BYTES} bytes, the limit of a profile")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_header(path, reader.fieldnames or ())
            lines, rows = [], []
            for row in reader:
                lines.append(reader.line_num)
                rows.append(_parsed(row))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DocumentError(f"{path} is not a CSV file: {error}") from error
    found = as_model(ProfileRows, {"rows": rows}, str(path), lambda place: lines[int(place[1])] if place[1:] else 1)
    table = pd.DataFrame([dict(row) for row in found.rows], columns=COLUMNS)
    table["latency_p99"] = table["latency_p99"].fillna(table["latency_mean"])
    return table.astype({"latency_p99": float, "memory_mb": float})


def _check_header(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names and name not in OPTIONAL]
    if missing:
        raise DocumentError(
            f"{path} line 1 lacks the columns {', '.join(missing)}; write them, or measure again with `opd profile`"
        )
    if len(set(names)) < len(names):
        raise DocumentError(f"{path} line 1 has a column twice: {', '.join(names)}")


def _parsed(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Convert the cells of a row to numbers where they are numbers; empty cells are left out."""
    parsed: dict[str, Any] = {}
    for column, text in row.items():
        if column is None:
            parsed["cells without a column"] = str(text)
        elif text and text.strip():
            parsed[column] = text if column in ("task", "variant") else _number(text.strip())
    return parsed


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def save_profile(table: pd.DataFrame, path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a profile that was measured on this machine, and beside it as JSON its hardware.

    Args:
        table: the profile.
        path: CSV file to write.
        about: further facts for the JSON file.
    """
    write_profile(table, path, {**hardware(), **(about or {})})


def write_profile(table: pd.DataFrame, path: Path, about: Mapping[str, Any]) -> None:
    """Write a profile, and facts about it beside it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.5g")
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


def shipped_profiles() -> pd.DataFrame:
    """Read the profiles of all pipelines that ship with the package as one table, the reference of measurements."""
    tables = [load_profile(path) for path in sorted(package_path("examples").glob(f"*/{FILE_NAME}"))]
    return pd.concat(tables).drop_duplicates(CELL, ignore_index=True)


def latency_by_batch_size(rows: pd.DataFrame) -> dict[int, float]:
    """Mean latency in seconds by batch size, made non-decreasing.

    A larger batch cannot take less time than a smaller one. Where measurements say so, they are noise, and the isotonic
    (least-squares) fit replaces them.

    Args:
        rows: rows of one variant at one number of cores.
    """
    rows = rows.sort_values("batch_size")
    mean = rows["latency_mean"].to_numpy()
    fitted = mean if (np.diff(mean) >= 0).all() else isotonic_regression(mean).x
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
            startup, memory = largest["startup_seconds"], largest["memory_mb"]
            rows.append([task, variant, count, batch_size, mean, mean * tail, 0, "extrapolated", startup, memory])
    table = pd.concat([measured, pd.DataFrame(rows, columns=COLUMNS)]) if rows else measured
    return _in_order_of(measured, table)


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
        raise ValueError("no cell is measured in both tables; measure a variant that the reference has")
    ratio = float(shared["ratio"].median())
    scaled = reference.assign(
        latency_mean=reference["latency_mean"] * ratio,
        latency_p99=reference["latency_p99"] * ratio,
        startup_seconds=reference["startup_seconds"] * ratio,
        runs=0,
        kind="extrapolated",
    )
    own = extrapolate_cores(measured).set_index(CELL)
    rest = scaled.set_index(CELL)
    joined = pd.concat([own, rest.loc[rest.index.difference(own.index, sort=False)]]).reset_index()
    return _in_order_of(reference, joined)


def _in_order_of(other: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Sort a table by the order of the variants in another one, then by cores and batch size."""
    order = {variant: index for index, variant in enumerate(zip(other["task"], other["variant"], strict=True))}
    place = [order.get(variant, -1) for variant in zip(table["task"], table["variant"], strict=True)]
    return table.assign(place=place).sort_values(["place", "cores", "batch_size"])[COLUMNS].reset_index(drop=True)
