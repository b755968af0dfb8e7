"""Load generator: open-loop load from a separate process, ``python -m opd.live.load``.

The control loop cannot slow down a load that another process generates.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer

from opd.live.open_loop import GRACE_SECONDS, TIMEOUT_SECONDS, LoadError, offer
from opd.live.records import PAYLOAD, summary
from opd.serving import supervisor


class LoadGenerator(NamedTuple):
    """A process that generates load.

    Attributes:
        process: the supervisor that it runs under.
        output: Parquet file for its records.
    """

    process: subprocess.Popen[str]
    output: Path

    def interrupt(self) -> None:
        """End the run early; the records are still written, see :meth:`finish`."""
        self.process.terminate()

    def finish(self, timeout: float) -> pd.DataFrame:
        """Wait for the end of the run, and interrupt it if it takes longer than ``timeout`` seconds.

        Returns:
            Its records, see :func:`opd.live.open_loop.offer`.

        Raises:
            LoadError: if the process wrote no records.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        code = supervisor.stop(self.process, 2 * GRACE_SECONDS)
        if not self.output.is_file():
            raise LoadError(f"the load generator exited with code {code} and wrote no records; see its stderr")
        return pd.read_parquet(self.output)


def start_load(
    address: str,
    model: str,
    counts: np.ndarray,
    payloads: Path,
    seed: int,
    output: Path,
    timeout: float = TIMEOUT_SECONDS,
) -> LoadGenerator:
    """Start a load generator; it ends when this process does.

    Args:
        address: ``host:port`` of the gRPC endpoint.
        model: name of the model or pipeline there.
        counts: (T,) requests in each second; written next to ``output`` for the process to read.
        payloads: Parquet file with payloads in column ``payload``.
        seed: of times and payloads.
        output: Parquet file for the records; an existing one is removed.
        timeout: seconds until a request counts as unanswered.
    """
    output.unlink(missing_ok=True)
    table = output.with_suffix(".counts.csv")
    pd.Series(counts, name="requests").to_csv(table, index=False)
    options = dict(address=address, model=model, counts=table, payloads=payloads, seed=seed, output=output)
    arguments = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "opd.live.load", *arguments, f"--timeout={timeout}"]
    return LoadGenerator(supervisor.start(command, stdout=subprocess.DEVNULL), output)


def read_payloads(path: Path) -> list[bytes]:
    """Payloads from the column ``payload`` of a Parquet file."""
    return pd.read_parquet(path, columns=[PAYLOAD])[PAYLOAD].tolist()


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
    payloads: Annotated[Path, typer.Option(help=f"Parquet file with payloads in column {PAYLOAD!r}")],
    output: Annotated[Path, typer.Option(help="Parquet file for the records")],
    seed: Annotated[int, typer.Option(help="seed of times and payloads")] = 0,
    timeout: Annotated[float, typer.Option(help="seconds until a request counts as unanswered")] = TIMEOUT_SECONDS,
) -> None:
    """Offer open-loop load, write one record per request, and print a summary as JSON.

    SIGINT or SIGTERM ends the run early.
    """

    async def run() -> pd.DataFrame:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await offer(address, model, read_counts(counts), read_payloads(payloads), seed, timeout, stop)

    try:
        records = asyncio.run(run())
    except (LoadError, OSError, ValueError) as error:
        print(f"no load was offered: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    records.to_parquet(output, index=False)
    print(json.dumps(summary(records), indent=2))


if __name__ == "__main__":
    typer.run(main)
