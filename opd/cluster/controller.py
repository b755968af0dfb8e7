"""The controller of one pipeline: it leads while it holds the Lease, decides every interval, and serves its health."""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from opd.cluster.api import Cluster
from opd.cluster.backend import ChangeTimes, KubernetesBackend
from opd.cluster.errors import ClusterError, NotDeployedError, NotFoundError
from opd.cluster.lease import Lease, LeaseTimes
from opd.cluster.looking import PreviewBackend, ShadowBackend
from opd.cluster.manual import ManualChangeError
from opd.cluster.record import ControllerMetrics, Recorder
from opd.cluster.settings import ClusterSettings
from opd.control.loop import ApplyError, run
from opd.control.policies import Policy
from opd.control.warm_up import warm_up
from opd.host.get_server import Reply, get_server
from opd.objective import Objective, Weights
from opd.pipeline import Pipeline
from opd.serving.monitoring.source import Monitor
from opd.view.model import View, view_of
from opd.view.page import served_page
from opd.view.terminal import Terminal

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""Pause before the control loop begins again after a failure."""

TURN_SECONDS = 0.2
"""Pause between two looks at the Lease while standing by."""

LEADING, STANDING_BY, IN_SHADOW = "leading", "standing by", "in shadow"


@dataclass(frozen=True)
class ControllerSettings:
    """Options of a controller.

    Attributes:
        interval_seconds: between two decisions.
        objective: of the reported reward.
        port: of ``/healthz``, ``/readyz`` and ``/metrics``; any free one if 0.
        host: address to listen on.
        read_nodes: look at the nodes for free cores.
        page: host and port of the page with the live view; None for no page.
        dry_run: print what would change, and change nothing.
        shadow: observe what something else runs, decide, and change nothing.
        record: file that gets a line for every decision; None for none.
        decisions: number after which it ends; never if None, and it then waits for a pipeline that is not deployed yet.
        lead_seconds: to wait for leadership at most if ``decisions`` is given; the Lease of a controller that died
            expires within this time.
        stuck_seconds: added to the time of a change and an interval, after which a silent loop counts as stuck.
        lease: how long leadership holds.
        times: how long parts of a change may take.
    """

    interval_seconds: float = 10.0
    objective: Objective = Weights()
    port: int = 8080
    host: str = "0.0.0.0"
    read_nodes: bool = False
    page: tuple[str, int] | None = None
    dry_run: bool = False
    shadow: bool = False
    record: Path | None = None
    decisions: int | None = None
    lead_seconds: float = 30.0
    stuck_seconds: float = 60.0
    lease: LeaseTimes = LeaseTimes()
    times: ChangeTimes = ChangeTimes()

    @property
    def changes_nothing(self) -> bool:
        """Whether it needs no leadership, because it only looks."""
        return self.dry_run or self.shadow


class Controller:
    """Runs one pipeline until it is stopped.

    Args:
        cluster: namespace of the pipeline.
        pipeline: what is controlled.
        settings: with which it was deployed.
        monitor: source of metrics.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        options: of the controller.
        shows: each shows every new view, at once and without an error.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipeline: Pipeline,
        settings: ClusterSettings,
        monitor: Monitor,
        policy: Policy,
        forecast: Callable[[np.ndarray], float],
        options: ControllerSettings,
        shows: Sequence[Callable[[View], None]] = (),
    ) -> None:
        self.metrics = ControllerMetrics(pipeline.name)
        self._cluster, self._pipeline, self._settings, self._monitor = cluster, pipeline, settings, monitor
        self._policy, self._forecast, self._options = policy, forecast, options
        self._lease = Lease(cluster, pipeline.name, times=options.lease)
        self.holder = self._lease.holder
        events = not options.changes_nothing
        self._recorder = Recorder(cluster, pipeline, self.metrics, self.holder, events, options.record)
        self._stop = threading.Event()
        self._backend: KubernetesBackend | None = None
        self._beat = time.monotonic()
        self._done = 0
        self._shows = shows
        self._view = View(pipeline.name, "starting", agent=getattr(policy, "origin", ""))
        self.pipeline, self.within = pipeline.name, ""

    # ---------------------------------------------------------------------------------------------- from outside

    def stop(self) -> None:
        """End soon; a change in progress is cleared away first. Any thread may call this."""
        self._stop.set()
        backend = self._backend
        if backend is not None:
            backend.close()

    @property
    def healthy(self) -> bool:
        """True while the loop advances; if it does not, only a restart helps."""
        limit = self._settings.apply_seconds * 2 + self._options.interval_seconds + self._options.stuck_seconds
        return time.monotonic() - self._beat < limit

    @property
    def state(self) -> str:
        """What the controller does now, in words."""
        return self._view.state

    @property
    def ready(self) -> bool:
        """True if the controller leads or stands by to take over; false while it warms up."""
        return self.state in (LEADING, STANDING_BY, IN_SHADOW)

    def run(self) -> None:
        """Decide whenever this controller leads, until it is stopped or has made its decisions.

        Raises:
            NotDeployedError: if the pipeline is not deployed and the number of decisions is limited.
            LedByAnotherError: if another controller leads all the time and the number of decisions is limited.
        """
        try:
            self._warm_up()
            with nullcontext() if self._options.changes_nothing else self._lease:
                while not self._stop.is_set() and self._done != self._options.decisions:
                    self._beat = time.monotonic()
                    self.metrics.set("leader", float(self._lease.held))
                    if self._leads:
                        self._lead()
                    else:
                        self._stand_by()
        finally:
            self._enter("ended")
            self.metrics.set("leader", 0.0)

    def _warm_up(self) -> None:
        """Compile what decisions need before this controller may lead; a failure only makes the first one slow."""
        self._enter("warming up")
        begin = time.monotonic()
        logger.info("warming up: decisions are compiled")
        try:
            warm_up(self._pipeline, self._policy, self._forecast)
        except Exception:
            logger.warning("the warm-up failed", exc_info=True)
        logger.info("warmed up in %.1f s", time.monotonic() - begin)

    def _enter(self, state: str) -> None:
        """Show a new state; the figures of the last interval stay."""
        self._show(replace(self._view, state=state))

    def _show(self, view: View) -> None:
        self._view = view
        for show in self._shows:
            show(view)

    # ---------------------------------------------------------------------------------------------- leading

    @property
    def _leads(self) -> bool:
        """True if this controller may continue; one that changes nothing need not lead."""
        return self._options.changes_nothing or self._lease.held

    def _stand_by(self) -> None:
        """Wait for leadership: a moment, or as long as a run with a number of decisions may."""
        self.within = ""
        if self.state != STANDING_BY:  # the figures are another one's to show
            self._show(View(self.pipeline, STANDING_BY, agent=self._view.agent))
        if self._options.decisions is None:
            self._stop.wait(TURN_SECONDS)
        else:
            self._lease.wait_until_held(self._options.lead_seconds, self._stop)

    def _lead(self) -> None:
        """Decide until another controller leads; after a failure the loop begins again from the cluster's state."""
        try:
            backend = self._backend = self._open()
            if self._stop.is_set():  # stopped before there was a backend to close
                return
            with suppress(ManualChangeError):  # every step says so
                backend.apply(backend.configuration)  # completes or clears away what a predecessor left
            self._decide(backend)
        except NotDeployedError:
            raise
        except Exception as error:  # the pipeline must not be left without a controller
            if not isinstance(error, ClusterError | ApplyError):
                logger.exception("the control loop failed unexpectedly")
            if not self._stop.is_set():
                self._enter(f"failing: {error}")
                logger.error("the control loop failed and begins again in %g s: %s", RETRY_SECONDS, error)
                self._stop.wait(RETRY_SECONDS)
        finally:
            self._backend = None

    def _open(self) -> KubernetesBackend:
        options = self._options
        try:
            kind = ShadowBackend if options.shadow else PreviewBackend if options.dry_run else KubernetesBackend
            return kind(
                self._cluster,
                self._pipeline,
                self._settings,
                self._monitor,
                options.interval_seconds,
                options.read_nodes,
                options.times,
                self._recorder.event,
                lambda: self._leads and not options.shadow,
            )
        except NotFoundError as error:
            if options.decisions is None:  # the service waits for its pipeline
                raise
            raise NotDeployedError(f"pipeline {self._pipeline.name!r} is not deployed: {error}") from error

    def _decide(self, backend: KubernetesBackend) -> None:
        self.within = ""
        known: dict[str, Any] = {"state": IN_SHADOW if self._options.shadow else LEADING, "agent": self._view.agent}
        self._show(view_of(self._pipeline, backend.configuration, **known))
        decisions = sys.maxsize if self._options.decisions is None else self._options.decisions - self._done
        loop = run(backend, self._pipeline, self._policy, self._forecast, self._options.objective, decisions)
        for step in loop:
            self._beat = time.monotonic()
            self._recorder.decision(step)
            view = view_of(self._pipeline, step.configuration, step, **known)
            # An interval that the end cut short was not measured.
            self._show(replace(view, interval=self._view.interval) if self._stop.is_set() else view)
            self.within = self._pipeline.service_level.stated(float(step.score.within[0]))
            self._done += 1
            self.metrics.set("leader", float(self._lease.held))
            self.metrics.set("left_alone", float(backend.left_alone))
            if self._stop.is_set() or not self._leads:
                return


