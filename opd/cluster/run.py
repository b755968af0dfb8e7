"""Preparation of a controller's run from the options of the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opd.cluster.connection import credentials
from opd.cluster.controller import ControllerSettings, run_controller
from opd.cluster.errors import InputError
from opd.cluster.settings import ClusterSettings
from opd.control.factory import build_policy
from opd.host.documents import read_document
from opd.host.paths import project_path
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusUrl
from opd.solvers import IpaParameters
from opd.workload.forecast import Forecaster


@dataclass(frozen=True)
class RunOptions:
    """Options of a run.

    Attributes:
        policy: name of the policy.
        agent: checkpoint; by default the pipeline's agent in ``models/``.
        forecaster: checkpoint; by default the one in ``models/``.
        params: file of weights and times; by default ``params.yaml`` of the project.
        prometheus: URL; by default of the environment.
        interval_seconds: between decisions; by default that of ``params``.
        decisions: after which the run ends; never if None.
        seed: of policy ``random``.
        port: of health and metrics; any free one if 0.
        read_nodes: limit decisions to the free cores of the nodes.
        dry_run: print what would change, and change nothing.
    """

    policy: str = "agent"
    agent: Path | None = None
    forecaster: Path | None = None
    params: Path | None = None
    prometheus: str | None = None
    interval_seconds: float | None = None
    decisions: int | None = None
    seed: int = 0
    port: int = 8080
    read_nodes: bool = False
    dry_run: bool = False


def prepare_run(
    pipeline: Pipeline,
    settings: ClusterSettings,
    options: RunOptions,
    kubeconfig: str | None = None,
    context: str | None = None,
) -> Callable[[], int]:
    """Load policy and forecaster, and return a function that controls the pipeline until it is interrupted.

    Raises:
        InputError: if no Prometheus server is named.
        CredentialsError: if there is nothing to log in with.
        ValueError: if the policy is unknown, or a file cannot be used.
        OSError: if a file cannot be read.
    """
    url = options.prometheus or os.environ.get(PROMETHEUS_URL_VARIABLE)
    if not url:
        raise InputError(f"name the Prometheus server with --prometheus, or in {PROMETHEUS_URL_VARIABLE}")
    credentials(kubeconfig, context)
    parameters = read_document(options.params or project_path("params.yaml"))
    simulation = SimulationParameters(**parameters["simulation"])
    weights = Weights(**parameters["weights"])
    policy = build_policy(
        options.policy,
        pipeline,
        weights,
        simulation,
        IpaParameters(**parameters["ipa"]),
        options.seed,
        options.agent or _default_agent(pipeline.name),
    )
    file = options.forecaster or project_path("models", "forecaster.npz")
    forecaster = Forecaster.load(file, parameters["damping"])
    controller_settings = ControllerSettings(
        interval_seconds=options.interval_seconds or simulation.interval,
        weights=weights,
        port=options.port,
        read_nodes=options.read_nodes,
        dry_run=options.dry_run,
        decisions=options.decisions,
    )
    monitor = PrometheusUrl(url, labels=settings.series_labels)
    return lambda: run_controller(
        pipeline, settings, monitor, policy, forecaster.predict, controller_settings, kubeconfig, context
    )


def _default_agent(name: str) -> Path | None:
    """Return the checkpoint of the pipeline's agent, as trained or as the controller's pod mounts it."""
    candidates = project_path("models", "agents", name, "agent-0.npz"), project_path("models", "agent.npz")
    return next((path for path in candidates if path.is_file()), None)
