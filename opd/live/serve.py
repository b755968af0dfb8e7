"""A pipeline served on this machine for real callers: decided every interval until it is stopped, with a live status.

.. code-block:: python

    show(serve(pipeline, policy, forecast, objective, parameters, folder))
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from opd.control.loop import Step, run
from opd.control.policies import Policy
from opd.control.warm_up import warm_up
from opd.live.run_log import collected_warnings
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Configuration, Pipeline
from opd.serving.emulation.pipeline import emulated_pipeline, is_emulated
from opd.serving.local import LocalBackend


@dataclass(frozen=True)
class ServingStatus:
    """State of a served pipeline after an interval.

    Attributes:
        pipeline: its definition.
        address: ``host:port`` for requests.
        configuration: that runs.
        origin: how the agent that decides was trained; empty for other policies.
        step: the last interval and its decision; None before the first.
        warnings: since the last status, such as replicas that ended.
    """

    pipeline: Pipeline
    address: str
    configuration: Configuration
    origin: str = ""
    step: Step | None = None
    warnings: tuple[str, ...] = ()


def serve(
    pipeline: Pipeline,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    objective: Objective,
    parameters: SimulationParameters,
    folder: Path,
    initial: Configuration | None = None,
    store: str | None = None,
    standbys: int = 0,
    emulated: bool = False,
) -> Generator[ServingStatus, None, None]:
    """Start a pipeline on this machine and let a policy decide every interval until the iterator is closed.

    Closing it, or Ctrl-C, refuses new requests, answers those that are running, and ends every process.

    Args:
        pipeline: its variants are in the model store.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of the reward.
        parameters: interval, batch timeout and maximum age of requests.
        folder: for settings, logs and metrics of the processes.
        initial: first configuration; by default the smallest.
        store: URL of the model store; by default that of the project.
        standbys: processes that each stage keeps warm.
        emulated: serve it by emulated replicas, under a name that says so; the policy decides as for real ones.

    Yields:
        The status as soon as the pipeline serves, and after every interval.

    Raises:
        StartError: if the pipeline does not start; nothing is left running.
        AlreadyControlledError: if another process controls it in ``folder``.
    """
    first = pipeline.smallest_configuration() if initial is None else initial
    served = emulated_pipeline(pipeline) if emulated else pipeline
    with (
        collected_warnings(show=False) as warnings,
        LocalBackend(served, parameters, first, folder, store, standbys) as backend,
    ):
        backend.begin_run()  # requests may arrive from now on
        origin = getattr(policy, "origin", "")
        yield ServingStatus(served, backend.address, first, origin, None, _taken(warnings))
        warm_up(pipeline, policy, forecast)
        for step in run(backend, served, policy, forecast, objective, sys.maxsize):
            yield ServingStatus(served, backend.address, step.configuration, origin, step, _taken(warnings))


def _taken(messages: list[str]) -> tuple[str, ...]:
    """Take all messages out of a list that other threads append to."""
    return tuple(messages.pop(0) for _ in range(len(messages)))


def show(statuses: Generator[ServingStatus, None, None], console: Console | None = None) -> None:
    """Show the status of a served pipeline in the terminal until Ctrl-C or SIGTERM; then drain it and return.

    A second Ctrl-C ends the processes without waiting for running requests.

    Args:
        statuses: of :func:`serve`.
        console: where to write; the terminal by default. Without a terminal every status is printed once.
    """
    screen = console or Console()
    live = Live(console=screen, auto_refresh=False, transient=True)

    def draw(status: ServingStatus) -> None:
        for warning in status.warnings:
            screen.print(Text(warning, style="yellow"), soft_wrap=True)
        live.update(render(status), refresh=True)
        if not screen.is_terminal:
            screen.print(render(status), soft_wrap=True)

    with live:
        follow(statuses, draw)
    screen.print("stopped: running requests were answered, and every process has ended")


def follow(statuses: Generator[ServingStatus, None, None], tell: Callable[[ServingStatus], None]) -> None:
    """Pass on every status of a served pipeline until Ctrl-C or SIGTERM; then drain it and return.

    A second Ctrl-C ends the processes without waiting for running requests.
    """
    with _interruptible(), closing(statuses), suppress(KeyboardInterrupt):
        for status in statuses:
            tell(status)


def status_facts(status: ServingStatus) -> dict[str, Any]:
    """Plain data of a status: address, configuration, warnings, and of the last interval load, latency and decision."""
    chosen = status.pipeline.selected(status.configuration)
    tasks = [task.name for task in status.pipeline.tasks]
    facts = {
        "pipeline": status.pipeline.name,
        "emulated": is_emulated(status.pipeline.name),
        "address": status.address,
        "agent": status.origin,
        "stages": [
            {"task": task, "variant": variant.name, "replicas": stage.replicas, "batch_size": stage.batch_size}
            | {"service_factor": factor, "service_deviation": deviation}
            for task, (variant, stage), (factor, deviation) in zip(tasks, chosen, _calibration(status), strict=True)
        ],
        "warnings": list(status.warnings),
    }
    if status.step is None:
        return facts
    step, interval = status.step, status.step.interval
    return facts | {
        "seconds": step.span.seconds,
        "offered": float(interval.offered[0]),
        "failed": float(interval.failed[0]),
        "forecast": float(step.predicted_load),
        "latency_mean": float(interval.latency_mean[0]),
        "latency_p99": float(interval.latency_p99[0]),
        "within": float(step.score.within[0]),
        "idle": step.idle,
        "fallback": step.fallback,
        "fallback_reason": step.fallback_reason,
        "refused": step.refused,
    }


def _calibration(status: ServingStatus) -> list[tuple[float, float]]:
    """Service time relative to the profile and its relative deviation for each task; NaN where nothing is known."""
    observation = status.step.observation if status.step else None
    if observation is None or observation.calibration is None:
        return [(np.nan, np.nan)] * len(status.configuration)
    return observation.calibration.of_variants(status.configuration)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt the block like Ctrl-C, which a shell disables for programs in the background."""
    if threading.current_thread() is not threading.main_thread():  # signals are for the main thread
        yield
        return
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------------ rendering