@contextmanager
def health_server(controller: Controller, host: str, port: int) -> Iterator[int]:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics`` of a controller; yields the port."""

    def answer(path: str) -> Reply:
        if path == "/metrics":
            return Reply(200, generate_latest(controller.metrics.registry), CONTENT_TYPE_LATEST)
        if path not in ("/healthz", "/readyz"):
            return Reply(404, b"there are /healthz, /readyz and /metrics\n")
        good = controller.healthy if path == "/healthz" else controller.ready
        state = {name: getattr(controller, name) for name in ("state", "pipeline", "within")}
        return Reply(200 if good else 503, json.dumps(state).encode(), "application/json")

    with get_server(host, port, answer, "health") as chosen:
        yield chosen


@contextmanager
def shown(page: tuple[str, int] | None) -> Iterator[list[Callable[[View], None]]]:
    """Serve the page, and where standard output is a terminal draw there as well; otherwise the log says it all.

    Yields:
        what shows a view.
    """
    with ExitStack() as stack:
        served = stack.enter_context(served_page(page))
        shows: list[Callable[[View], None]] = [served.show]
        if sys.stdout.isatty():
            shows.append(stack.enter_context(Terminal(served.url)).show)
        if served.url:
            logger.info("the page with the live view is at %s", served.url)
        yield shows


def run_controller(
    cluster: Cluster,
    pipeline: Pipeline,
    settings: ClusterSettings,
    monitor: Monitor,
    policy: Policy,
    forecast: Callable[[np.ndarray], float],
    options: ControllerSettings,
) -> int:
    """Control a deployed pipeline until SIGTERM or SIGINT; for the main thread.

    Args:
        cluster: namespace of the pipeline.
        pipeline: what is controlled.
        settings: with which it was deployed.
        monitor: source of metrics, for example :class:`opd.serving.monitoring.prometheus.PrometheusUrl`.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        options: of the controller.

    Returns:
        the exit code.

    Raises:
        NotDeployedError: see :meth:`Controller.run`.
        LedByAnotherError: see :meth:`Controller.run`.
    """
    with shown(options.page) as shows:
        controller = Controller(cluster, pipeline, settings, monitor, policy, forecast, options, shows)
        # A handler interrupts whatever the main thread does, so it must not take locks that the main thread may hold.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=controller.stop, name="stop").start())
        with health_server(controller, options.host, options.port) as port:
            logger.info("controller %s of %s serves its state on port %d", controller.holder, pipeline.name, port)
            controller.run()
    return 0
