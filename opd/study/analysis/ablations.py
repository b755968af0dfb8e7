"""The ablations: agents that lack one part, and the solvers they are compared with.

Every ablation departs from the full agent in one thing. All are trained by the same code with the same seeds and run
through the same cycles of the test days, so rewards are compared in pairs: same seed of the training, same cycle, same
requests.

What to know when reading the results:

* ``no-expert`` imitates nobody and sees no demonstrations. Its episodes still begin with the expert's configuration,
  and it takes the scale of states and rewards from the expert's demonstrations.
* Another forecast replaces the study's wherever one is used: in the state, for the expert that is imitated, for the
  solver that dropped requests are compared with, and in the evaluation. Only the initial configuration of a cycle is
  the same for all.
* ``independent-heads`` can choose actions above the capacity. They are refused and the previous configuration keeps
  running: in the evaluation by the guard of the control loop, in training at the cost of a penalty. The refusals in the
  evaluation are counted.
* Networks are evaluated alone, without the fallback policy of the deployed agent.
* Without start-up delays everything changes for all policies. There the lead over the myopic solver counts, which
  ignores delays, with and without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from opd.agent.network import ActorCritic
from opd.agent.problem import Problem
from opd.control import AGENT
from opd.pipeline import Pipeline
from opd.study.analysis.ablation_networks import IndependentNetwork, PlainNetwork, QueuelessNetwork
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Workload

FORECASTS = ("lstm", "recent-maximum", "perfect")
"""The study's forecaster, the largest load of the last 20 s, and the largest of the next 20 s."""


class AblationEnvironment(NamedTuple):
    """The surroundings of a policy: the forecast it gets, and whether replicas take time to start."""

    forecast: str = "lstm"
    startup: bool = True


@dataclass(frozen=True)
class Ablation:
    """An agent that departs from the full agent in one thing.

    Attributes:
        part: the part of the agent that it is about.
        label: its name in figures and text.
        training: departures from the study's training parameters.
        network: class of its network.
        environment: where it is trained and evaluated.
    """

    part: str
    label: str
    training: Mapping[str, Any] = field(default_factory=dict)
    network: type[ActorCritic] = ActorCritic
    environment: AblationEnvironment = AblationEnvironment()


MYOPIC, INSTANT = "myopic", "no-startup"

ABLATIONS = {
    AGENT: Ablation("full agent", "full agent"),
    "paper-guidance": Ablation("expert", "expert acts now and then (Alg. 2)", {"expert_mode": "paper"}),
    "no-expert": Ablation("expert", "no expert", {"expert_mode": "none"}),
    "plain-features": Ablation("features", "features without shortcuts", network=PlainNetwork),
    "independent-heads": Ablation("heads", "independent heads", network=IndependentNetwork),
    "recent-maximum": Ablation(
        "forecast", "maximum of the last 20 s", environment=AblationEnvironment("recent-maximum")
    ),
    "perfect-forecast": Ablation("forecast", "perfect forecast", environment=AblationEnvironment("perfect")),
    "no-queues": Ablation("queues", "queues not observed", network=QueuelessNetwork),
    INSTANT: Ablation("start-up", "no start-up delays", environment=AblationEnvironment(startup=False)),
}
"""All trained variants, the full agent first."""

SOLVERS = {
    MYOPIC: AblationEnvironment(),
    "clairvoyant": AblationEnvironment("perfect"),
    "myopic-recent-maximum": AblationEnvironment("recent-maximum"),
    "myopic-no-startup": AblationEnvironment(startup=False),
    "clairvoyant-no-startup": AblationEnvironment("perfect", startup=False),
}
"""The exact maximiser of Eq. 7 in every environment; with a perfect forecast it is the clairvoyant solver."""

VARIANTS = (*ABLATIONS, *SOLVERS)


def variants_table() -> pd.DataFrame:
    """Describe the ablations: columns part and variant, by name."""
    return pd.DataFrame(
        {name: [each.part, each.label] for name, each in ABLATIONS.items()}, index=["part", "variant"]
    ).T


def environment_of(variant: str) -> AblationEnvironment:
    """The environment of one of :data:`VARIANTS`."""
    return ABLATIONS[variant].environment if variant in ABLATIONS else SOLVERS[variant]


def matching_solver(variant: str) -> str:
    """The solver in the environment of one of :data:`VARIANTS`, with the same forecast."""
    return next(name for name, environment in SOLVERS.items() if environment == environment_of(variant))


def matching_agent(variant: str) -> str:
    """The full agent in an environment with the same start-up delays."""
    return AGENT if environment_of(variant).startup else INSTANT


# ------------------------------------------------------------------------------------------------ environments


def without_startup(pipeline: Pipeline) -> Pipeline:
    """The same pipeline with replicas that serve immediately."""
    tasks = tuple(
        replace(task, variants=tuple(replace(variant, startup_time=0.0) for variant in task.variants))
        for task in pipeline.tasks
    )
    return replace(pipeline, tasks=tasks)


def with_forecast(workload: Workload, forecast: str) -> Workload:
    """The same load with another of :data:`FORECASTS`; ``lstm`` stands for the forecasts it has.

    Raises:
        ValueError: if there is no such forecast.
    """
    steps = np.arange(len(workload.forecasts))
    if forecast == "lstm":
        return workload
    if forecast == "recent-maximum":
        return replace(workload, forecasts=RecentMaximum().predict_many(workload.counts, workload.interval * steps))
    if forecast == "perfect":
        return replace(workload, forecasts=workload.perfect_forecasts(steps).astype(float))
    raise ValueError(f"forecast {forecast!r} is not one of {FORECASTS}")


def in_environment(problem: Problem, environment: AblationEnvironment) -> Problem:
    """The same problem in another environment; the expert ignores start-up times and follows the given forecast."""
    return problem._replace(
        pipeline=problem.pipeline if environment.startup else without_startup(problem.pipeline),
        training=with_forecast(problem.training, environment.forecast),
        validation=with_forecast(problem.validation, environment.forecast),
    )
