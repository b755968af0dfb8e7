"""Open-loop load: requests are sent at times drawn in advance, regardless of what happened to earlier ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import numpy as np
import pandas as pd
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed
from tqdm import tqdm

from opd.live.records import COLUMNS, NO_ANSWER, PAYLOAD
from opd.serving.client import Client
from opd.serving.protocol import FAILED, outcome_of

TIMEOUT_SECONDS = 20.0
"""Default timeout of a request."""

READY_SECONDS = 15.0
"""Time limit for the model to become ready before the first request."""

GRACE_SECONDS = 5.0
"""Extra time beyond their timeout for the requests in flight at the end; all they get if the run is interrupted."""

POLL_SECONDS = 0.1

DETAIL_LENGTH = 200
"""Characters of an error message that are recorded."""


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
    payloads: Sequence[bytes],
    seed: int,
    timeout: float = TIMEOUT_SECONDS,
    stop: asyncio.Event | None = None,
) -> pd.DataFrame:
    """Offer a load and record every request.

    Args:
        address: ``host:port`` of the gRPC endpoint.
        model: name of the model or pipeline there.
        counts: (T,) requests in each second.
        payloads: each request carries one of these, drawn at random.
        seed: of times and payloads.
        timeout: seconds until a request counts as unanswered.
        stop: ends the run early when set.

    Returns:
        One row per request in the order of sending: ``scheduled``, ``sent``, ``finished`` (seconds since the start),
        ``outcome`` (one of :data:`opd.serving.protocol.OUTCOMES`), ``code`` (gRPC status or
        :data:`opd.live.records.NO_ANSWER`), ``detail``, ``payload`` (index) and ``answer`` (text). Its ``attrs`` hold
        ``started`` (Unix seconds) and ``seconds``, the time during which load was offered.

    Raises:
        LoadError: if the model is not ready within :data:`READY_SECONDS`, or there are no payloads.
        ValueError: see :func:`arrival_times`.
    """
    times = arrival_times(counts, seed)
    if not len(payloads):
        raise LoadError("there are no payloads to send; give at least one")
    choices = np.random.default_rng([seed, 1]).integers(len(payloads), size=len(times))
    stop = stop or asyncio.Event()
    client = Client(address, model)
    try:
        await _require_ready(client)
        run = _OpenLoop(client, payloads, timeout)
        await run.send(times, choices, stop)
        seconds = run.now() if stop.is_set() else float(len(counts))
        await run.drain(stop)
        return run.records(seconds)
    finally:
        await client.close()


async def _require_ready(client: Client) -> None:
    attempts = AsyncRetrying(
        retry=retry_if_result(lambda ready: not ready),
        stop=stop_after_delay(READY_SECONDS),
        wait=wait_fixed(POLL_SECONDS),
    )
    try:
        await attempts(client.ready, 1.0)
    except RetryError:
        raise LoadError(
            f"model {client.model!r} at {client.address} is not ready after {READY_SECONDS:g} s; start the pipeline "
            "first, or correct the address"
        ) from None


class _OpenLoop:
    """Sends the requests of one run and records their outcome."""

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

    async def send(self, times: np.ndarray, choices: np.ndarray, stop: asyncio.Event) -> None:
        """Send a request at each of ``times`` until they run out or ``stop`` is set."""
        stopped = asyncio.create_task(stop.wait())
        with tqdm(total=len(times), unit="request", desc="load", disable=None) as progress:
            for scheduled, choice in zip(times.tolist(), choices.tolist(), strict=True):
                # Even a zero timeout lets the event loop handle incoming answers.
                await asyncio.wait({stopped}, timeout=max(scheduled - self.now(), 0.0))
                if stop.is_set():
                    break
                record = {"scheduled": scheduled, "sent": self.now(), PAYLOAD: choice}
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

    async def _request(self, record: dict[str, Any]) -> None:
        try:
            answers = await self._client.infer([self._payloads[record[PAYLOAD]]], 0.0, self._timeout)
            code, detail = grpc.StatusCode.OK, ""
            record["answer"] = b"".join(answers).decode(errors="replace")
        except grpc.aio.AioRpcError as error:
            code, detail = error.code(), error.details() or ""
        except IndexError:
            code, detail = grpc.StatusCode.UNKNOWN, "the answer contains no tensor"
        record.update(finished=self.now(), detail=detail[:DETAIL_LENGTH])
        timed_out = code is grpc.StatusCode.DEADLINE_EXCEEDED and record["finished"] - record["sent"] >= self._timeout
        if not timed_out:
            record.update(code=code.name, outcome=outcome_of(code))

    def records(self, seconds: float) -> pd.DataFrame:
        """One row per request of a run of ``seconds``; those without an answer have failed."""
        table = pd.DataFrame(self._records, columns=list(COLUMNS))
        lost = table["code"].isna()
        table["finished"] = table["finished"].astype(float).fillna(self.now())
        table["code"] = table["code"].fillna(NO_ANSWER)
        table["outcome"] = table["outcome"].fillna(FAILED)
        table.loc[lost, "detail"] = table.loc[lost, "detail"].fillna("no answer when the run ended")
        table["answer"] = table["answer"].fillna("")
        table.attrs = {"started": self._started, "seconds": seconds}
        return table.astype({"scheduled": float, "sent": float, PAYLOAD: int, "detail": str, "answer": str})
