"""The paper's experiments on the real plane: every policy on pipelines of the catalogue, under stretches of a trace.

Gateway, queues, reconfigurations and requests are real. Replicas are emulated, because the pipelines need more cores
than a small machine has. Beside each run, the simulator predicts it: the same policy meets the same requests.

Runs may take place side by side. One of them is repeated alone and beside others, which shows whether that disturbs.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil

from opd.control import policy_label
from opd.control.loop import Step
from opd.host.archive import written_whole
from opd.live.failures import require_useful
from opd.live.runs import EMULATED, LiveRun, LiveSite, live_timeline, run_policies, summarise_run
from opd.live.traffic import Traffic, most_varied_window
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.serving.outcomes import COMPLETED
from opd.study.analysis.kept_rows import run_missing
from opd.study.evaluation.cycles import Setting, first_configuration
from opd.workload.trace import CYCLE_SECONDS, Cycle, Trace

STUDY, ALONE, BESIDE = "study", "alone", "side by side"
"""Why a run takes place: for the study, or to see whether runs side by side disturb each other."""

PREDICTED = ("qos", "cost", "reward", "latency_p95", "reconfigurations")
"""Figures that the simulator predicts; their columns begin with ``predicted_``."""

COLUMNS = [
    *("pipeline", "load", "policy", "qos", "cost", "reward", "offered", "completed", "lost", "failed"),
    *("latency_p95", "reconfigurations", "decision_time"),
    *(f"predicted_{name}" for name in (*PREDICTED, "dropped")),
    *("refused", "by_expert", "warnings", "service_factor", "lateness_p99", "cpu_percent", "beside"),
    *("replicas", "start", "seconds", "seed"),
]
"""Of ``study.csv``, see :func:`study_table`."""

_KEPT = [*COLUMNS, "problem", "purpose", "began", "ended"]


class LiveCell(NamedTuple):
    """A pipeline under a stretch of load, and what runs there.

    Attributes:
        pipeline: with the profile that its replicas take the time of.
        objective: of QoS and reward, and of the policies.
        stretch: name of the load, and raw index in the trace of the first second that policies decide for.
        seconds: length of the stretch, a multiple of the interval.
        lead: seconds of load before the first decision.
        timelines: folder for the intervals of every run.
        work: folder for the files of the processes; every run has its own there.
        runs: policy and seed of every run.
        purpose: :data:`STUDY`, :data:`ALONE` or :data:`BESIDE`.
    """

    pipeline: Pipeline
    objective: Objective
    stretch: Cycle
    seconds: int
    lead: int
    timelines: Path
    work: Path
    runs: tuple[tuple[str, int], ...]
    purpose: str = STUDY

    @property
    def key(self) -> dict[str, Any]:
        """What tells this cell from others; ``problem`` is another number for another profile, objective or lead."""
        names = {"pipeline": self.pipeline.name, "load": self.stretch.name, "start": self.stretch.start}
        problem = zlib.crc32(repr((self.pipeline, self.objective, self.lead)).encode())
        return names | {"seconds": self.seconds, "problem": problem, "purpose": self.purpose}

    def name(self, policy: str, seed: int) -> str:
        """Name of the files of a run."""
        words = "-".join(map(str, (*self.key.values(), policy_label(policy), seed)))
        return words.replace(" ", "-")


def live_stretches(trace: Trace, cycles: Sequence[Cycle], seconds: int, lead: int, interval: int) -> list[Cycle]:
    """Find the stretch of each cycle whose load varies most: the first minutes of a cycle may come before its burst.

    Args:
        trace: the workload.
        cycles: of it.
        seconds: length of a stretch; with 1200 it is the whole cycle.
        lead: seconds of load before it; they may lie before the cycle.
        interval: seconds between two decisions.

    Returns:
        The cycles, each from the first second of its stretch on.

    Raises:
        ValueError: if a stretch is longer than a cycle, or is no multiple of the interval.
    """
    if not 0 < seconds <= CYCLE_SECONDS or seconds % interval:
        raise ValueError(
            f"a stretch of {seconds} s must be a multiple of the interval of {interval} s and at most "
            f"{CYCLE_SECONDS} s, as long as a cycle; change the length"
        )
    found = []
    for cycle in cycles:
        start = trace.position(cycle.start)
        counts = trace.counts[start - lead : start + CYCLE_SECONDS]
        first = start + most_varied_window(counts, lead, seconds, 0, int(counts.max()), interval)
        found.append(Cycle(cycle.name, int(trace.raw_index[first])))
    return found


def live_cells(
    pipelines: Sequence[Pipeline],
    objective: Objective,
    stretches: Sequence[Cycle],
    seconds: int,
    lead: int,
    places: tuple[Path, Path],
    policies: Sequence[str],
    seed: int = 0,
) -> list[LiveCell]:
    """List what to run: every policy on every pipeline under every stretch, in a cell of its own.

    Args:
        pipelines: of the catalogue, or others with a profile.
        objective: that they share.
        stretches: of :func:`live_stretches`.
        seconds: their length.
        lead: seconds of load before each.
        places: folders for the timelines, and for the files of the processes.
        policies: names of policies that ship, or ``module:Class``.
        seed: of the traffic.
    """
    return [
        LiveCell(pipeline, objective, stretch, seconds, lead, *places, ((policy, seed),))
        for pipeline, stretch, policy in product(pipelines, stretches, policies)
    ]


def run_live_cell(setting: Setting, cell: LiveCell) -> list[dict[str, Any]]:
    """Run the policies of a cell one after the other; write their timelines and return a row for each."""
    return [_run(replace(setting, objective=cell.objective), cell, *run) for run in cell.runs]


def _run(setting: Setting, cell: LiveCell, policy: str, seed: int) -> dict[str, Any]:
    """Run a policy on the plane and in the simulator, from the same configuration and under the same requests."""
    pipeline, label, name = cell.pipeline, policy_label(policy), cell.name(policy, seed)
    site = LiveSite(EMULATED, cell.work / name)
    start = setting.trace.position(cell.stretch.start)
    counts = setting.trace.counts[start - cell.lead : start + cell.seconds]
    traffic = Traffic(counts, cell.lead, site.samples(pipeline.name), seed)
    initial = first_configuration(pipeline, cell.stretch, setting)

    def run_at(place: LiveSite) -> LiveRun:
        built = {label: setting.policy(policy, pipeline, seed, place.backend == "simulated")}
        return run_policies(place, pipeline, initial, built, setting, traffic)[0][label]

    psutil.cpu_percent()  # the next call tells the mean from here on
    began = time.time()
    measured = run_at(site)
    require_useful({label: summarise_run(measured)})
    times = {"cpu_percent": psutil.cpu_percent(), "began": began, "ended": time.time()}
    predicted = run_at(replace(site, backend="simulated"))
    runs = {"measured": measured, "predicted": predicted}
    tables = [live_timeline(pipeline, run).assign(kind=kind) for kind, run in runs.items()]
    known: dict[str, Any] = {"pipeline": pipeline.name, "cycle": cell.stretch.name, "policy": label, "seed": seed}
    with written_whole(cell.timelines / f"{name}.csv") as unfinished:
        pd.concat(tables).assign(**known).to_csv(unfinished, index=False, float_format="%.6g")
    run = {"policy": label, "seed": seed, "replicas": EMULATED}
    return cell.key | run | times | run_figures(pipeline, measured, predicted)


def run_figures(pipeline: Pipeline, measured: LiveRun, predicted: LiveRun) -> dict[str, Any]:
    """Figures of a run and of its prediction, by the names of :data:`COLUMNS`.

    Args:
        pipeline: that ran.
        measured: the run.
        predicted: the same in the simulator.
    """
    summary, expected = summarise_run(measured), summarise_run(predicted)
    requests = summary["requests"]
    failed = sum(requests[outcome] for outcome in ("rejected", "dropped", "failed")) - requests["lost"]
    return {
        **_shared_figures(measured, summary),
        **{f"predicted_{name}": value for name, value in _shared_figures(predicted, expected).items()},
        "predicted_dropped": expected["requests"]["dropped"],
        **{name: requests[name] for name in ("offered", "completed")},
        "failed": failed,
        "lost": requests["offered"] - requests["completed"] - failed,
        "decision_time": sum(step.decision_seconds for step in measured.steps),
        "by_expert": summary["by_expert"],
        **{name: len(summary[name]) for name in ("refused", "warnings")},
        "service_factor": service_factor(pipeline, measured.steps),
        "lateness_p99": requests["lateness_p99"],
    }


def _shared_figures(run: LiveRun, summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures :data:`PREDICTED` of a run, on the plane or in the simulator."""
    scores = {name: summary[name] for name in ("qos", "cost", "reward")}
    latency, changes = latency_quantile(run, 0.95), summary["changes"]["reconfigurations"]
    return scores | {"latency_p95": latency, "reconfigurations": changes}


