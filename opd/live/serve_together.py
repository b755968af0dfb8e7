"""Several pipelines served on this machine, which share its cores: an arbiter divides them every interval."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from opd.control.arbiter import Arbiter
from opd.control.policies import Policy
from opd.control.record import append_entry, step_entry
from opd.control.sharing import Member, run_together
from opd.control.warm_up import warm_up
from opd.live.serve import SERVING, STOPPING, WARMING_UP, follow
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Pipeline
from opd.serving.emulation.pipeline import emulated_pipeline
from opd.serving.local import LocalBackend
from opd.view.model import View, view_of
from opd.view.page import ViewPage, served_page
from opd.view.terminal import Terminal


@dataclass(frozen=True)
class Tenant:
    """One of the pipelines.

    Attributes:
        pipeline: its definition.
        policy: decides within its share.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        objective: of its reward.
        folder: for settings, logs and metrics of its processes.
        store: URL of its models; None where its replicas are emulated.
    """

    pipeline: Pipeline
    policy: Policy
    forecast: Callable[[np.ndarray], float]
    objective: Objective
    folder: Path
    store: str | None = None

    def start(self, parameters: SimulationParameters) -> LocalBackend:
        """Start its smallest configuration.

        Raises:
            StartError: if it does not start.
            AlreadyControlledError: if another process controls it.
        """
        served = self.pipeline if self.store else emulated_pipeline(self.pipeline)
        return LocalBackend(served, parameters, served.smallest_configuration(), self.folder, self.store)


def serve_together(
    tenants: Sequence[Tenant], parameters: SimulationParameters, capacity: int, record: Path | None = None
) -> Generator[View, None, None]:
    """Serve the pipelines until the iterator is closed; their smallest configurations run first.

    Changes of one pipeline come after those of another, which first gives back what it is to have less.

    Args:
        tenants: the pipelines.
        parameters: interval, batch timeout and maximum age of requests.
        capacity: W_max, cores that they share.
        record: file that gets a line for every decision; None for none.

    Yields:
        The view of each as soon as all serve, after every interval, and when Ctrl-C begins their end.

    Raises:
        InfeasibleError: if the smallest configurations do not fit together.
        StartError: if a pipeline does not start; nothing is left running.
        AlreadyControlledError: if another process controls one of them.
    """
    pipelines = [tenant.pipeline for tenant in tenants]
    arbiter = Arbiter(pipelines, [tenant.objective for tenant in tenants], parameters, capacity)
    with ExitStack() as stack:
        members, views = [], []
        for tenant in tenants:
            backend = stack.enter_context(tenant.start(parameters))
            parts = backend.pipeline, tenant.policy, tenant.forecast, tenant.objective
            members.append(Member(backend, *parts))
            known: dict[str, Any] = {"address": backend.address, "agent": getattr(tenant.policy, "origin", "")}
            views.append(view_of(backend.pipeline, backend.configuration, state=WARMING_UP, **known))
            backend.begin_run()  # requests may arrive from now on
        yield from _decided(members, views, arbiter, record)


def _decided(
    members: Sequence[Member], views: list[View], arbiter: Arbiter, record: Path | None
) -> Generator[View, None, None]:
    try:
        yield from views
        for member in members:
            warm_up(member.pipeline, member.policy, member.forecast)
        for steps in run_together(members, arbiter, sys.maxsize):
            for n, (member, step) in enumerate(zip(members, steps, strict=True)):
                append_entry(record, step_entry(member.pipeline, step))
                known: dict[str, Any] = {"address": views[n].address, "agent": views[n].agent, "state": SERVING}
                views[n] = view_of(member.pipeline, step.configuration, step, **known)
                yield views[n]
    except KeyboardInterrupt:
        yield from (replace(view, state=STOPPING) for view in views)
        raise


def show_together(
    views: Generator[View, None, None], names: Sequence[str], page: tuple[str, int] | None, as_json: bool
) -> None:
    """Show every view as a line, of JSON if wanted, and each pipeline on a page of its own; until Ctrl-C or SIGTERM.

    Args:
        views: of :func:`serve_together`.
        names: of the pipelines as they are served.
        page: host and port of the first page, the others have the ports that follow; None for no page.
        as_json: write JSON.
    """
    console = Console(force_interactive=False)
    with ExitStack() as stack:
        pages: dict[str, ViewPage] = {}
        for n, name in enumerate(names):
            place = page and (page[0], page[1] and page[1] + n)
            pages[name] = stack.enter_context(served_page(place))
        terminal = None if as_json else stack.enter_context(Terminal(console=console))
        if terminal is not None:
            for name, served in pages.items():
                console.print(f"{name}: {served.url or 'no page'}")

        def show(view: View) -> None:
            pages[view.pipeline].show(view)
            if terminal is None:
                document: dict[str, Any] = {**view.as_json(), "page": pages[view.pipeline].url}
                print(json.dumps(document), flush=True)
            else:
                terminal.show(view)

        follow(views, show)
