"""Profile a pipeline: measure all of its variants, and write the profile beside its file.

Nothing needs to be known about the variants beforehand. The table is written after every cell, so an interrupted run
loses nothing that it has measured, and the next one continues.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from opd.host.errors import problem_list
from opd.host.machine import hardware
from opd.host.progress import progress_bar
from opd.pipeline import batch_sizes_up_to
from opd.profiling.figures import LONGEST_STARTUP
from opd.profiling.measuring import Effort, Measurable, as_table, measured_rows
from opd.profiling.pipeline_file import PipelineFile, VariantSection, pipeline_path, read_pipeline_file
from opd.profiling.profiles import (
    COLUMNS,
    CORE_COUNTS,
    FILE_NAME,
    extrapolate_cores,
    load_profile,
    save_profile,
    write_profile,
)

THOROUGH = Effort(1.0, min_runs=20, max_runs=100)
"""Effort without a budget: enough runs for a tail."""

MODELS = "models"
"""Key in the JSON file of a profile: fingerprints of the variants that were measured with its hardware and versions."""

STARTS = "starts"
"""Key in the JSON file of a profile: variants whose start-up time was measured elsewhere, with the place."""

Serve = Callable[[str, str], Measurable]
"""Gives a variant as it is served, from the name of its task and its own."""

Key = tuple[str, str]
"""Names of a task and a variant."""


class UnfinishedProfileError(RuntimeError):
    """The budget ended before every variant of a pipeline had been measured; what was measured is kept."""


class Measurement(NamedTuple):
    """What to measure of one variant.

    Attributes:
        key: names of task and variant.
        cores: cores of a replica.
        measurable: the variant.
        cells: numbers of cores and batch sizes.
        fingerprint: what identifies the variant.
    """

    key: Key
    cores: int
    measurable: Measurable
    cells: list[tuple[int, int]]
    fingerprint: str


class ProfileRecord:
    """A profile that grows while it is measured.

    Args:
        path: the CSV file. Rows that are in it already stay until their variant is measured.
        again: do not keep what was measured before.
    """

    def __init__(self, path: Path, again: bool = False) -> None:
        self._path = path
        self._old = load_profile(path) if path.is_file() else pd.DataFrame(columns=COLUMNS)
        about = _recorded(path)
        self._starts = _starts(about)
        self._fingerprints: dict[str, str] = {} if again else _fingerprints(about)
        self._rows: dict[Key, dict[tuple[int, int], list[Any]]] = defaultdict(dict)
        self._cores: dict[Key, int] = {}

    def begin(self, job: Measurement) -> list[tuple[int, int]]:
        """Return the cells of a variant that have not been measured with this model, hardware and versions."""
        if self._fingerprints.get("/".join(job.key)) == job.fingerprint:
            known = self._old[(self._old["task"] == job.key[0]) & (self._old["variant"] == job.key[1])]
            for row in known[known["kind"] == "measured"].values.tolist():
                self._rows[job.key][row[2], row[3]] = row
        self._cores[job.key] = job.cores
        return [cell for cell in job.cells if cell not in self._rows[job.key]]

    def add(self, job: Measurement, row: list[Any]) -> None:
        """Add a measured cell, and write the profile."""
        self._rows[job.key][row[2], row[3]] = row
        for other in self._rows[job.key].values():
            other[8:] = row[8:]  # one start-up time and memory a variant
        self._fingerprints["/".join(job.key)] = job.fingerprint
        self._starts.pop("/".join(job.key), None)
        self.save()

    def measured(self) -> pd.DataFrame:
        """All cells that have been measured with this hardware and these versions."""
        return as_table([row for rows in self._rows.values() for _, row in sorted(rows.items())])

    def save(self) -> None:
        """Write what has been measured, extrapolations from it, and the rows of all other variants."""
        measured = self.measured()
        keys = {key for key, rows in self._rows.items() if rows}
        others = [key not in keys for key in zip(self._old["task"], self._old["variant"], strict=True)]
        counts = sorted({*CORE_COUNTS, *self._cores.values()})
        tables = [extrapolate_cores(measured, counts), self._old[others]]
        table = pd.concat([each for each in tables if len(each)], ignore_index=True)
        elsewhere = {STARTS: self._starts} if self._starts else {}
        save_profile(table, self._path, {MODELS: self._fingerprints, **elsewhere})


@dataclass(frozen=True)
class ProfilingOptions:
    """What to measure of a pipeline, and how long.

    Attributes:
        core_counts: numbers of cores to measure in addition to each variant's own. From two on, other numbers are
            extrapolated by Amdahl's law.
        max_batch_size: largest batch size to measure; 0 for the pipeline's.
        seconds: budget for all measurements; 0 for none.
        again: measure again what was measured before with the same models, hardware and versions.
        seed: of random weights and inputs.

    Raises:
        ValueError: if the budget is negative.
    """

    core_counts: Sequence[int] = ()
    max_batch_size: int = 0
    seconds: float = 0.0
    again: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"profile_seconds is {self.seconds}, but must be positive, or 0 for no limit")

    @property
    def effort(self) -> Effort:
        """Effort of each cell."""
        return Effort(self.seconds / 100, min_runs=2) if self.seconds else THOROUGH


def profile_pipeline(
    source: str | Path, profile: Path, serve: Serve | None = None, options: ProfilingOptions = ProfilingOptions()
) -> tuple[pd.DataFrame, list[str]]:
    """Measure the variants of a pipeline and write its profile.

    The stages take turns, in the order of the file, so even a short budget covers every stage. How long a variant will
    take is expected from those of its stage that have been measured; the first one is always measured.

    Args:
        source: name, folder or file of the pipeline (:func:`opd.profiling.pipeline_file.pipeline_path`).
        profile: CSV file to write; what it has already is kept.
        serve: gives variants with a ``model`` as they are served.
        options: what to measure.

    Returns:
        The cells measured with this hardware, and, as ``task/variant``, the variants that did not fit.

    Raises:
        FileNotFoundError: if there is no such pipeline.
        UnfinishedProfileError: if the profile is that beside the pipeline file, and a variant did not fit: nothing can
            plan with a part of it. The next run goes on.
        opd.host.documents.DocumentError: if the pipeline file or an existing profile is malformed.
        ValueError: if a variant cannot be measured here; it lists all such variants.
    """
    content = read_pipeline_file(source)
    largest = min(options.max_batch_size or content.limits.batch_size, content.limits.batch_size)
    jobs = _jobs(content, serve, options.core_counts, batch_sizes_up_to(largest))
    record = ProfileRecord(profile, options.again)
    left_out = _measure(jobs, record, options, f"profiling {content.name}")
    record.save()  # if nothing was measured, the file may still give a variant other cores to extrapolate to
    if left_out and profile.resolve() == pipeline_path(source).with_name(FILE_NAME).resolve():
        raise UnfinishedProfileError(
            f"profile_seconds, {options.seconds:g} s, ended before these variants of {content.name} were measured: "
            f"{', '.join(left_out)}. What was measured is kept: run it again to go on, or set profile_seconds to 0 for "
            "no limit"
        )
    return record.measured(), left_out


def _measure(jobs: Sequence[Measurement], record: ProfileRecord, options: ProfilingOptions, title: str) -> list[str]:
    """Measure what the record lacks, as far as it fits the budget; return what does not."""
    deadline = time.perf_counter() + (options.seconds or math.inf)
    elapsed: dict[str, list[float]] = defaultdict(list)
    left_out = []
    with progress_bar(total=sum(len(job.cells) for job in jobs), unit="cell", desc=title) as progress:
        for job in jobs:
            progress.set_postfix_str("/".join(job.key))
            cells, start = record.begin(job), time.perf_counter()
            progress.update(len(job.cells) - len(cells))
            if not cells:
                continue
            if elapsed and start + _expected(elapsed[job.key[0]]) > deadline:
                left_out.append("/".join(job.key))
                progress.update(len(cells))
                continue
            for row in measured_rows(*job.key, job.measurable, cells, options.effort, seed=options.seed):
                record.add(job, row)
                progress.update()
            elapsed[job.key[0]].append(time.perf_counter() - start)
    return left_out


def _expected(elapsed: Sequence[float]) -> float:
    """Expect the seconds of the next variant of a stage: the last one's, grown as from the one before to the last."""
    if not elapsed:
        return 0.0
    growth = elapsed[-1] / elapsed[-2] if len(elapsed) > 1 else 2.0
    return elapsed[-1] * max(1.0, growth)