def latency_quantile(run: LiveRun, share: float) -> float:
    """Quantile of the latency in seconds of the requests that were completed, of those since the first decision.

    Latency counts from the scheduled time of a request. It is NaN where none was completed.
    """
    if run.records is None:
        latencies = np.concatenate(
            [each.interval.latencies[0, : int(each.interval.completed[0])] for each in run.steps]
        )
    else:
        since = run.begin - run.records.attrs["started"]
        done = run.records[(run.records["outcome"] == COMPLETED) & (run.records["scheduled"] >= since)]
        latencies = (done["finished"] - done["scheduled"]).to_numpy()
    return float(np.quantile(latencies, share)) if len(latencies) else float("nan")


def service_factor(pipeline: Pipeline, steps: Sequence[Step]) -> float:
    """How long the gateway waited for the replicas' answers to batches, as a multiple of the profile; NaN without any.

    A busy machine makes emulated replicas wake up late, and answers take longer than the profile.
    """
    profile = np.nan_to_num(pipeline.tables.service_time, posinf=0.0)
    known = [step.interval for step in steps if step.interval.busy.shape[2]]
    expected = sum(float((profile * each.batches[0]).sum()) for each in known)
    return sum(float(each.busy.sum()) for each in known) / expected if expected else float("nan")


def evaluate_live(setting: Setting, cells: Sequence[LiveCell], folder: Path, side_by_side: int) -> pd.DataFrame:
    """Run every cell, less what is finished; see :func:`opd.study.analysis.kept_rows.run_missing`.

    Args:
        setting: trace, forecaster and what else all runs share.
        cells: to run; those with one run each leave a row as soon as it is finished.
        folder: for ``rows.csv`` with the finished runs.
        side_by_side: runs at the same time.

    Returns:
        A row a run, in the order of the cells.
    """
    return run_missing(run_live_cell, setting, cells, _KEPT, folder / "rows.csv", side_by_side)


