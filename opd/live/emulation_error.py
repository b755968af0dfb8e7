"""How exactly emulated replicas keep their service times: predicted vs measured, for many replicas in one process.

``python -m opd.live.emulation_error --replicas 40`` prints the table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import pandas as pd
import psutil
import typer

from opd.host.waiting import wait_until
from opd.pipeline import Task, Variant
from opd.profiling.pipelines import load_pipeline
from opd.serving.client import Client, complete
from opd.serving.contents import payload_request
from opd.serving.emulation.host import HostedReplica, emulation_host
from opd.serving.emulation.replica import stated_seconds
from opd.serving.processes import START_SECONDS

CALL_TIMEOUT = 30.0

COLUMNS = ("predicted", "measured", "late", "called")


async def measure_calls(replicas: Sequence[HostedReplica], calls: int, utilisation: float, seed: int) -> pd.DataFrame:
    """Call all replicas at once, each ``calls`` times with random pauses.

    Args:
        replicas: ready.
        calls: of each replica.
        utilisation: share of the time in which each replica works, above 0 and below 1.
        seed: of pauses and batch sizes.

    Returns:
        A row per call: ``predicted``, the service time that was drawn; ``measured``, that which the replica took;
        ``late``, the difference; ``called``, what the caller waited; all in seconds.
    """

    async def call_one(replica: HostedReplica, generator: np.random.Generator) -> list[tuple[float, ...]]:
        client = Client(replica.grpc_address, replica.settings.task)
        rows: list[tuple[float, ...]] = []
        sizes = sorted(replica.settings.latency)
        try:
            for _ in range(calls):
                size = int(generator.choice(sizes))
                mean = replica.settings.mean_seconds(size)
                await asyncio.sleep(generator.exponential(mean * (1 / utilisation - 1)))
                begin = time.perf_counter()
                answer = await client.infer(payload_request([b"emulated"] * size), 0.0, CALL_TIMEOUT)
                called = time.perf_counter() - begin
                predicted, late = stated_seconds(answer)
                rows.append((predicted, predicted + late, late, called))
        finally:
            await client.close()
        return rows

    generators = np.random.default_rng(seed).spawn(len(replicas))
    found = await asyncio.gather(*map(call_one, replicas, generators))
    return pd.DataFrame([row for rows in found for row in rows], columns=list(COLUMNS))


def emulation_error(
    pairs: Sequence[tuple[Task, Variant]], replicas: int, calls: int, utilisation: float = 0.5, seed: int = 0
) -> tuple[pd.DataFrame, float]:
    """Measure replicas of these variants, in turn, in one process.

    Args:
        pairs: task and variant of the replicas.
        replicas: number of replicas.
        calls: of each replica.
        utilisation: see :func:`measure_calls`.
        seed: see :func:`measure_calls`.

    Returns:
        The rows of :func:`measure_calls`, and the cores that the process of the replicas took.

    Raises:
        StartError: if the process does not start.
        TimeoutError: if a replica does not.
    """
    with TemporaryDirectory() as folder, ExitStack() as stack:
        host = stack.enter_context(emulation_host(Path(folder), noise=0.1))
        chosen = [pairs[number % len(pairs)] for number in range(replicas)]
        hosted = [host.replica(f"replica-{n}", "error-emulated", *pair) for n, pair in enumerate(chosen)]
        longest = max(variant.startup_time for _, variant in pairs)
        if not wait_until(lambda: all(each.ready() for each in hosted), longest + START_SECONDS):
            raise TimeoutError(f"{replicas} emulated replicas are not ready after {longest + START_SECONDS:g} s")
        process, begin = psutil.Process(host.process.pid), time.perf_counter()
        before = sum(process.cpu_times()[:2])
        table = complete(measure_calls(hosted, calls, utilisation, seed))
        cores = (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - begin)
    return table, cores


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise the rows of :func:`measure_calls`.

    Returns:
        A row each for what the replica measured and what the caller did: mean predicted and measured milliseconds, the
        relative error of the mean, and mean, p50, p95 and p99 of the difference of single calls in milliseconds.
    """
    rows = {}
    for name in ("measured", "called"):
        late = 1e3 * (table[name] - table["predicted"])
        predicted, measured = 1e3 * table["predicted"].mean(), 1e3 * table[name].mean()
        rows[name] = {
            "predicted_ms": predicted,
            "measured_ms": measured,
            "error": measured / predicted - 1.0,
            "late_mean_ms": late.mean(),
            **{f"late_p{percent}_ms": np.percentile(late, percent) for percent in (50, 95, 99)},
        }
    return pd.DataFrame(rows).T


def main(
    pipeline: Annotated[str, typer.Option(help="whose variants are emulated, in turn")] = "video",
    replicas: Annotated[int, typer.Option(help="number of replicas in one process")] = 40,
    calls: Annotated[int, typer.Option(help="of each replica")] = 30,
    utilisation: Annotated[float, typer.Option(help="share of the time in which each replica works")] = 0.5,
) -> None:
    """Show predicted and measured service times of emulated replicas."""
    tasks = load_pipeline(pipeline).tasks
    pairs = [(task, variant) for task in tasks for variant in task.variants]
    table, cores = emulation_error(pairs, replicas, calls, utilisation)
    print(f"{replicas} emulated replicas in one process, {len(table)} calls; the process took {cores:.2f} cores")
    print(summarise(table).to_string(float_format="%.4g"))


if __name__ == "__main__":
    typer.run(main)
