"""The controller: it leads while it holds the Lease, decides every interval, and serves its health.

Several pipelines of a namespace may share the cores of a device; it then leads while it holds the Leases of all.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from opd.cluster.api import Cluster
from opd.cluster.backend import ChangeTimes, KubernetesBackend
from opd.cluster.charge import Charge, Controlled
from opd.cluster.errors import ClusterError, NotDeployedError, NotFoundError
from opd.cluster.lease import LeaseTimes, leases_of
from opd.cluster.looking import PreviewBackend, ShadowBackend
from opd.cluster.manual import ManualChangeError
from opd.cluster.record import MetricsTogether
from opd.control.arbiter import Arbiter
from opd.control.loop import ApplyError
from opd.control.sharing import StaticSplit, run_together
from opd.control.warm_up import warm_up
from opd.host.get_server import Reply, get_server
from opd.pipeline import InfeasibleError
from opd.view.model import View
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
    """Runs pipelines until it is stopped.

    Args:
        cluster: namespace of the pipelines.
        controlled: the pipelines, of different names.
        division: divides the cores of the device among them.
        options: of the controller.
        shows: each shows every new view, at once and without an error.
    """

    def __init__(
        self,
        cluster: Cluster,
        controlled: Sequence[Controlled],
        division: Arbiter | StaticSplit,
        options: ControllerSettings,
        shows: Sequence[Callable[[View], None]] = (),
    ) -> None:
        self._cluster, self._division, self._options = cluster, division, options
        self._leases = leases_of(cluster, [each.pipeline.name for each in controlled], options.lease)
        self.holder = next(iter(self._leases.values())).holder
        events = not options.changes_nothing
        common = self.holder, events, options.record, shows
        self._charges = [Charge(cluster, each, *common) for each in controlled]
        self._stop = threading.Event()
        self._beat = time.monotonic()
        self._done = 0

    # ---------------------------------------------------------------------------------------------- from outside

    def stop(self) -> None:
        """End soon; a change in progress is cleared away first. Any thread may call this."""
        self._stop.set()
        for backend in [each.backend for each in self._charges]:
            if backend is not None:
                backend.close()

    @property
    def healthy(self) -> bool:
        """True while the loop advances; if it does not, only a restart helps."""
        changes = 2 * sum(each.controlled.settings.apply_seconds for each in self._charges)
        limit = changes + self._options.interval_seconds + self._options.stuck_seconds
        return time.monotonic() - self._beat < limit

    @property
    def state(self) -> str:
        """What the controller does now, in words."""
        return self._charges[0].view.state

    @property
    def within(self) -> dict[str, str]:
        """The last interval of each pipeline beside its service level, in words, by name."""
        return {each.name: each.within for each in self._charges}

    @property
    def metrics(self) -> MetricsTogether:
        """Metrics of all pipelines."""
        return MetricsTogether([each.metrics for each in self._charges])

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
            with ExitStack() as leading:
                for lease in [] if self._options.changes_nothing else self._leases.values():
                    leading.enter_context(lease)
                while not self._stop.is_set() and self._done != self._options.decisions:
                    self._beat = time.monotonic()
                    self._note_leadership()
                    if self._leads:
                        self._lead()
                    else:
                        self._stand_by()
        finally:
            self._enter("ended")
            self._note_leadership()

    def _warm_up(self) -> None:
        """Compile what decisions need before this controller may lead; a failure only makes the first one slow."""
        self._enter("warming up")
        begin = time.monotonic()
        logger.info("warming up: decisions are compiled")
        try:
            self._division.warm_up()
            for each in self._charges:
                warm_up(each.controlled.pipeline, each.controlled.policy, each.controlled.forecast)
        except Exception:
            logger.warning("the warm-up failed", exc_info=True)
        logger.info("warmed up in %.1f s", time.monotonic() - begin)

    def _enter(self, state: str) -> None:
        for each in self._charges:
            each.enter(state)

    # ---------------------------------------------------------------------------------------------- leading

    @property
    def _leads(self) -> bool:
        """True if this controller may continue; one that changes nothing need not lead."""
        return self._options.changes_nothing or all(lease.held for lease in self._leases.values())

    def _note_leadership(self) -> None:
        for each in self._charges:
            each.metrics.set("leader", float(self._leases[each.name].held))

    def _stand_by(self) -> None:
        """Wait for leadership: a moment, or as long as a run with a number of decisions may."""
        for each in self._charges:
            each.stand_by(STANDING_BY)
        if self._options.decisions is None:
            self._stop.wait(TURN_SECONDS)
            return
        for lease in self._leases.values():
            lease.wait_until_held(self._options.lead_seconds, self._stop)

    def _lead(self) -> None:
        """Decide until another controller leads; after a failure the loop begins again from the cluster's state."""
        try:
            backends = [self._open(each) for each in self._charges]
            if self._stop.is_set():  # stopped before there were backends to close
                return
            for backend in backends:
                with suppress(ManualChangeError):  # every step says so
                    backend.apply(backend.configuration)  # completes or clears away what a predecessor left
            self._decide(backends)
        except NotDeployedError:
            raise
        except Exception as error:  # the pipeline must not be left without a controller
            if not isinstance(error, ClusterError | ApplyError | InfeasibleError):
                logger.exception("the control loop failed unexpectedly")
            if not self._stop.is_set():
                self._enter(f"failing: {error}")
                logger.error("the control loop failed and begins again in %g s: %s", RETRY_SECONDS, error)
                self._stop.wait(RETRY_SECONDS)
        finally:
            for each in self._charges:
                each.backend = None

    def _open(self, charge: Charge) -> KubernetesBackend:
        options, known = self._options, charge.controlled

        def left_by_others() -> float:
            return self._division.capacity - sum(each.cores_in_use() for each in self._charges if each is not charge)

        try:
            kind = ShadowBackend if options.shadow else PreviewBackend if options.dry_run else KubernetesBackend
            charge.backend = kind(
                self._cluster,
                known.pipeline,
                known.settings,
                known.monitor,
                options.interval_seconds,
                options.read_nodes,
                options.times,
                charge.recorder.event,
                lambda: self._leads and not options.shadow,
                left_by_others if len(self._charges) > 1 else None,
            )
            return charge.backend
        except NotFoundError as error:
            if options.decisions is None:  # the service waits for its pipeline
                raise
            raise NotDeployedError(f"pipeline {charge.name!r} is not deployed: {error}") from error

    def _decide(self, backends: Sequence[KubernetesBackend]) -> None:
        state = IN_SHADOW if self._options.shadow else LEADING
        both = list(zip(self._charges, backends, strict=True))
        for charge, backend in both:
            charge.begin(backend, state)
        members = [charge.member(backend) for charge, backend in both]
        decisions = sys.maxsize if self._options.decisions is None else self._options.decisions - self._done
        for steps in run_together(members, self._division, decisions):
            self._beat = time.monotonic()
            for (charge, backend), step in zip(both, steps, strict=True):
                charge.decided(backend, step, state, self._stop.is_set())
            self._done += 1
            self._note_leadership()
            if self._stop.is_set() or not self._leads:
                return


