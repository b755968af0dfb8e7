"""Measure how a controller starts: first line of its log, warm-up, first decision as the leader, memory.

    python tools/controller_start.py PYTHON COMPILED [--starts 5] [--output reports/cluster/controller_start.csv]

PYTHON is the interpreter of an environment that was made as ``deploy/Dockerfile`` makes that of the image, and COMPILED
the folder that its warm-up filled. The pipeline, its pods and the API server are those of the emulated cluster of the
tests; the controller is a real process of that environment, with a cache of its own, as in a new pod. It forecasts with
``models/forecaster.npz`` of ``make repro``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import psutil
import typer

ROOT = Path(__file__).parents[1]
DEADLINE_SECONDS = 300.0
INTERVAL_SECONDS = 10.0
FIRST_LINE, WARMED_UP, LEADS, DECIDED = "first line", "warmed up", "leads", "decided"


class Start(NamedTuple):
    """One start of a controller; times in seconds.

    Attributes:
        policy: that decides.
        first_line: from the start of the process to the first line of its log.
        warm_up: from there until decisions are compiled.
        first_decision: from the Lease until the first decision is applied. Its record comes an interval later, which is
            not counted.
        memory_mb: resident memory then.
    """

    policy: str
    first_line: float
    warm_up: float
    first_decision: float
    memory_mb: float


def megabytes(folder: Path) -> float:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def milestone(line: str) -> str:
    """Which of the times a line of the controller's log marks; empty if none."""
    entry = json.loads(line) if line.startswith("{") else {}
    message = entry.get("message", "")
    if message.startswith("warmed up in"):
        return WARMED_UP
    if "holds the Lease" in message:
        return LEADS
    return DECIDED if "configuration" in entry else ""


def milestones(process: subprocess.Popen[str]) -> Iterator[tuple[str, float]]:
    """Yield what the log of a controller marks, with the monotonic time, up to its first decision.

    Raises:
        RuntimeError: if there is none; the message ends with the last line of the log.
    """
    assert process.stderr is not None
    line = ""
    for number, line in enumerate(process.stderr):
        if number == 0:
            yield FIRST_LINE, time.monotonic()
        if marked := milestone(line):
            yield marked, time.monotonic()
        if marked == DECIDED:
            return
    raise RuntimeError(f"the controller ended, or took {DEADLINE_SECONDS:g} s, without a decision: {line}")


def measured_start(command: list[str], environment: dict[str, str], folder: str, policy: str) -> Start:
    """Start a controller in a folder and wait for the record of its first decision."""
    begin = time.monotonic()
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=folder) as process:
        late = threading.Timer(DEADLINE_SECONDS, process.kill)
        late.start()
        times: dict[str, float] = {}
        try:
            for marked, now in milestones(process):
                times.setdefault(marked, now)
            memory = psutil.Process(process.pid).memory_info().rss / 1e6
        finally:
            process.terminate()
            process.communicate(timeout=DEADLINE_SECONDS)
            late.cancel()
    return Start(
        policy,
        times[FIRST_LINE] - begin,
        times[WARMED_UP] - times[FIRST_LINE],
        times[DECIDED] - times[LEADS] - INTERVAL_SECONDS,
        memory,
    )


def main(
    python: Annotated[Path, typer.Argument(help="Interpreter of the environment of the image.")],
    compiled: Annotated[Path, typer.Argument(help="Folder of compiled code.")],
    starts: Annotated[int, typer.Option(help="Starts of each policy.")] = 5,
    output: Annotated[Path, typer.Option(help="Table to write.")] = ROOT / "reports/cluster/controller_start.csv",
) -> None:
    """Measure starts of controllers and write a table of them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from cluster_site import emulated_site

    rows = []
    with tempfile.TemporaryDirectory() as scratch, emulated_site(Path(scratch)) as site:
        if site.opd("deploy") != 0:
            raise RuntimeError("the pipeline could not be deployed")
        for file in ("params.yaml", "models/forecaster.npz"):  # the image has the first; the second is mounted
            (Path(scratch) / file).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / file, Path(scratch) / file)
        place = [site.chosen, f"--namespace={site.cluster.namespace}", f"--kubeconfig={site.kubeconfig}"]
        for number in range(starts):
            for policy in ("agent", "lookahead"):
                options = [f"--policy={policy}", f"--prometheus={site.prometheus}", "--port=0", *site.settings]
                options.append(f"--interval={INTERVAL_SECONDS:g}")
                own = {"OPD_COMPILED": str(compiled), "NUMBA_CACHE_DIR": f"{scratch}/numba-{policy}-{number}"}
                own |= {"NUMBA_CPU_NAME": "generic", "OMP_NUM_THREADS": "1"}
                given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
                command = [str(python), "-m", "opd", "run", *place, *options]
                rows.append(measured_start(command, given | own, scratch, policy))
                print(rows[-1], flush=True)
    packages = next(python.parent.parent.glob("lib/python3*/site-packages"))
    table = pd.DataFrame(rows).assign(packages_mb=megabytes(packages), compiled_mb=megabytes(compiled))
    output.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(output, index=False, float_format="%.4g")
    print(table.groupby("policy").median().to_string())


if __name__ == "__main__":
    typer.run(main)