def evaluate_alone_and_beside(setting: Setting, cell: LiveCell, folder: Path, side_by_side: int) -> pd.DataFrame:
    """Repeat the run of a cell with several seeds: first one after the other, then all at the same time.

    Args:
        setting: as for :func:`evaluate_live`.
        cell: with one run.
        folder: likewise.
        side_by_side: number of repetitions; with 1 there is nothing to compare.

    Returns:
        A row a run, with the purposes :data:`ALONE` and :data:`BESIDE`.
    """
    ((policy, first),) = cell.runs
    if side_by_side < 2:
        return pd.DataFrame(columns=_KEPT)
    repeated = [cell._replace(runs=((policy, first + number),)) for number in range(side_by_side)]
    tables = [
        evaluate_live(setting, [each._replace(purpose=purpose) for each in repeated], folder, workers)
        for purpose, workers in ((ALONE, 1), (BESIDE, side_by_side))
    ]
    return pd.concat(tables, ignore_index=True)


def runs_beside(rows: pd.DataFrame) -> np.ndarray:
    """(R,) mean number of the other runs that took place during each, from their times."""
    began, ended = rows["began"].to_numpy(), rows["ended"].to_numpy()
    shared = np.minimum(ended, ended[:, None]) - np.maximum(began, began[:, None])
    return (shared.clip(min=0.0).sum(axis=1) - (ended - began)) / (ended - began)


def study_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The table of the study.

    Args:
        rows: of :func:`evaluate_live` or :func:`evaluate_alone_and_beside`.

    Returns:
        :data:`COLUMNS`. ``qos``, ``cost`` (cores) and ``reward`` are means over the time under load. ``offered``
        requests, those before the first decision included, were ``completed``, ``failed`` (rejected, dropped or
        answered with an error) or ``lost``: these had no answer when all others had ended. ``latency_p95``, seconds,
        is that of the requests since the first decision. ``decision_time`` is H of Alg. 1, seconds spent deciding in
        the whole run. ``service_factor`` is what :func:`service_factor` returns, ``lateness_p99`` the seconds by which
        requests were sent too late, ``cpu_percent`` how busy the cores of the machine were, and ``beside`` the mean
        number of other runs meanwhile.
    """
    return rows.assign(beside=runs_beside(rows))[COLUMNS]


def read_timelines(cells: Sequence[LiveCell]) -> pd.DataFrame:
    """Read the intervals of the runs of cells.

    Returns:
        Columns of :func:`opd.live.runs.live_timeline`, ``pipeline``, ``cycle``, ``policy``, ``seed``, and ``kind``,
        which is ``measured`` or ``predicted``.

    Raises:
        FileNotFoundError: if the file of a run that is kept is gone.
    """
    paths = [cell.timelines / f"{cell.name(*run)}.csv" for cell in cells for run in cell.runs]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(
            f"{missing[0]} is missing, although its run is kept; delete rows.csv beside its folder and run again"
        )
    return pd.concat([pd.read_csv(path) for path in paths], ignore_index=True)