@contextmanager
def health_server(controller: Controller, host: str, port: int) -> Iterator[int]:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics`` of a controller; yields the port."""

    def answer(path: str) -> Reply:
        if path == "/metrics":
            return Reply(200, generate_latest(controller.metrics), CONTENT_TYPE_LATEST)
        if path not in ("/healthz", "/readyz"):
            return Reply(404, b"there are /healthz, /readyz and /metrics\n")
        good = controller.healthy if path == "/healthz" else controller.ready
        state = {"state": controller.state, "pipelines": controller.within}
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
    cluster: Cluster, controlled: Sequence[Controlled], division: Arbiter | StaticSplit, options: ControllerSettings
) -> int:
    """Control deployed pipelines until SIGTERM or SIGINT; for the main thread.

    Args:
        cluster: namespace of the pipelines.
        controlled: the pipelines, of different names.
        division: divides the cores of the device among them.
        options: of the controller.

    Returns:
        the exit code.

    Raises:
        NotDeployedError: see :meth:`Controller.run`.
        LedByAnotherError: see :meth:`Controller.run`.
    """
    with shown(options.page) as shows:
        controller = Controller(cluster, controlled, division, options, shows)
        # A handler interrupts whatever the main thread does, so it must not take locks that the main thread may hold.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: threading.Thread(target=controller.stop, name="stop").start())
        with health_server(controller, options.host, options.port) as port:
            names = ", ".join(controller.within)
            logger.info("controller %s of %s serves its state on port %d", controller.holder, names, port)
            controller.run()
    return 0
