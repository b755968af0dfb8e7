"""Controllers of a tiny deployment, in threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
from deadlines import PATIENCE
from tiny_cluster import OFTEN, TIMES, WANTED, FixedPolicy, TinyDeployment

from opd.cluster.charge import Controlled
from opd.cluster.controller import Controller, ControllerSettings
from opd.control.policies import Policy
from opd.control.sharing import StaticSplit
from opd.objective import Weights
from opd.serving.monitoring.prometheus import PrometheusUrl
from opd.view.model import View


def controller(
    world: TinyDeployment,
    policy: Policy | None = None,
    forecast: Callable[[np.ndarray], float] = lambda history: 5.0,
    shows: Sequence[Callable[[View], None]] = (),
    **options: Any,
) -> Controller:
    """A controller that decides often, with other options than usual."""
    chosen = ControllerSettings(
        **{"interval_seconds": 0.2, "lease": OFTEN, "times": TIMES, "host": "127.0.0.1", **options}
    )
    monitor = PrometheusUrl(world.prometheus.url)
    decider = policy or FixedPolicy(WANTED)
    controlled = Controlled(world.pipeline, world.settings, monitor, decider, forecast, Weights())
    return Controller(world.cluster, [controlled], StaticSplit((world.pipeline.capacity,)), chosen, shows)


class Running:
    """A controller in a thread."""

    def __init__(self, made: Controller) -> None:
        self.controller = made
        self.thread = threading.Thread(target=made.run, daemon=True)
        self.thread.start()

    def __enter__(self) -> Controller:
        return self.controller

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.controller.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def events(world: TinyDeployment) -> dict[str, dict]:
    """The last Event of every reason."""
    return {each["reason"]: each for each in world.api.all("events")}