def render(status: ServingStatus) -> RenderableType:
    """Draw a status: load, latency against the service level, the last decision, and a table of the stages."""
    lines = [Text(f"{status.pipeline.name} at {status.address}", style="bold")]
    if is_emulated(status.pipeline.name):
        lines.append(Text("replicas   emulated: they take the profiled times and no cores", style="yellow"))
    if status.pipeline.assumed_note:
        lines.append(Text(f"profile    {status.pipeline.assumed_note}", style="yellow"))
    if status.origin:
        lines.append(Text(f"agent      {status.origin}"))
    if status.step is None:
        lines.append(Text("serving; warming up for the first decision"))
    elif status.step.idle and status.step.interval.offered[0] == 0:
        lines.append(Text("no requests yet; the configuration stays until the first one arrives"))
    else:
        lines += [_load(status.step), _latency(status.pipeline, status.step), _decision(status.step)]
    return Group(*lines, _stages(status))


def _load(step: Step) -> Text:
    offered, failed = step.interval.offered[0], step.interval.failed[0]
    rate = _number(offered / step.span.seconds, "requests/s")
    forecast = _number(step.predicted_load, "requests/s")
    text = Text(f"load       {rate}, forecast maximum {forecast}")
    if failed > 0:
        text.append(f", {failed:.0f} of {offered:.0f} requests got no answer", style="red")
    return text


def _latency(pipeline: Pipeline, step: Step) -> Text:
    level, within = pipeline.service_level, step.score.within[0]
    mean, p99 = step.interval.latency_mean[0], step.interval.latency_p99[0]
    text = Text(f"latency    mean {_number(1e3 * mean, 'ms')}, p99 {_number(1e3 * p99, 'ms')}; ")
    met = within >= level.percentile / 100
    return text.append(level.stated(within), style="" if np.isnan(within) else "green" if met else "red")


def _decision(step: Step) -> Text:
    if step.idle:
        return Text("decision   none before the first request, configuration kept")
    because = f" ({step.fallback_reason})" if step.fallback_reason else ""
    by = f" by the fallback policy{because}" if step.fallback else ""
    text = Text(f"decision   {1e3 * step.decision_seconds:.0f} ms{by}")
    if step.refused:
        text.append(f", not applied: {step.refused}", style="red")
    elif step.observation is not None:
        changed = step.observation.configuration != step.configuration
        text.append(", configuration changed" if changed else ", configuration kept")
    if step.forecast_failure:
        text.append(f"; {step.forecast_failure}", style="yellow")
    return text


def _stages(status: ServingStatus) -> Table:
    table = Table("stage", "variant")
    for column in ("replicas", "batch size", "waiting", "time / profile"):
        table.add_column(column, justify="right")
    chosen = list(status.pipeline.selected(status.configuration))
    queues = status.step.interval.queue[0] if status.step else np.full(len(chosen), np.nan)
    stages = zip(status.pipeline.tasks, chosen, queues, _calibration(status), strict=True)
    for task, (variant, stage), waiting, (factor, deviation) in stages:
        relative = "?" if np.isnan(factor) else f"{factor:.2f} ± {factor * deviation:.2f}"
        replicas, batch_size = str(stage.replicas), str(stage.batch_size)
        table.add_row(task.name, variant.name, replicas, batch_size, _number(waiting, "").strip(), relative)
    return table


def _number(value: float, unit: str) -> str:
    return "?" if np.isnan(value) else f"{value:.3g} {unit}"
