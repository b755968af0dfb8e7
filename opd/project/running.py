"""Serving projects on this machine, and load for one."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.control import AGENT, policy_label
from opd.control.arbiter import Arbiter
from opd.control.factory import KnownLoad, agent_kind, build_policy
from opd.control.policies import Policy
from opd.control.sharing import Shared, StaticSplit, division_of
from opd.control.warm_up import warm_up
from opd.live.load import offer
from opd.live.serve import Served, serve
from opd.pipeline import Pipeline
from opd.project.folder import PARAMETERS_FILE, Project, ProjectError
from opd.serving.emulation.names import SUFFIX
from opd.serving.emulation.requests import emulated_samples
from opd.serving.samples import read_samples
from opd.serving.store import store_url
from opd.solvers import IpaParameters
from opd.view.model import View
from opd.workload.check_trace import trace_use, use_of
from opd.workload.forecast import Forecaster, RecentMaximum
from opd.workload.futures import Futures
from opd.workload.quantile_futures import futures_of
from opd.workload.trace import load_trace

ADDRESS_FILE = "address.json"
"""File in :func:`serving_folder` with the address of the pipeline that is served."""


class Decider(NamedTuple):
    """What decides about a pipeline.

    Attributes:
        name: of the policy.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        futures: loads that may come, as far as the forecaster knows.
        notes: how an agent was trained, and what is replaced because it has not been trained.
    """

    name: str
    policy: Policy
    forecast: Callable[[np.ndarray], float]
    futures: Futures
    notes: tuple[str, ...]


def decider(project: Project, pipeline: Pipeline, name: str | None, seed: int = 0, simulated: bool = False) -> Decider:
    """Build a policy and the forecast that it decides by.

    Args:
        project: the project, whose agent and forecaster are used if they were trained.
        pipeline: its pipeline.
        name: of the policy, or ``module:Class``; by default the agent.
        seed: of the policy.
        simulated: whether it runs in the simulator; elsewhere a planner's time is limited.

    Raises:
        ValueError: if there is no such policy, or it has not been trained.
    """
    notes, chosen = [], name or AGENT
    agent = project.root / "models" / "agents" / pipeline.name / f"{policy_label(chosen)}-0.npz"
    known = agent if agent.is_file() else None
    file = project.root / "models" / "forecaster.npz"
    forecaster: Forecaster | RecentMaximum = RecentMaximum()
    if file.is_file():
        forecaster = Forecaster.load(file, int(project.parameters()["damping"]))
    else:
        notes.append("no forecaster was trained; the largest load of the last 20 s is the forecast")
    common = pipeline, project.objective, project.simulation(), IpaParameters(), seed, known
    kind, futures = chosen if known is None else agent_kind(chosen, known), futures_of(forecaster)
    policy = build_policy(kind, *common, simulated=simulated, load=KnownLoad(futures))
    if policy.origin:
        hint = "" if known else "; `opd train` fine-tunes it for this one"
        notes.insert(0, f"the agent was {policy.origin}{hint}")
    return Decider(chosen, policy, forecaster.predict, futures, tuple(notes))


class Placed(NamedTuple):
    """A project on a device: its pipeline with the cores of the device, and what decides about it."""

    project: Project
    pipeline: Pipeline
    decider: Decider


def placed_together(projects: Sequence[Project], policy: str | None, cores: int | None = None) -> list[Placed]:
    """Place projects on one device.

    Args:
        projects: at least one.
        policy: decides about each; as for :func:`decider`.
        cores: of the device; by default those that the pipeline files state.

    Raises:
        ValueError: as :func:`decider`.
    """
    pipelines = [project.pipeline() for project in projects]
    there = [replace(pipeline, capacity=cores or pipeline.capacity) for pipeline in pipelines]
    return [Placed(*both, decider(*both, policy)) for both in zip(projects, there, strict=True)]


def division_of_projects(placed: Sequence[Placed]) -> Arbiter | StaticSplit:
    """:func:`opd.control.sharing.division_of` projects."""
    return division_of([Shared(p, project.objective, project.simulation(), d.futures) for project, p, d in placed])


def serve_projects(
    placed: Sequence[Placed], division: Arbiter | StaticSplit, standbys: int = 0, record: Path | None = None
) -> Generator[View, None, None]:
    """Serve projects until the iterator is closed; the address of each is in :data:`ADDRESS_FILE` meanwhile.

    The replicas of a project that is emulated are emulated. A ``record`` gets every decision.

    Yields:
        The view of each once all serve, and after every interval.
    """
    division.warm_up()
    served, files = [], {}
    for project, pipeline, chosen in placed:
        warm_up(pipeline, chosen.policy, chosen.forecast)
        folder, parameters = serving_folder(project), project.simulation()
        folder.mkdir(parents=True, exist_ok=True)
        files[served_name(project)] = folder / ADDRESS_FILE
        decides = chosen.policy, chosen.forecast, project.objective, parameters
        store = store_url(project.root)
        served.append(Served(pipeline, *decides, folder, store, project.emulated, record, project.root))
    views, written = serve(served, division, standbys), dict.fromkeys(files, "")
    try:
        for view in views:
            address = json.dumps({"address": view.address, "model": view.pipeline}) + "\n"
            if address != written[view.pipeline]:  # a disk that fills up later ends nothing
                files[view.pipeline].write_text(address)
                written[view.pipeline] = address
            yield view
    finally:
        views.close()
        for file in files.values():
            file.unlink(missing_ok=True)


def served_name(project: Project) -> str:
    """Name under which the pipeline of a project answers requests."""
    return project.file.name + SUFFIX if project.emulated else project.file.name


def serving_folder(project: Project) -> Path:
    """Folder of the processes of a project that is served; each emulated pipeline has its own."""
    folder = project.root / ".cache" / "serving"
    return folder / served_name(project) if project.emulated else folder


def served_address(project: Project) -> str:
    """Return ``host:port`` where ``opd serve`` answers requests for a project.

    Raises:
        ProjectError: if it is not served here.
    """
    file = serving_folder(project) / ADDRESS_FILE
    if not file.is_file():
        name = project.shipped or project.root.name
        raise ProjectError(
            f"{served_name(project)} is not served on this machine; start `opd serve {name}"
            f"{' --emulated' if project.emulated else ''}` in another terminal, or name an --address"
        )
    return str(json.loads(file.read_text())["address"])


def load_counts(project: Project, trace: str | None, start: int, seconds: int) -> np.ndarray:
    """(T,) requests in each second: a stretch of a trace, divided by its damping.

    Args:
        project: the project.
        trace: source; by default the project's. Its damping is that which it would have as the project's.
        start: first second of the stretch; negative for the begin of the test split.
        seconds: length.
    """
    parameters = project.root / PARAMETERS_FILE
    use = use_of(parameters, trace) if trace else trace_use(parameters)
    loaded = load_trace(trace or use.trace, use.damping)
    first = loaded.split("test").start if start < 0 else start
    counts = loaded.counts[first : first + seconds]
    if len(counts) < seconds:
        raise ProjectError(f"the trace ends {len(counts)} s after second {first}; ask for at most so many --seconds")
    return counts


def steady_counts(rate: float, seconds: int) -> np.ndarray:
    """(T,) requests in each second at a steady rate, which need not be a whole number."""
    return np.diff(np.floor(rate * np.arange(seconds + 1)).astype(np.int64))


def send_load(project: Project, address: str, counts: np.ndarray, output: Path, seed: int = 0) -> pd.DataFrame:
    """Send a load of the project's samples, and write a record of every request; Ctrl-C ends it early.

    An emulated pipeline gets the requests of :func:`opd.serving.emulation.requests.emulated_samples`.

    Returns:
        The records of :func:`opd.live.load.offer`.
    """
    samples, name = read_samples(_samples_file(project)), served_name(project)

    async def send() -> pd.DataFrame:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await offer(address, name, counts, samples, seed, stop=stop)

    records = asyncio.run(send())
    output.parent.mkdir(parents=True, exist_ok=True)
    records.to_parquet(output)
    return records


def _samples_file(project: Project) -> Path:
    """File of the requests that are sent to a project."""
    if project.emulated:
        return emulated_samples(serving_folder(project))
    if project.file.samples is None:
        raise ProjectError(f"{project.pipeline_path} names no samples; requests are drawn from them")
    return project.root / project.file.samples
