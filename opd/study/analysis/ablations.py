"""The ablations: agents that lack one part and the solvers they are compared with, their training and evaluation.

Every ablation departs from the full agent in one thing. All are trained by the same code with the same seeds and run
through the same cycles of the test days, so rewards are compared in pairs: same seed of the training, same cycle, same
requests. Trained networks are kept, and interrupted trainings resume.

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

import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from opd.agent.single.jobs import Job
from opd.agent.single.network import ActorCritic
from opd.agent.single.ppo import train
from opd.agent.single.problem import Problem, TrainingParameters
from opd.control import AGENT
from opd.control.policies import Policy, SolverPolicy
from opd.host.archive import written_whole
from opd.host.parallel import run_tasks
from opd.host.progress import progress_bar
from opd.measurement import Observation, observed_state
from opd.pipeline import Configuration, Pipeline, as_configuration
from opd.solvers.exact import solver_for
from opd.study.analysis.ablation_networks import AblatedTrainer, IndependentNetwork, PlainNetwork, QueuelessNetwork
from opd.study.analysis.devices import with_startup_factor
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Cycle, Workload

COLUMNS = ["pipeline", "variant", "seed", "cycle", "reward", "qos", "cost", "dropped", "refused"]

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


INSTANT = "no-startup"

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
    "myopic": AblationEnvironment(),
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
    """The same problem in another environment.

    A solver as the expert ignores start-up times and follows the given forecast; the planner keeps its futures.
    """
    return problem._replace(
        pipeline=problem.pipeline if environment.startup else with_startup_factor(problem.pipeline, 0.0),
        training=with_forecast(problem.training, environment.forecast),
        validation=with_forecast(problem.validation, environment.forecast),
    )


@dataclass(frozen=True)
class AblationStudy:
    """The common setting of all ablations.

    Attributes:
        setting: trace, forecaster, weights and simulation.
        parameters: of the full agent's training.
        problems: of the full agent, by name of the pipeline.
        cycles: for the evaluation.
        seeds: one training each; also seeds of the requests in the evaluation.
        folder: for the trained networks.
        penalty: reward that a refused action costs in training, in the units of Eq. 7. With the study's weights 1.0 is
            the price of seven cores, or of twenty dropped requests in training.
    """

    setting: Setting
    parameters: TrainingParameters
    problems: Mapping[str, Problem]
    cycles: Sequence[Cycle]
    seeds: Sequence[int]
    folder: Path
    penalty: float = 1.0


# ------------------------------------------------------------------------------------------------------------ training

_FORMAT = "opd ablation 1"
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True)
class AblationTraining(Job):
    """The training of one ablation with one seed: :class:`opd.agent.single.jobs.Job` for networks of any class.

    Attributes:
        penalty: reward that a refused action costs; 0 for networks that are never refused.
    """

    penalty: float

    @property
    def network_class(self) -> type[ActorCritic]:
        """Class of the network."""
        return ABLATIONS[self.policy].network

    @cached_property
    def about(self) -> dict[str, Any]:
        """Everything that the trained network depends on; data by their checksums."""
        own = {"network": self.network_class.__name__, "penalty": self.penalty}
        return super().about | own | {"pipeline": asdict(self.problem.pipeline)}

    @property
    def done(self) -> bool:
        """True if the network at the path is the one that this would train."""
        return self._stored() is not None

    def run(self) -> ActorCritic:
        """Return the trained network: from its file, or from a training that resumes an interrupted one."""
        weights = self._stored()
        if weights is None:
            self._train()
            weights = self._stored()
            assert weights is not None
        network = self.network_class(self.problem.pipeline, self.parameters.width, self.parameters.blocks)
        network.load_state_dict(weights)
        return network

    def _stored(self) -> dict[str, torch.Tensor] | None:
        try:
            content = torch.load(self.path, weights_only=True)
        except _UNREADABLE:
            return None
        known = isinstance(content, dict) and content.get("format") == _FORMAT and content.get("about") == self.about
        return content["network"] if known else None

    def _train(self) -> None:
        torch.set_num_threads(1)
        trainer = partial(AblatedTrainer, self.network_class, self.penalty)
        network = train(self.problem, self.parameters, self.seed, self.folder, self.title, trainer)
        with written_whole(self.path) as unfinished:
            torch.save({"format": _FORMAT, "about": self.about, "network": network.state_dict()}, unfinished)
        shutil.rmtree(self.folder)  # some megabytes of checkpoints that are no longer needed


def ablation_training(study: AblationStudy, pipeline: str, variant: str, seed: int) -> AblationTraining:
    """Make the training of one ablation."""
    ablation = ABLATIONS[variant]
    return AblationTraining(
        variant,
        seed,
        in_environment(study.problems[pipeline], ablation.environment),
        replace(study.parameters, **ablation.training),
        study.folder / pipeline / f"{variant}-{seed}.pt",
        study.penalty if ablation.network is IndependentNetwork else 0.0,
    )


# -------------------------------------------------------------------------------------------------- evaluation


class ForecastOverride(Policy):
    """A policy with another forecast than the control loop's.

    Args:
        policy: decides.
        forecast: one of :data:`FORECASTS`.
    """

    def __init__(self, policy: Policy, forecast: str) -> None:
        if forecast not in FORECASTS:
            raise ValueError(f"forecast {forecast!r} is not one of {FORECASTS}")
        self._policy, self._forecast = policy, forecast

    def decide(self, observation: Observation) -> Configuration:
        """The decision of the policy with the other forecast."""
        return self._policy.decide(replace(observation, predicted_load=self._load(observation)))

    def _load(self, observation: Observation) -> float:
        if self._forecast == "lstm":
            return observation.predicted_load
        if self._forecast == "recent-maximum":
            return RecentMaximum().predict(observation.history)
        assert observation.coming_load is not None  # the simulator knows it
        return observation.coming_load


class NetworkPolicy(Policy):
    """A trained network without a fallback, greedy; its actions may exceed the capacity.

    Args:
        pipeline: the pipeline it was trained for.
        network: decides.
    """

    def __init__(self, pipeline: Pipeline, network: ActorCritic) -> None:
        self._pipeline, self._network = pipeline, network

    def decide(self, observation: Observation) -> Configuration:
        """One forward pass on the state of Eq. 5."""
        return as_configuration(self._network.configure(observed_state(self._pipeline, observation))[0])


class AblationRun(NamedTuple):
    """One of the variants on one pipeline with one seed."""

    pipeline: str
    variant: str
    seed: int


def run_ablation(study: AblationStudy, run: AblationRun) -> list[dict[str, Any]]:
    """Train the network if necessary, then evaluate it: one row a cycle, see :data:`COLUMNS`."""
    torch.set_num_threads(1)
    environment = environment_of(run.variant)
    policy: Policy
    if run.variant in ABLATIONS:
        training = ablation_training(study, *run)
        pipeline = training.problem.pipeline
        policy = NetworkPolicy(pipeline, training.run())
    else:
        known = study.problems[run.pipeline].pipeline
        pipeline = known if environment.startup else with_startup_factor(known, 0.0)
        policy = SolverPolicy(pipeline, solver_for(study.setting.objective, study.setting.simulation))
    policy = ForecastOverride(policy, environment.forecast)
    rows = []
    for cycle in study.cycles:
        steps = run_cycle(pipeline, policy, cycle, run.seed, study.setting)
        rows.append(run._asdict() | {"cycle": cycle.name} | cycle_summary(steps))
    return rows


def measure_ablations(study: AblationStudy, workers: int = 1, variants: Sequence[str] = VARIANTS) -> pd.DataFrame:
    """Train and evaluate all variants, ``workers`` processes at a time, with progress.

    Trained networks are kept in the study's folder: an interrupted call resumes, and a repeated one only evaluates.

    Args:
        study: pipelines, cycles and seeds.
        workers: processes, one thread each.
        variants: some of :data:`VARIANTS`.

    Returns:
        A row for every pipeline, variant, seed and cycle, with the means of ``reward`` (Eq. 7), ``qos`` (Eq. 3) and
        ``cost`` (cores) over the decisions of a cycle, and its numbers of requests ``dropped`` and decisions
        ``refused``.

    Raises:
        ValueError: if there is no such variant.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise ValueError(f"unknown variants {sorted(unknown)}; there are {', '.join(VARIANTS)}")
    runs = [AblationRun(*each) for each in product(study.problems, variants, study.seeds)]
    progress = progress_bar(
        run_tasks(run_ablation, study, runs, workers), total=len(runs), desc="ablations", unit="run"
    )
    return pd.DataFrame([row for rows in progress for row in rows])[COLUMNS]
