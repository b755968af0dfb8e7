"""What a controller knows of each pipeline in its charge: what decides about it, what runs, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.record import ControllerMetrics, Recorder
from opd.cluster.settings import ClusterSettings
from opd.control.loop import Step
from opd.control.policies import Policy
from opd.control.sharing import Member
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.serving.monitoring.source import Monitor
from opd.view.model import View, view_of


@dataclass(frozen=True)
class Controlled:
    """A deployed pipeline to control.

    Attributes:
        pipeline: its definition; its capacity is that of the device.
        settings: with which it was deployed.
        monitor: source of metrics, for example :class:`opd.serving.monitoring.prometheus.PrometheusUrl`.
        policy: decides.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of the reported reward.
    """

    pipeline: Pipeline
    settings: ClusterSettings
    monitor: Monitor
    policy: Policy
    forecast: Callable[[np.ndarray], float]
    objective: Objective


class Charge:
    """One of the pipelines of a controller.

    Args:
        cluster: where Events go.
        controlled: the pipeline.
        holder: name of the controller.
        events: whether to create Events.
        record: file that gets every decision; None for none.
        shows: each shows every new view, at once and without an error.

    Attributes:
        backend: where it runs; None while nothing is decided.
        within: the last interval beside the service level, in words.
    """

    def __init__(
        self,
        cluster: Cluster,
        controlled: Controlled,
        holder: str,
        events: bool,
        record: Path | None,
        shows: Sequence[Callable[[View], None]],
    ) -> None:
        self.controlled, self.name = controlled, controlled.pipeline.name
        self.metrics = ControllerMetrics(self.name)
        self.recorder = Recorder(cluster, controlled.pipeline, self.metrics, holder, events, record)
        self.backend: KubernetesBackend | None = None
        self.within = ""
        self._shows = shows
        self._agent = getattr(controlled.policy, "origin", "")
        self.view = View(self.name, "starting", agent=self._agent)

    def cores_in_use(self) -> float:
        """Cores that its replicas hold, see :meth:`KubernetesBackend.cores_in_use`; 0 while nothing is decided."""
        return self.backend.cores_in_use() if self.backend else 0.0

    def member(self, backend: KubernetesBackend) -> Member[KubernetesBackend]:
        """The pipeline as :func:`opd.control.sharing.run_together` takes it."""
        known = self.controlled
        return Member(backend, known.pipeline, known.policy, known.forecast, known.objective)

    def enter(self, state: str) -> None:
        """Show a new state; the figures of the last interval stay."""
        self._show(replace(self.view, state=state))

    def stand_by(self, state: str) -> None:
        """Show a state without figures, which are another controller's to show."""
        self.within = ""
        if self.view.state != state:
            self._show(View(self.name, state, agent=self._agent))

    def begin(self, backend: KubernetesBackend, state: str) -> None:
        """Show what runs before the first decision."""
        self.within = ""
        self._show(self._view_of(backend, state))

    def decided(self, backend: KubernetesBackend, step: Step, state: str, cut_short: bool) -> None:
        """Record and show a step; an interval that the end cut short was not measured."""
        self.recorder.decision(step)
        view = self._view_of(backend, state, step)
        self._show(replace(view, interval=self.view.interval) if cut_short else view)
        self.within = self.controlled.pipeline.service_level.stated(float(step.score.within[0]))
        self.metrics.set("left_alone", float(backend.left_alone))

    def _view_of(self, backend: KubernetesBackend, state: str, *step: Step) -> View:
        known: dict[str, Any] = {"state": state, "agent": self._agent}
        running = step[0].configuration if step else backend.configuration
        return view_of(self.controlled.pipeline, running, *step, **known)

    def _show(self, view: View) -> None:
        self.view = view
        for show in self._shows:
            show(view)
