"""Commands for pipelines that something else serves."""

from __future__ import annotations

import re
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from opd.cli.command import DONE, command, reading_input, say

_STAGE = re.compile(r"(?P<task>[^=:]+)=(?P<variant>[^=:]+):(?P<batch_size>[0-9]{1,6})")


@command('opd keda shop --stage detect=small:4 --stage classify=tiny:1 --query "sum(rate(requests_total[10s]))"')
def keda(
    pipeline: Annotated[
        str,
        Argument(metavar="PIPELINE", help="A project folder, a pipeline file, or the name of a shipped pipeline."),
    ],
    stage: Annotated[
        list[str], Option(metavar="TASK=VARIANT:BATCH", help="What a stage runs; for every stage of the pipeline.")
    ],
    query: Annotated[str, Option(metavar="PROMQL", help="Requests/s that enter the pipeline, as one series.")],
    prometheus: Annotated[
        str | None, Option(metavar="URL", help="Default: OPD_PROMETHEUS_URL of the environment.")
    ] = None,
    forecaster: Annotated[
        Path | None, Option(metavar="FILE", help="Trained forecaster (default: the largest load of the last 20 s).")
    ] = None,
    interval: Annotated[int, Option(min=1, metavar="SECONDS", help="Between two decisions.")] = 10,
    host: Annotated[str, Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, Option(min=0, max=65535, help="Of gRPC, 0 for any free one.")] = 8085,
) -> int:
    """Answer KEDA, as an external scaler, with the replicas of each stage, decided for all stages together."""
    # PID 1 of a container ignores SIGTERM unless there is a handler.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    with reading_input():
        from opd.scaling.decider import ReplicaDecider, load_forecast, load_plan, measured_history
        from opd.scaling.keda import serve
        from opd.serving.monitoring.prometheus import PrometheusUrl, named_url

        url = named_url(prometheus)
        plan, predict = load_plan(pipeline, _running(stage)), load_forecast(forecaster)
    history = partial(measured_history, PrometheusUrl(url), query)
    decider = ReplicaDecider(plan, history, predict, float(interval), time.monotonic)
    server, bound = serve(decider, host, port)
    say(f"scales {', '.join(plan.tasks)} of {pipeline} for up to {plan.loads[-1]:.3g} requests/s, on {host}:{bound}")
    try:
        server.wait_for_termination()
    finally:
        server.stop(grace=1.0)
    return DONE


def _running(texts: list[str]) -> dict[str, tuple[str, int]]:
    """Variant and batch size by task."""
    running = {}
    for text in texts:
        match = _STAGE.fullmatch(text)
        if match is None or match["task"] in running:
            raise ValueError(f"--stage {text!r}: write TASK=VARIANT:BATCH, such as detect=small:4, once for every task")
        running[match["task"]] = match["variant"], int(match["batch_size"])
    return running
