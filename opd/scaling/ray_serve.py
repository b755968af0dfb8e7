"""An application-level autoscaling policy for Ray Serve: it decides the replicas of a pipeline's deployments together.

Ray makes the policy where it builds the application, pickles it, and calls it in Serve's controller in every step of
its control loop, about ten times a second. The loop waits for a call; after an error of one, the step leaves out this
application and those after it (Ray 2.53, ``ray.serve._private.application_state``). So a call raises nothing and waits
for nothing: a thread reads the load and decides, and a call tells the last decision.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opd.host.errors import reason_of
from opd.scaling.decider import ReplicaDecider, load_forecast, load_plan, measured_history
from opd.serving.monitoring.prometheus import PrometheusUrl

# What is logged here goes to the file of Serve's controller.
logger = logging.getLogger("ray.serve")


class ServePolicy:
    """A policy for ``autoscaling_policy.policy_function`` of an application, which names a variable that holds one.

    Args:
        pipeline: a project folder, a pipeline file, or the name of a shipped pipeline. It is read when the policy is
            made; the controller needs no file.
        running: by task, the name of the variant and the batch size that its deployment runs.
        query: requests/s that enter the pipeline, as one series of Prometheus.
        prometheus: URL of the Prometheus server, as the controller reaches it.
        deployments: names of deployments by task, where they are not those of the tasks.
        forecaster: trained forecaster; if omitted, the forecast is the largest load of the last 20 s.
        interval: seconds between two decisions.

    Raises:
        Exception: those of reading the files.
        KeyError: if ``running`` lacks a task, or names a variant that there is not.
        ValueError: if a batch size has no profile, ``deployments`` has another task, or two tasks share a deployment.
    """

    def __init__(
        self,
        pipeline: str,
        running: Mapping[str, tuple[str, int]],
        query: str,
        prometheus: str,
        deployments: Mapping[str, str] | None = None,
        forecaster: Path | None = None,
        interval: float = 10.0,
    ) -> None:
        self._plan, self._forecast = load_plan(pipeline, running), load_forecast(forecaster)
        self._tasks = _tasks_by_deployment(self._plan.tasks, deployments or {})
        self._query, self._prometheus, self._interval = query, prometheus, interval
        # What follows changes in the controller only, so threads and connections are never pickled.
        self._decider: ReplicaDecider | None = None
        self._thread: threading.Thread | None = None
        self._due = -np.inf
        self._replicas: dict[str, int] = {}
        self._failure = ""
        self._missing: set[str] = set()

    def __call__(self, contexts: Mapping[Any, Any]) -> tuple[dict[Any, int], dict[Any, dict]]:
        """Implements the contract of Ray's policies.

        Args:
            contexts: by ``DeploymentID``, an ``AutoscalingContext`` for every deployment that is scaled.

        Returns:
            Replicas by ``DeploymentID``: those of the last decision, none as long as there is none, and none for
            deployments that are no stage, all of which Ray leaves as they are. And the state, which is empty.
        """
        self._name_missing({identifier.name for identifier in contexts})
        if (self._thread is None or not self._thread.is_alive()) and time.monotonic() >= self._due:
            self._thread = threading.Thread(target=self._decide, daemon=True)
            self._thread.start()
        replicas = self._replicas  # one decision for all, whatever the thread does meanwhile
        stages = [identifier for identifier in contexts if identifier.name in self._tasks] if replicas else []
        return {identifier: replicas[self._tasks[identifier.name]] for identifier in stages}, {}

    def _decide(self) -> None:
        try:
            if self._decider is None:
                monitor = PrometheusUrl(self._prometheus)
                history = partial(measured_history, monitor, self._query)
                self._decider = ReplicaDecider(self._plan, history, self._forecast, self._interval, time.monotonic)
            self._replicas, failure = self._decider.replicas(), ""
        except Exception as error:
            failure = reason_of(error)
        if failure and failure != self._failure:
            logger.warning("no decision, replicas stay as they are: %s", failure)
        self._failure = failure
        self._due = time.monotonic() + self._interval

    def _name_missing(self, scaled: set[str]) -> None:
        """Log, when it changes, which stages cannot be scaled."""
        missing = self._tasks.keys() - scaled
        if missing != self._missing:
            self._missing = missing
            for name in sorted(missing):
                logger.warning(
                    "task %r is not scaled: the application has no deployment %r with an autoscaling_config; give it "
                    "one, or name the deployment of the task in deployments={...} of the policy",
                    self._tasks[name],
                    name,
                )


def _tasks_by_deployment(tasks: tuple[str, ...], deployments: Mapping[str, str]) -> dict[str, str]:
    unknown = deployments.keys() - set(tasks)
    if unknown:
        raise ValueError(
            f"deployments names {', '.join(map(repr, sorted(unknown)))}, which the pipeline does not have as a task; "
            f"its tasks are {', '.join(tasks)}"
        )
    found = {deployments.get(task, task): task for task in tasks}
    if len(found) < len(tasks):
        raise ValueError(f"two tasks share a deployment, {dict(deployments)}; every task needs one of its own")
    return found
