"""Load generator: open-loop load from a separate process, ``python -m opd.live.load``, and its records.

Requests are sent at times drawn in advance, regardless of what happened to earlier ones, and the control loop cannot
slow down a load that another process generates.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import pandas as pd
import typer
from mlserver.grpc.dataplane_pb2 import ModelInferRequest
from tqdm import tqdm

from opd.host.archive import written_whole
from opd.live.failures import count_failures, describe_failures
from opd.serving.client import Client
from opd.serving.contents import TensorError, check_tensors
from opd.serving.outcomes import COMPLETED, FAILED, OUTCOMES
from opd.serving.protocol import outcome_of
from opd.serving.samples import read_samples
from opd.serving.tensors import text_of

TIMEOUT_SECONDS = 20.0
"""Default timeout of a request."""

READY_SECONDS = 15.0
"""Time limit for the model to become ready before the first request."""

GRACE_SECONDS = 5.0
"""Extra time beyond their timeout for the requests in flight at the end; all they get if the run is interrupted."""

POLL_SECONDS = 0.1

DETAIL_LENGTH = 200
"""Characters of an error message that are recorded."""

NO_ANSWER = "NO_ANSWER"
"""Code of a request that got no answer within its timeout, or before the run was interrupted."""

ANSWER_LENGTH = 10_000
"""Characters of an answer that are recorded."""


@dataclass(kw_only=True)
class RequestRecord:
    """A request that was sent, unanswered at first.

    Attributes:
        scheduled: when it was to be sent, seconds since the start of the run.
        sent: when it was sent, likewise.
        finished: when its answer came, or the run ended; likewise.
        outcome: one of :data:`opd.serving.outcomes.OUTCOMES`.
        code: gRPC status or :data:`NO_ANSWER`.
        detail: error message.
        payload: index of the sample.
        answer: texts of a single tensor of BYTES, joined; otherwise the tensors as JSON.
    """

    scheduled: float
    sent: float
    finished: float = np.nan
    outcome: str = FAILED
    code: str = NO_ANSWER
    detail: str = "no answer when the run ended"
    payload: int
    answer: str = ""


class LoadError(RuntimeError):
    """The load could not be offered, or left no records."""


def arrival_times(counts: np.ndarray, seed: int) -> np.ndarray:
    """Draw send times: each second's requests are placed uniformly at random within that second.

    Args:
        counts: (T,) requests in each second, whole numbers.
        seed: determines the times.

    Returns:
        (sum of ``counts``,) seconds, ascending.

    Raises:
        ValueError: if a count is negative or not a whole number.
    """
    whole = np.asarray(counts, dtype=float)
    wrong = ~(np.isfinite(whole) & (whole >= 0) & (whole == np.floor(whole)))
    if wrong.any():
        second = int(np.argmax(wrong))
        raise ValueError(f"count {whole[second]:g} of second {second} must be a whole number of requests, at least 0")
    seconds = np.repeat(np.arange(len(whole)), whole.astype(int))
    return np.sort(seconds + np.random.default_rng(seed).random(len(seconds)))


async def offer(
    address: str,
    model: str,
    counts: np.ndarray,
    samples: Sequence[ModelInferRequest],
    seed: int,
    timeout: float = TIMEOUT_SECONDS,
    stop: asyncio.Event | None = None,
    retry: bool = False,
    begun: Callable[[float], None] | None = None,
) -> pd.DataFrame:
    """Offer a load and record every request.

    Args:
        address: ``host:port`` of the gRPC endpoint, or several, see :class:`opd.serving.client.Client`.
        model: name of the model or pipeline there.
        counts: (T,) requests in each second.
        samples: each request is one of these, drawn at random.
        seed: of times and of the draw.
        timeout: seconds until a request counts as unanswered.
        stop: ends the run early when set.
        retry: send a request again, within its timeout, if the server is away or ends during it.
        begun: called with the start in Unix seconds, before the first request is sent.

    Returns:
        One row per request in the order of sending, with the columns of :class:`RequestRecord`. Its ``attrs`` hold
        ``started`` (Unix seconds) and ``seconds``, the time during which load was offered.

    Raises:
        LoadError: if the model is not ready within :data:`READY_SECONDS`, or there are no samples.
        ValueError: see :func:`arrival_times`.
    """
    times = arrival_times(counts, seed)
    if not len(samples):
        raise LoadError("there are no samples to send; give at least one")
    choices = np.random.default_rng([seed, 1]).integers(len(samples), size=len(times))
    stop = stop or asyncio.Event()
    client = Client(address, model, retry)
    try:
        await _require_ready(client)
        run = _OpenLoop(client, samples, timeout)
        if begun is not None:
            begun(run.started)
        await run.send(times, choices, stop)
        seconds = run.now() if stop.is_set() else float(len(counts))
        await run.drain(stop)
        return run.records(seconds)
    finally:
        await client.close()


async def _require_ready(client: Client) -> None:
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not await client.ready(1.0):
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError:
        raise LoadError(
            f"model {client.model!r} at {client.address} is not ready after {READY_SECONDS:g} s; start the pipeline "
            "first, or correct the address"
        ) from None


class _OpenLoop:
    """Sends the requests of one run and records their outcome."""

    def __init__(self, client: Client, samples: Sequence[ModelInferRequest], timeout: float) -> None:
        self._client, self._samples, self._timeout = client, samples, timeout
        self._records: list[RequestRecord] = []
        self._pending: set[asyncio.Task] = set()
        self._loop = asyncio.get_running_loop()
        self._origin = self._loop.time()
        self.started = time.time()

    def now(self) -> float:
        """Seconds since the start."""
        return self._loop.time() - self._origin

    async def send(self, times: np.ndarray, choices: np.ndarray, stop: asyncio.Event) -> None:
        """Send a request at each of ``times`` until they run out or ``stop`` is set."""
        stopped = asyncio.create_task(stop.wait())
        with tqdm(total=len(times), unit="request", desc="load", disable=None) as progress:
            for scheduled, choice in zip(times.tolist(), choices.tolist(), strict=True):
                # Even a zero timeout lets the event loop handle incoming answers.
                await asyncio.wait({stopped}, timeout=max(scheduled - self.now(), 0.0))
                if stop.is_set():
                    break
                record = RequestRecord(scheduled=scheduled, sent=self.now(), payload=choice)
                self._records.append(record)
                task = asyncio.create_task(self._request(record))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)
                progress.update()
        stopped.cancel()

    async def drain(self, stop: asyncio.Event) -> None:
        """Wait for the answers in flight until they time out, or for :data:`GRACE_SECONDS` once ``stop`` is set."""
        deadline = self.now() + self._timeout
        while self._pending and not stop.is_set() and self.now() < deadline:
            await asyncio.wait(self._pending, timeout=POLL_SECONDS)
        if self._pending:
            await asyncio.wait(self._pending, timeout=GRACE_SECONDS)

    async def _request(self, record: RequestRecord) -> None:
        try:
            answer = await self._client.infer(self._samples[record.payload], 0.0, self._timeout)
            check_tensors(answer)
            code, detail = grpc.StatusCode.OK, ""
            record.answer = text_of(answer)[:ANSWER_LENGTH]
        except grpc.aio.AioRpcError as error:
            code, detail = error.code(), error.details() or ""
        except TensorError as error:
            code, detail = grpc.StatusCode.UNKNOWN, f"malformed answer: {error}"
        record.finished, record.detail = self.now(), detail[:DETAIL_LENGTH]
        timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED and record.finished - record.sent >= self._timeout
        if not timed_out:
            record.code, record.outcome = code.name, outcome_of(code)

    def records(self, seconds: float) -> pd.DataFrame:
        """One row per request of a run of ``seconds``."""
        types = {field.name: field.type for field in fields(RequestRecord)}
        table = pd.DataFrame(self._records, columns=list(types)).astype(types)
        table["finished"] = table["finished"].fillna(self.now())
        table.attrs = {"started": self.started, "seconds": seconds}
        return table


def summary(records: pd.DataFrame) -> dict[str, Any]:
    """Summarise a run.

    Latency counts from the scheduled time, so a generator that falls behind cannot make the system look faster.

    Args:
        records: of :func:`offer`.

    Returns:
        Counts of requests: ``offered``, of these ``completed``, ``rejected``, ``dropped`` and ``failed``, and of the
        failed ``lost``, which got no answer; ``duration`` in seconds and rates in requests/s; latency of completed
        requests and lateness of sending in seconds, None if there are none.
    """
    outcomes = records["outcome"].value_counts()
    completed = records[records["outcome"] == COMPLETED]
    latency = (completed["finished"] - completed["scheduled"]).to_numpy()
    lateness = (records["sent"] - records["scheduled"]).to_numpy()
    duration = float(records.attrs["seconds"])
    return {
        "offered": len(records),
        **{outcome: int(outcomes.get(outcome, 0)) for outcome in OUTCOMES},
        "lost": int((records["code"] == NO_ANSWER).sum()),
        "duration": duration,
        "offered_rate": len(records) / duration if duration else 0.0,
        "completed_rate": len(completed) / duration if duration else 0.0,
        "latency_mean": float(latency.mean()) if len(latency) else None,
        **{f"latency_p{percent}": _percentile(latency, percent) for percent in (50, 95, 99)},
        "lateness_p99": _percentile(lateness, 99),
        "lateness_max": _percentile(lateness, 100),
    }


def share_within(records: pd.DataFrame, seconds: float) -> float:
    """Share of the requests that were completed within ``seconds`` of their scheduled time; NaN if there are none."""
    in_time = (records["outcome"] == COMPLETED) & (records["finished"] - records["scheduled"] <= seconds)
    return float(in_time.mean())


def _percentile(values: np.ndarray, percent: int) -> float | None:
    return float(np.percentile(values, percent)) if len(values) else None


def start_mark(output: Path) -> Path:
    """The file with the start of the load of which ``output`` has the records."""
    return output.with_suffix(".started")


def read_counts(path: Path) -> np.ndarray:
    """Read per-second counts from a CSV file with one column, with or without a header.

    Returns:
        (T,) counts.

    Raises:
        ValueError: if a line other than the first is not a number.
    """
    lines = path.read_text().split()
    try:
        return np.array(lines, dtype=float)
    except ValueError:
        return np.array(lines[1:], dtype=float)


def main(
    address: Annotated[str, typer.Option(help="host:port of the gRPC endpoint")],
    model: Annotated[str, typer.Option(help="name of the model or pipeline there")],
    counts: Annotated[Path, typer.Option(help="CSV file with the number of requests in each second")],
    samples: Annotated[Path, typer.Option(help="JSON file with requests, or Parquet file with column 'payload'")],
    output: Annotated[Path, typer.Option(help="Parquet file for the records")],
    seed: Annotated[int, typer.Option(help="seed of times and of the draw")] = 0,
    timeout: Annotated[float, typer.Option(help="seconds until a request counts as unanswered")] = TIMEOUT_SECONDS,
    retry: Annotated[bool, typer.Option(help="send again if the server is away or ends during a request")] = False,
) -> None:
    """Offer open-loop load, write one record per request, and print a summary as JSON.

    Standard error says how many requests got no answer, and the most frequent reason. SIGINT or SIGTERM ends the run
    early.
    """

    def begun(seconds: float) -> None:
        with written_whole(start_mark(output)) as unfinished:
            unfinished.write_text(str(seconds))

    async def run() -> pd.DataFrame:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await offer(
            address, model, read_counts(counts), read_samples(samples), seed, timeout, stop, retry, begun
        )

    try:
        records = asyncio.run(run())
    except (LoadError, OSError, ValueError) as error:
        print(f"no load was offered: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    try:
        with written_whole(output) as unfinished:
            records.to_parquet(unfinished, index=False)
    except OSError as error:
        print(f"the records of {len(records)} requests are lost: {output} cannot be written: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    result = {**summary(records), "failures": count_failures(records)}
    print(json.dumps(result, indent=2))
    for sentence in describe_failures({model: {"requests": result, "failures": result["failures"]}}):
        print(sentence, file=sys.stderr)


if __name__ == "__main__":
    typer.run(main)
