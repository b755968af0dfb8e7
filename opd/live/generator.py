"""The load generator, :mod:`opd.live.load`, as a process beside this one."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from opd.host.waiting import wait_until
from opd.live.load import GRACE_SECONDS, TIMEOUT_SECONDS, LoadError, start_mark
from opd.serving import supervisor

START_SECONDS = 60.0
"""Time limit for a load generator to begin, its start as a process included."""


class LoadGenerator(NamedTuple):
    """A process that generates load.

    Attributes:
        process: the supervisor that it runs under.
        output: Parquet file for its records.
    """

    process: subprocess.Popen[str]
    output: Path

    def started(self, timeout: float = START_SECONDS) -> float:
        """Wait for the start of the load, and return its Unix seconds.

        Raises:
            LoadError: if the process ends before, or takes longer than ``timeout`` seconds.
        """
        mark = start_mark(self.output)
        wait_until(lambda: mark.is_file() or self.process.poll() is not None, timeout)
        if not mark.is_file():
            raise LoadError(f"no load was offered within {timeout:g} s; see the stderr of the load generator")
        return float(mark.read_text())

    def interrupt(self) -> None:
        """End the run early; the records are still written, see :meth:`finish`."""
        self.process.terminate()

    def finish(self, timeout: float) -> pd.DataFrame:
        """Wait for the end of the run, and interrupt it if it takes longer than ``timeout`` seconds.

        Returns:
            Its records, see :func:`offer`.

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
    samples: Path,
    seed: int,
    output: Path,
    retry: bool = False,
    timeout: float = TIMEOUT_SECONDS,
) -> LoadGenerator:
    """Start a load generator; it ends when this process does.

    Args:
        address: ``host:port`` of the gRPC endpoint.
        model: name of the model or pipeline there.
        counts: (T,) requests in each second; written next to ``output`` for the process to read.
        samples: file of requests, see :mod:`opd.serving.samples`.
        seed: of times and of the draw.
        output: Parquet file for the records; an existing one is removed.
        retry: see :func:`offer`.
        timeout: likewise.
    """
    output.unlink(missing_ok=True)
    start_mark(output).unlink(missing_ok=True)
    table = output.with_suffix(".counts.csv")
    pd.Series(counts, name="requests").to_csv(table, index=False)
    options = dict(
        address=address, model=model, counts=table, samples=samples, seed=seed, output=output, timeout=timeout
    )
    command = [sys.executable, "-m", "opd.live.load", *(f"--{name}={value}" for name, value in options.items())]
    command += ["--retry"] if retry else []
    return LoadGenerator(supervisor.start(command, stdout=subprocess.DEVNULL), output)