def _jobs(
    content: PipelineFile, serve: Serve | None, core_counts: Sequence[int], batch_sizes: Sequence[int]
) -> list[Measurement]:
    """List what to measure, the stages in turns; all problems are reported together."""
    jobs, problems = [], []
    turns = zip_longest(*([(task.name, variant) for variant in task.variants] for task in content.tasks))
    for task, variant in (each for turn in turns for each in turn if each is not None):
        try:
            measurable = _measurable(task, variant, serve)
            cells = list(product(_cores(variant, measurable, core_counts), batch_sizes))
        except ValueError as error:
            problems.append(f"variant {variant.name!r} of task {task!r}: {error}")
            continue
        jobs.append(Measurement((task, variant.name), variant.cores, measurable, cells, _identity(variant, measurable)))
    if problems:
        raise ValueError(problem_list(f"{len(problems)} variants cannot be measured", problems))
    return jobs


def _measurable(task: str, variant: VariantSection, serve: Serve | None) -> Measurable:
    if variant.architecture is None:
        if serve is None:
            raise ValueError("it has a model, which is measured as it is served; that needs the extra 'serving'")
        return serve(task, variant.name)
    from opd.profiling.architectures import ARCHITECTURES  # torch and transformers take seconds to import

    if variant.architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"there is no architecture {variant.architecture!r}; opd.profiling.architectures has {known}")
    return ARCHITECTURES[variant.architecture]


