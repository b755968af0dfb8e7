"""Benchmark of what stands in front of the replicas: ``python -m opd.live.gateway_benchmark --old FOLDER``.

The gateway is measured beside the layout that it replaced, a router and a queue server for each stage. Its code is
taken from ``FOLDER``, a checkout of a commit that still has it, such as ``git worktree add FOLDER 0699035``. Both
layouts run at the same time and use the same replicas, which answer at once (:mod:`opd.live.echo_replicas`). Every
request is sent three times in turn: directly from replica to replica, through the old layout, and through the gateway;
so a busy machine slows all three alike. Pauses in between let the processes fall asleep, as under light load.

``gateway.csv`` has CPU milliseconds a request of the processes of a layout, and the milliseconds that it adds to
direct calls. ``gateway_load.csv`` has what they carry with many requests at once, per second of CPU time: a gateway
uses one core at most.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import psutil
import typer
from mlserver.grpc.dataplane_pb2 import ModelInferRequest

from opd.host.progress import progress_bar
from opd.host.waiting import wait_until
from opd.serving import supervisor
from opd.serving.client import Client, complete
from opd.serving.processes import ServerProcess, StartError, hold_port, stop_all
from opd.serving.settings import GatewaySettings, GatewayStage, ServerSettings
from opd.serving.tensors import message_of

PIPELINE = "echo"
TIMEOUT = 30.0
START_SECONDS = 120.0
STOP_SECONDS = 10.0

POINTS = [*((stages, 1) for stages in range(1, 7)), *((2, replicas) for replicas in (2, 5, 10, 20, 40))]
"""Numbers of stages and of replicas of each stage."""

PAUSE_SECONDS = 0.05
"""Before every single request."""

IDLE_SECONDS = 5.0
"""Without requests, in which the CPU time is measured that processes take when idle."""

CONCURRENCY = 32
"""Requests at once when the load is measured."""


class Layout(NamedTuple):
    """Processes in front of the replicas; requests go to the first."""

    name: str
    processes: list[ServerProcess]

    def cpu_seconds(self) -> float:
        """CPU seconds that the processes have used so far."""
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return sum(each.user + each.system for each in times)


# ------------------------------------------------------------------------------------------------------ processes


@contextmanager
def echo_replicas(stages: int, replicas: int) -> Iterator[dict[str, list[str]]]:
    """Start the replicas; yields their addresses by task.

    Raises:
        StartError: if they are not ready in time.
    """
    holders = [_Holder() for _ in range(stages * replicas)]
    ports = [hold_port(holder) for holder in holders]
    command = [sys.executable, "-m", "opd.live.echo_replicas", *map(str, ports)]
    process = supervisor.start(command)
    try:
        addresses = [f"127.0.0.1:{port}" for port in ports]
        if not wait_until(lambda: complete(_is_ready(addresses[-1])), START_SECONDS):
            raise StartError(f"the {len(holders)} replicas are not ready after {START_SECONDS:g} s")
        yield {f"stage{n}": addresses[n * replicas : (n + 1) * replicas] for n in range(stages)}
    finally:
        supervisor.stop(process, STOP_SECONDS)


class _Holder:
    """Owner of a held port."""


async def _is_ready(address: str) -> bool:
    client = Client(address, "any")
    try:
        return await client.ready(1.0)
    finally:
        await client.close()


def start_gateway(addresses: Mapping[str, Sequence[str]], folder: Path) -> Layout:
    """Start a gateway in front of replicas."""
    stages = [GatewayStage(task=task) for task in addresses]
    gateway = ServerProcess("gateway", GatewaySettings(name=PIPELINE, stages=stages, objective=1.0), folder)
    _wait([gateway])
    for task, replicas in addresses.items():
        gateway.http("PUT", f"/stages/{task}", _desired(replicas))
    return Layout("gateway", [gateway])


def start_old(addresses: Mapping[str, Sequence[str]], folder: Path, code: Path) -> Layout:
    """Start a router and queue servers with the code in ``code``."""
    with _code_of(code):
        queues = [_old(f"queue-{task}", "QueueRuntime", task, {"task": task}, folder) for task in addresses]
        stages = [{"task": queue.settings.name, "address": queue.grpc_address} for queue in queues]
        router = _old("router", "RouterRuntime", PIPELINE, {"stages": stages, "objective": 1.0}, folder)
    _wait([router, *queues])
    for queue, replicas in zip(queues, addresses.values(), strict=True):
        queue.http("PUT", "/stage", _desired(replicas))
    return Layout("router and queues", [router, *queues])


def _old(name: str, runtime: str, model: str, parameters: dict[str, object], folder: Path) -> ServerProcess:
    kind, parameters = f"opd.serving.runtimes.{runtime}", {"pipeline": PIPELINE, **parameters}
    return ServerProcess(name, ServerSettings(kind=kind, name=model, parameters=parameters), folder)


def _desired(replicas: Sequence[str]) -> dict[str, object]:
    endpoints = [{"name": address, "variant": "echo", "address": address} for address in replicas]
    return {"batch_size": 1, "replicas": endpoints}


def _wait(processes: Sequence[ServerProcess]) -> None:
    """Wait until all are ready.

    Raises:
        StartError: naming the one that is not.
    """
    wait_until(lambda: all(process.ready() or not process.alive for process in processes), START_SECONDS)
    for process in processes:
        if not process.alive or not process.ready():
            raise StartError(f"{process.name} does not serve: {process.failure_reason()}")


@contextmanager
def _code_of(folder: Path) -> Iterator[None]:
    """Let Python processes that are started in the block import from a folder rather than from here."""
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": str(folder.resolve()), "PYTHONSAFEPATH": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


# ------------------------------------------------------------------------------------------------------ measuring


def measure_point(stages: int, replicas: int, requests: int, old: Path | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure the layouts in front of ``stages`` with ``replicas`` each.

    Args:
        stages: of the pipeline.
        replicas: of each stage.
        requests: to send through each layout one at a time, and by each of :data:`CONCURRENCY` callers at once.
        old: checkout with the code of the old layout; without it only the gateway is measured.

    Returns:
        Rows of ``gateway.csv``, one for each layout, and of ``gateway_load.csv``.
    """
    with ExitStack() as started:
        folder = Path(started.enter_context(TemporaryDirectory()))
        addresses = started.enter_context(echo_replicas(stages, replicas))
        layouts = [] if old is None else [start_old(addresses, folder, old)]
        for layout in layouts:
            started.callback(stop_all, layout.processes)
        layouts.append(start_gateway(addresses, folder))
        started.callback(stop_all, layouts[-1].processes)
        single = complete(_one_at_a_time(layouts, addresses, requests))
        load = pd.concat([complete(_at_once(layout, requests)) for layout in layouts])
    return single.assign(stages=stages, replicas=replicas), load.assign(stages=stages, replicas=replicas)


