"""Open-loop load: requests leave at times drawn beforehand, whatever becomes of those before them.

``python -m opd.live.load`` is a process of its own, so that nothing in the controller can slow it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pandas as pd
from tqdm import tqdm

from opd.serving import supervisor
from opd.serving.client import Client
from opd.serving.protocol import COMPLETED, DROPPED, FAILED, REJECTED, outcome_of

NO_ANSWER = "NO_ANSWER"
"""Code of a request that had no answer within its timeout, or when the run was ended."""

PAYLOAD = "payload"
COLUMNS = ("scheduled", "sent", "finished", "outcome", "code", "detail", PAYLOAD, "answer")
TIMEOUT_SECONDS = 20.0
READY_SECONDS = 15.0
GRACE_SECONDS = 5.0
"""Beyond its timeout what is on its way when the load ends has this long; when it is interrupted, only this long."""

POLL_SECONDS = 0.1

DETAIL_LENGTH = 200


class LoadError(RuntimeError):
    """The load cannot be offered; nothing was."""


def arrival_times(counts: np.ndarray, seed: int) -> np.ndarray:
    """When requests are sent: every second's count, uniformly at random inside that second.

    Args:
        counts: (T,) requests of each second, whole numbers.
        seed: the same one draws the same times.

    Returns:
        (sum of ``counts``,) seconds, ascending.

    Raises:
        ValueError: if a count is negative or no whole number.
    """
    whole = np.asarray(counts, dtype=float)
    wrong = ~(np.isfinite(whole) & (whole >= 0) & (whole == np.floor(whole)))
    if wrong.any():
        second = int(np.argmax(wrong))
        raise ValueError(f"count {whole[second]:g} of second {second} must be a whole number of requests, at least 0")
    seconds = np.repeat(np.arange(len(whole)), whole.astype(int))
    return np.sort(seconds + np.random.default_rng(seed).random(len(seconds)))


class _Run:
    """The requests of one run and what became of them."""

    def __init__(self, client: Client, payloads: Sequence[bytes], timeout: float) -> None:
        self._client, self._payloads, self._timeout = client, payloads, timeout
        self._records: list[dict[str, Any]] = []
        self._pending: set[asyncio.Task] = set()
        self._loop = asyncio.get_running_loop()
        self._origin = self._loop.time()
        self._started = time.time()

    def now(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._origin

    async def offer(self, times: np.ndarray, choices: np.ndarray, stop: asyncio.Event) -> None:
        """Send at ``times`` until they end or ``stop`` is set."""
        stopped = asyncio.create_task(stop.wait())
        with tqdm(total=len(times), unit="request", desc="load", disable=None) as progress:
            for scheduled, choice in zip(times.tolist(), choices.tolist(), strict=True):
                # A wait of no time still lets the loop attend to what comes in.
                await asyncio.wait({stopped}, timeout=max(scheduled - self.now(), 0.0))
                if stop.is_set():
                    break
                record = {"scheduled": scheduled, "sent": self.now(), PAYLOAD: choice}
                self._records.append(record)
                task = asyncio.create_task(self._send(record))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)
                progress.update()
        stopped.cancel()

    async def drain(self, stop: asyncio.Event) -> None:
        """Wait for answers, each for its timeout; once ``stop`` is set, for :data:`GRACE_SECONDS` only."""
        deadline = self.now() + self._timeout
        while self._pending and not stop.is_set() and self.now() < deadline:
            await asyncio.wait(self._pending, timeout=POLL_SECONDS)
        if self._pending:
            await asyncio.wait(self._pending, timeout=GRACE_SECONDS)

    async def _send(self, record: dict[str, Any]) -> None:
        try:
            answers = await self._client.infer([self._payloads[record[PAYLOAD]]], 0.0, self._timeout)
            code, detail = grpc.StatusCode.OK, ""
            record["answer"] = b"".join(answers).decode(errors="replace")
        except grpc.aio.AioRpcError as error:
            code, detail = error.code(), error.details() or ""
        except IndexError:
            code, detail = grpc.StatusCode.UNKNOWN, "the answer holds no tensor"
        record.update(finished=self.now(), detail=detail[:DETAIL_LENGTH])
        late = code is grpc.StatusCode.DEADLINE_EXCEEDED and record["finished"] - record["sent"] >= self._timeout
        if not late:
            record.update(code=code.name, outcome=outcome_of(code))

    def records(self, seconds: float) -> pd.DataFrame:
        """One row for each request sent in the ``seconds`` of the run; those without an answer have failed."""
        table = pd.DataFrame(self._records, columns=list(COLUMNS))
        lost = table["code"].isna()
        table["finished"] = table["finished"].astype(float).fillna(self.now())
        table["code"] = table["code"].fillna(NO_ANSWER)
        table["outcome"] = table["outcome"].fillna(FAILED)
        table.loc[lost, "detail"] = table.loc[lost, "detail"].fillna("no answer when the run ended")
        table["answer"] = table["answer"].fillna("")
        table.attrs = {"started": self._started, "seconds": seconds}
        return table.astype({"scheduled": float, "sent": float, PAYLOAD: int, "detail": str, "answer": str})


async def offer(
    address: str,
    model: str,
    counts: np.ndarray,
    payloads: Sequence[bytes],
    seed: int,
    timeout: float = TIMEOUT_SECONDS,
    stop: asyncio.Event | None = None,
) -> pd.DataFrame:
    """Offer a load and record every request of it.

    Args:
        address: ``host:port`` of the gRPC endpoint.
        model: name of the model or pipeline there.
        counts: (T,) requests of each second.
        payloads: each request carries one of them, drawn at random.
        seed: of times and payloads.
        timeout: seconds a request may take; it has no answer then.
        stop: ends the run early when set.

    Returns:
        A row for each request sent, in their order: ``scheduled``, ``sent``, ``finished`` (seconds since the start),
        ``outcome`` (of :data:`opd.serving.protocol.OUTCOMES`), ``code`` (gRPC status, or :data:`NO_ANSWER`),
        ``detail``, ``payload`` (index) and ``answer`` (text). Its ``attrs`` hold ``started``, the start in Unix
        seconds, and ``seconds``, for how long load was offered.

    Raises:
        LoadError: if the model is not ready within :data:`READY_SECONDS`, or there is no payload.
        ValueError: as :func:`arrival_times`.
    """
    times = arrival_times(counts, seed)
    if not len(payloads):
        raise LoadError("there are no payloads to send; give at least one")
    choices = np.random.default_rng([seed, 1]).integers(len(payloads), size=len(times))
    stop = stop or asyncio.Event()
    client = Client(address, model)
    try:
        await _require_ready(client)
        run = _Run(client, payloads, timeout)
        await run.offer(times, choices, stop)
        seconds = run.now() if stop.is_set() else float(len(counts))
        await run.drain(stop)
        return run.records(seconds)
    finally:
        await client.close()


async def _require_ready(client: Client) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not await client.ready(1.0):
        if time.monotonic() > deadline:
            raise LoadError(
                f"model {client.model!r} at {client.address} is not ready after {READY_SECONDS:g} s; start the "
                "pipeline first, or correct the address"
            )
        await asyncio.sleep(0.1)


def summary(records: pd.DataFrame) -> dict[str, Any]:
    """A run in a few figures.

    Latency is measured from the scheduled time, so that a sender that lags cannot flatter the system.

    Args:
        records: of :func:`offer`.

    Returns:
        Requests ``offered``, of them ``completed``, ``rejected``, ``dropped``, ``failed``, and of the failed ``lost``,
        those without an answer; ``duration`` in seconds and rates in requests/s; latency of the completed and lateness
        of sending in seconds, None where there are none.
    """
    outcomes = records["outcome"].value_counts()
    completed = records[records["outcome"] == COMPLETED]
    latency = (completed["finished"] - completed["scheduled"]).to_numpy()
    lateness = (records["sent"] - records["scheduled"]).to_numpy()
    duration = float(records.attrs["seconds"])
    return {
        "offered": len(records),
        **{outcome: int(outcomes.get(outcome, 0)) for outcome in (COMPLETED, REJECTED, DROPPED, FAILED)},
        "lost": int((records["code"] == NO_ANSWER).sum()),
        "duration": duration,
        "offered_rate": len(records) / duration if duration else 0.0,
        "completed_rate": len(completed) / duration if duration else 0.0,
        "latency_mean": float(latency.mean()) if len(latency) else None,
        **{f"latency_p{share}": _percentile(latency, share) for share in (50, 95, 99)},
        "lateness_p99": _percentile(lateness, 99),
        "lateness_max": _percentile(lateness, 100),
    }


def _percentile(values: np.ndarray, share: int) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


class Generator(NamedTuple):
    """A process that offers a load.

    Attributes:
        process: the supervisor that it runs under.
        output: Parquet file that its records go to.
    """

    process: subprocess.Popen[str]
    output: Path

    def terminate(self) -> None:
        """Interrupt the run; it still writes its records, and whoever wants them calls :func:`finish`."""
        self.process.terminate()


def start(
    address: str,
    model: str,
    counts: np.ndarray,
    payloads: Path,
    seed: int,
    output: Path,
    timeout: float = TIMEOUT_SECONDS,
) -> Generator:
    """Start a process that offers a load; it ends when this one does. Its records come from :func:`finish`.

    Args:
        address: ``host:port`` of the gRPC endpoint.
        model: name of the model or pipeline there.
        counts: (T,) requests of each second; written beside ``output`` for the process to read.
        payloads: Parquet file with the column ``payload`` of bytes.
        seed: of times and payloads.
        output: Parquet file for the records.
        timeout: seconds a request may take.
    """
    output.unlink(missing_ok=True)
    table = output.with_suffix(".counts.csv")
    pd.Series(counts, name="requests").to_csv(table, index=False)
    options = dict(address=address, model=model, counts=table, payloads=payloads, seed=seed, output=output)
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "opd.live.load", *arguments, f"--timeout={timeout}"]
    return Generator(supervisor.start(command, stdout=subprocess.DEVNULL), output)


def finish(generator: Generator, timeout: float) -> pd.DataFrame:
    """The records of a run once it has ended; a run that takes longer than ``timeout`` seconds is interrupted.

    Args:
        generator: of :func:`start`.
        timeout: seconds to wait.

    Raises:
        LoadError: if it wrote no records.
    """
    with contextlib.suppress(subprocess.TimeoutExpired):
        generator.process.wait(timeout)
    code = supervisor.stop(generator.process, 2 * GRACE_SECONDS)
    if not generator.output.is_file():
        raise LoadError(f"the load generator ended with code {code} and without records; see what it wrote to stderr")
    return pd.read_parquet(generator.output)


def unix_times(records: pd.DataFrame, column: str) -> np.ndarray:
    """(R,) Unix seconds of ``scheduled``, ``sent`` or ``finished``, to line records up with what was scraped."""
    return records.attrs["started"] + records[column].to_numpy()


def read_counts(path: Path) -> np.ndarray:
    """(T,) counts of a CSV file with one column, with or without a heading.

    Raises:
        ValueError: if something else than its first line is no number.
    """
    lines = path.read_text().split()
    try:
        return np.array(lines, dtype=float)
    except ValueError:
        return np.array(lines[1:], dtype=float)


async def _offer_until_signal(options: argparse.Namespace) -> pd.DataFrame:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    payloads = pd.read_parquet(options.payloads, columns=[PAYLOAD])[PAYLOAD].tolist()
    counts = read_counts(options.counts)
    return await offer(options.address, options.model, counts, payloads, options.seed, options.timeout, stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: offer the load, write the records, print the summary as JSON; a signal ends it early."""
    parser = argparse.ArgumentParser(prog="python -m opd.live.load", description=__doc__)
    parser.add_argument("--address", required=True, help="host:port of the gRPC endpoint")
    parser.add_argument("--model", required=True, help="name of the model or pipeline there")
    parser.add_argument("--counts", required=True, type=Path, help="CSV file: requests of each second")
    parser.add_argument("--payloads", required=True, type=Path, help=f"Parquet file with the column {PAYLOAD!r}")
    parser.add_argument("--output", required=True, type=Path, help="Parquet file for the records")
    parser.add_argument("--seed", type=int, default=0, help="of times and payloads")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_SECONDS, help="seconds a request may take")
    options = parser.parse_args(arguments)
    try:
        records = asyncio.run(_offer_until_signal(options))
    except (LoadError, OSError, ValueError) as error:
        print(f"no load was offered: {error}", file=sys.stderr)
        return 1
    records.to_parquet(options.output, index=False)
    print(json.dumps(summary(records), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