def _cores(variant: VariantSection, measurable: Measurable, core_counts: Sequence[int]) -> list[int]:
    """Numbers of cores to measure: the variant's own and ``core_counts``, as far as machine and model can use them."""
    most = min(os.cpu_count() or 1, measurable.max_cores)
    counts = sorted(count for count in {variant.cores, *core_counts} if count <= most)
    if variant.cores > most and len(counts) < 2:
        raise ValueError(
            f"it has {variant.cores} cores, but can be measured here on at most {most}; measure it on a larger "
            "machine, or on two smaller numbers of cores, to extrapolate from"
        )
    return counts


def _identity(variant: VariantSection, measurable: Measurable) -> str:
    """Hash what a measurement depends on, apart from hardware and versions."""
    described = variant.model_dump(mode="json", include={"model", "runtime", "architecture", "settings"})
    text = json.dumps([described, measurable.fingerprint()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _recorded(profile: Path) -> dict[str, Any]:
    """Read the file beside a profile; empty if there is none that can be read."""
    try:
        return dict(json.loads(profile.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _fingerprints(about: dict[str, Any]) -> dict[str, str]:
    """The fingerprints among what stands beside a profile; none if it comes from other hardware or versions."""
    models = about.pop(MODELS, {})
    return dict(models) if about == hardware() and isinstance(models, Mapping) else {}


def _starts(about: dict[str, Any]) -> dict[str, Any]:
    """Take what is known of starts elsewhere out of what stands beside a profile."""
    starts = about.pop(STARTS, {})
    return dict(starts) if isinstance(starts, Mapping) else {}


def keep_starts(profile: Path, measured: Mapping[Key, Mapping[str, Any]]) -> None:
    """Write start-up times that were measured elsewhere into a profile, and beside it all that is known of them.

    Args:
        profile: the CSV file. Its latencies stay, and so does the hardware that they were measured on.
        measured: of each variant, the start-up time as ``seconds``, and further facts for the JSON file.

    Raises:
        FileNotFoundError: if there is no such profile.
        opd.host.documents.DocumentError: if it is not one.
    """
    table, about = load_profile(profile), _recorded(profile)
    for key, facts in measured.items():
        rows = (table["task"] == key[0]) & (table["variant"] == key[1])
        table.loc[rows, "startup_seconds"] = min(facts["seconds"], LONGEST_STARTUP)
    starts = {**_starts(about), **{"/".join(key): dict(facts) for key, facts in measured.items()}}
    write_profile(table, profile, {**about, STARTS: starts})