async def _one_at_a_time(
    layouts: Sequence[Layout], addresses: Mapping[str, Sequence[str]], requests: int
) -> pd.DataFrame:
    direct = [Client(replicas[0], task) for task, replicas in addresses.items()]
    routed = [Client(layout.processes[0].grpc_address, PIPELINE) for layout in layouts]
    try:
        seconds = np.zeros((requests, 1 + len(layouts)))
        await _in_turn(direct, routed, np.zeros((requests // 5 + 1, 1 + len(layouts))))  # warms up
        idle, idle_seconds = await _cpu_of(layouts, asyncio.sleep(IDLE_SECONDS))
        busy, busy_seconds = await _cpu_of(layouts, _in_turn(direct, routed, seconds))
    finally:
        for client in (*direct, *routed):
            await client.close()
    added = 1e3 * (seconds[:, 1:] - seconds[:, :1])
    return pd.DataFrame(
        {
            "layout": [layout.name for layout in layouts],
            "cpu_ms": 1e3 * (busy - idle * busy_seconds / idle_seconds) / requests,
            "added_p50_ms": np.quantile(added, 0.5, axis=0),
            "added_p95_ms": np.quantile(added, 0.95, axis=0),
        }
    )


async def _cpu_of(layouts: Sequence[Layout], work: Awaitable[None]) -> tuple[np.ndarray, float]:
    """Return the CPU seconds of each layout during some work, and the seconds that it took."""
    begin, before = time.perf_counter(), np.array([layout.cpu_seconds() for layout in layouts])
    await work
    return np.array([layout.cpu_seconds() for layout in layouts]) - before, time.perf_counter() - begin


async def _in_turn(direct: Sequence[Client], routed: Sequence[Client], seconds: np.ndarray) -> None:
    """Fill ``seconds`` with the duration of each request: through the replicas one by one, and through each layout."""
    for number in range(len(seconds)):
        for way, clients in enumerate((direct, *([client] for client in routed))):
            request = _request()
            await asyncio.sleep(PAUSE_SECONDS)
            begin = time.perf_counter()
            for client in clients:
                await client.infer(request, 0.0, TIMEOUT)
            seconds[number, way] = time.perf_counter() - begin


async def _at_once(layout: Layout, requests: int) -> pd.DataFrame:
    """Keep :data:`CONCURRENCY` requests under way until ``requests`` times as many are answered."""
    client = Client(layout.processes[0].grpc_address, PIPELINE)

    async def caller() -> None:
        for _ in range(requests):
            await client.infer(_request(), 0.0, TIMEOUT)

    try:
        begin, cpu = time.perf_counter(), layout.cpu_seconds()
        await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
        seconds, cpu = time.perf_counter() - begin, layout.cpu_seconds() - cpu
    finally:
        await client.close()
    answered = requests * CONCURRENCY
    row = {
        "layout": layout.name,
        "requests": answered,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "requests_per_cpu_second": answered / cpu,
    }
    return pd.DataFrame([row])


def _request() -> ModelInferRequest:
    return message_of({"payload": [b"x" * 1000]})


def main(
    old: Annotated[Path | None, typer.Option(help="checkout with the code of router and queues")] = None,
    output: Annotated[Path, typer.Option(help="folder for gateway.csv and gateway_load.csv")] = Path("reports/live"),
    requests: Annotated[int, typer.Option(min=5, help="to send at each point")] = 400,
    points: Annotated[int, typer.Option(min=1, help="measure only the first points")] = len(POINTS),
) -> None:
    """Measure CPU time and latency that a gateway adds, by stages and replicas, beside the layout it replaced."""
    measured = [
        measure_point(stages, replicas, requests, old)
        for stages, replicas in progress_bar(POINTS[:points], desc="points")
    ]
    single, load = (pd.concat(tables, ignore_index=True) for tables in zip(*measured, strict=True))
    columns = ["layout", "stages", "replicas", "cpu_ms", "added_p50_ms", "added_p95_ms"]
    output.mkdir(parents=True, exist_ok=True)
    single[columns].round(3).to_csv(output / "gateway.csv", index=False)
    load = load[["layout", "stages", "replicas", "requests", "seconds", "cpu_seconds", "requests_per_cpu_second"]]
    load.round(3).to_csv(output / "gateway_load.csv", index=False)
    print(single[columns].round(3).to_string(index=False))
    print(load.round(3).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
