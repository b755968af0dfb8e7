"""What each part of the agent is worth: agents that lack one, trained and evaluated as the full agent is.

Every ablation departs from the full agent in one thing. All are trained by the same code with the same seeds, then run
through the same cycles of the test days by the control loop, so that their rewards are compared in pairs: same seed of
training, same cycle, same requests.

What has to be known to read the results:

* ``no-expert`` imitates nobody and is shown nothing. It still begins its episodes with what the expert would run, and
  takes the scale of states and rewards from the expert's demonstrations.
* Forecasts are exchanged wherever one is used: in the state, for the expert that is imitated, for the solver that drops
  are held against, and in evaluation. Only the configuration that a cycle begins with is the same for all.
* ``independent-heads`` can choose what exceeds the capacity. Then what ran before goes on, in evaluation by the control
  loop's own guard. In training that costs a penalty. How often it happens in evaluation is counted.
* Networks are evaluated alone: the expert, which stands in for the deployed agent where it is beyond its training or
  has fallen behind, stands in for nobody here.
* Without start-up delays everything changes for all policies. What counts there is how far the agent is above the
  myopic solver, which knows nothing of delays, with and without them.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from opd.agent.jobs import Job
from opd.agent.network import ActorCritic
from opd.agent.parameters import TrainingParameters
from opd.agent.ppo import train
from opd.agent.problem import Problem
from opd.archive import written_whole
from opd.control.policies import MyopicPolicy, Policy
from opd.measurement import Observation, observed_state
from opd.parallel import run_tasks
from opd.pipeline import Configuration, Pipeline, as_configuration, from_choices
from opd.study.analysis.ablation_networks import AblatedTrainer, IndependentNetwork, PlainNetwork, QueuelessNetwork
from opd.study.analysis.estimates import estimate
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.workload.cycles import Cycle
from opd.workload.load import RecentMaximum
from opd.workload.workload import Workload

FORECASTS = ("lstm", "recent-maximum", "perfect")
"""The study's forecaster, the largest load of the last 20 s, and the largest of the next 20 s."""


class World(NamedTuple):
    """What surrounds a policy: the forecast it is given, and whether replicas take time to start."""

    forecast: str = "lstm"
    startup: bool = True


@dataclass(frozen=True)
class Ablation:
    """An agent that departs from the full one in one thing.

    Attributes:
        part: what of the agent it is about.
        label: what figures call it.
        training: departures from the study's training parameters.
        network: what is trained.
        world: where it is trained and evaluated.
    """

    part: str
    label: str
    training: Mapping[str, Any] = field(default_factory=dict)
    network: type[ActorCritic] = ActorCritic
    world: World = World()


AGENT, MYOPIC, INSTANT = "agent", "myopic", "no-startup"

ABLATIONS = {
    AGENT: Ablation("full agent", "full agent"),
    "paper-guidance": Ablation("expert", "expert acts now and then (Alg. 2)", {"expert_mode": "paper"}),
    "no-expert": Ablation("expert", "no expert", {"expert_mode": "none"}),
    "plain-features": Ablation("features", "features without shortcuts", network=PlainNetwork),
    "independent-heads": Ablation("heads", "independent heads", network=IndependentNetwork),
    "recent-maximum": Ablation("forecast", "maximum of the last 20 s", world=World("recent-maximum")),
    "perfect-forecast": Ablation("forecast", "perfect forecast", world=World("perfect")),
    "no-queues": Ablation("queues", "queues not observed", network=QueuelessNetwork),
    INSTANT: Ablation("start-up", "no start-up delays", world=World(startup=False)),
}
"""All that are trained, the full agent first."""

SOLVERS = {
    MYOPIC: World(),
    "clairvoyant": World("perfect"),
    "myopic-recent-maximum": World("recent-maximum"),
    "myopic-no-startup": World(startup=False),
    "clairvoyant-no-startup": World("perfect", startup=False),
}
"""The exact maximiser of Eq. 7 in every world; with a perfect forecast it is the clairvoyant solver."""

VARIANTS = (*ABLATIONS, *SOLVERS)

COLUMNS = ["pipeline", "variant", "seed", "cycle", "reward", "qos", "cost", "dropped", "refused"]

_FORMAT = "opd ablation 2"
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


def overview() -> pd.DataFrame:
    """What is ablated: columns part and variant, by name."""
    return pd.DataFrame(
        {name: [each.part, each.label] for name, each in ABLATIONS.items()}, index=["part", "variant"]
    ).T


def world_of(variant: str) -> World:
    """The world of one of :data:`VARIANTS`."""
    return ABLATIONS[variant].world if variant in ABLATIONS else SOLVERS[variant]


def rival(variant: str) -> str:
    """The solver that meets the same world as one of :data:`VARIANTS` and is given the same forecast."""
    return next(name for name, world in SOLVERS.items() if world == world_of(variant))


def counterpart(variant: str) -> str:
    """The full agent in a world with the same start-up delays."""
    return AGENT if world_of(variant).startup else INSTANT


# ------------------------------------------------------------------------------------------------------ worlds


def instant(pipeline: Pipeline) -> Pipeline:
    """The same pipeline, whose replicas serve as soon as they are asked for."""
    tasks = tuple(
        replace(task, variants=tuple(replace(variant, startup_time=0.0) for variant in task.variants))
        for task in pipeline.tasks
    )
    return replace(pipeline, tasks=tasks)


def foretold(workload: Workload, forecast: str) -> Workload:
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


def in_world(problem: Problem, world: World) -> Problem:
    """The same problem in another world; the expert, blind to start-up times, follows the forecast given."""
    return problem._replace(
        pipeline=problem.pipeline if world.startup else instant(problem.pipeline),
        training=foretold(problem.training, world.forecast),
        validation=foretold(problem.validation, world.forecast),
    )


# ---------------------------------------------------------------------------------------------------- policies


class Foretold(Policy):
    """A policy that is given another forecast than the control loop makes.

    Args:
        policy: decides.
        forecast: one of :data:`FORECASTS`.
    """

    def __init__(self, policy: Policy, forecast: str) -> None:
        if forecast not in FORECASTS:
            raise ValueError(f"forecast {forecast!r} is not one of {FORECASTS}")
        self._policy, self._forecast = policy, forecast

    def decide(self, observation: Observation) -> Configuration:
        """What the policy decides with the other forecast."""
        return self._policy.decide(replace(observation, predicted_load=self._load(observation)))

    def _load(self, observation: Observation) -> float:
        if self._forecast == "lstm":
            return observation.predicted_load
        if self._forecast == "recent-maximum":
            return RecentMaximum().predict(observation.history)
        assert observation.coming_load is not None  # the simulator knows it
        return observation.coming_load


class NetworkPolicy(Policy):
    """A trained network as it is, greedy; its actions may exceed the capacity.

    Args:
        pipeline: what it was trained for.
        network: decides.
    """

    def __init__(self, pipeline: Pipeline, network: ActorCritic) -> None:
        self._pipeline, self._network = pipeline, network

    def decide(self, observation: Observation) -> Configuration:
        """One forward pass on the state of Eq. 5."""
        state = torch.as_tensor(observed_state(self._pipeline, observation))
        return as_configuration(from_choices(self._network.act(state, None).choices.numpy())[0])


# ----------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class Study:
    """What is the same for all ablations.

    Attributes:
        setting: trace, forecaster, weights and simulation.
        parameters: of the full agent's training.
        problems: the full agent's, by name of the pipeline.
        cycles: to evaluate on.
        seeds: one training each; also of the requests in evaluation.
        folder: where trained networks are kept.
        penalty: reward that a refused action costs in training, in the units of Eq. 7. At 1 it is as bad as seven
            cores more are at the study's weights, or twenty lost requests in training.
    """

    setting: Setting
    parameters: TrainingParameters
    problems: Mapping[str, Problem]
    cycles: Sequence[Cycle]
    seeds: Sequence[int]
    folder: Path
    penalty: float = 1.0


@dataclass(frozen=True)
class Training(Job):
    """One ablation to train with one seed: :class:`opd.agent.jobs.Job` for networks of any kind.

    Attributes:
        penalty: reward that a refused action costs; 0 for networks that take none.
    """

    penalty: float

    @property
    def network_class(self) -> type[ActorCritic]:
        """What is trained."""
        return ABLATIONS[self.policy].network

    @cached_property
    def about(self) -> dict[str, Any]:
        """All that the trained network depends on; data by their checksums."""
        own = {"network": self.network_class.__name__, "penalty": self.penalty}
        return super().about | own | {"pipeline": asdict(self.problem.pipeline)}

    @property
    def done(self) -> bool:
        """Whether the network at the path is the one this would train."""
        return self._stored() is not None

    def run(self) -> ActorCritic:
        """The trained network: from its file, or trained, going on with what an interrupted run left."""
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


def training_of(study: Study, pipeline: str, variant: str, seed: int) -> Training:
    """The training of one ablation."""
    ablation = ABLATIONS[variant]
    return Training(
        variant,
        seed,
        in_world(study.problems[pipeline], ablation.world),
        replace(study.parameters, **ablation.training),
        study.folder / pipeline / f"{variant}-{seed}.pt",
        study.penalty if ablation.network is IndependentNetwork else 0.0,
    )


# --------------------------------------------------------------------------------------------------------- runs


class Run(NamedTuple):
    """One of :data:`VARIANTS` on one pipeline with one seed."""

    pipeline: str
    variant: str
    seed: int


def measure(study: Study, run: Run) -> list[dict[str, Any]]:
    """Train what a run needs, unless it is there, and evaluate it: one row a cycle, see :data:`COLUMNS`."""
    torch.set_num_threads(1)
    world = world_of(run.variant)
    policy: Policy
    if run.variant in ABLATIONS:
        training = training_of(study, *run)
        pipeline = training.problem.pipeline
        policy = NetworkPolicy(pipeline, training.run())
    else:
        known = study.problems[run.pipeline].pipeline
        pipeline = known if world.startup else instant(known)
        policy = MyopicPolicy(pipeline, study.setting.weights, study.setting.simulation.batch_timeout)
    rows = []
    for cycle in study.cycles:
        steps = run_cycle(pipeline, Foretold(policy, world.forecast), cycle, run.seed, study.setting)
        refused = sum(bool(step.refused) for step in steps)
        rows.append(run._asdict() | {"cycle": cycle.name, "refused": refused} | cycle_summary(steps))
    return rows


def measure_ablations(study: Study, workers: int = 1, variants: Sequence[str] = VARIANTS) -> pd.DataFrame:
    """Train and evaluate, ``workers`` processes at a time, showing progress.

    What has been trained is kept in the study's folder: an interrupted call goes on where it was, and a repeated one
    only evaluates.

    Args:
        study: pipelines, cycles and seeds.
        workers: processes, one thread each.
        variants: which of :data:`VARIANTS`.

    Returns:
        A row for every pipeline, variant, seed and cycle, with the means of ``reward`` (Eq. 7), ``qos`` (Eq. 3) and
        ``cost`` (cores) over the decisions of a cycle, the requests ``dropped`` and the decisions ``refused`` in it.

    Raises:
        ValueError: if there is no such variant.
    """
    unknown = set(variants) - set(VARIANTS)
    if unknown:
        raise ValueError(f"unknown variants {sorted(unknown)}; there are {', '.join(VARIANTS)}")
    runs = [Run(pipeline, name, seed) for pipeline in study.problems for name in variants for seed in study.seeds]
    progress = tqdm(run_tasks(measure, study, runs, workers), total=len(runs), unit="run")
    return pd.DataFrame([row for rows in progress for row in rows])[COLUMNS]


# ------------------------------------------------------------------------------------------------------- summary


def _rows_of(rows: pd.DataFrame, pipeline: str, variant: str) -> pd.DataFrame:
    return rows[(rows["pipeline"] == pipeline) & (rows["variant"] == variant)]


def rewards(rows: pd.DataFrame, pipeline: str, variant: str) -> np.ndarray:
    """(S, C) rewards by seed and cycle."""
    return _rows_of(rows, pipeline, variant).pivot(index="seed", columns="cycle", values="reward").to_numpy()


def summarise_ablations(rows: pd.DataFrame) -> pd.DataFrame:
    """Means of every pipeline and variant, and differences in pairs of seed and cycle.

    Args:
        rows: of :func:`measure_ablations`, with all variants.

    Returns:
        By pipeline and variant: the means over seeds and cycles of reward, qos, cost, dropped and refused (a cycle);
        ``difference``, the reward less that of the full agent where delays are the same, ``agent`` or ``no-startup``;
        ``over_myopic``, the reward less that of the myopic solver in the same world, given the same forecast. Each with
        the ends ``_low`` and ``_high`` of its 95 % interval by resampling seeds and cycles.
    """
    table = []
    for pipeline, variant in dict.fromkeys(zip(rows["pipeline"], rows["variant"], strict=True)):
        means = _rows_of(rows, pipeline, variant)[["reward", "qos", "cost", "dropped", "refused"]].mean()
        own = rewards(rows, pipeline, variant)
        table.append(
            {"pipeline": pipeline, "variant": variant, **means}
            | estimate("difference", own - rewards(rows, pipeline, counterpart(variant)))
            | estimate("over_myopic", own - rewards(rows, pipeline, rival(variant)))
        )
    return pd.DataFrame(table)


def startup_worth(rows: pd.DataFrame) -> pd.DataFrame:
    """By pipeline how much further the agent is above the myopic solver with start-up delays than without.

    Returns:
        Columns ``pipeline``, ``gain``, ``gain_low`` and ``gain_high``, reward of Eq. 7 with its 95 % interval.
    """
    table = []
    for pipeline in dict.fromkeys(rows["pipeline"]):
        edges = [rewards(rows, pipeline, name) - rewards(rows, pipeline, rival(name)) for name in (AGENT, INSTANT)]
        table.append({"pipeline": pipeline} | estimate("gain", edges[0] - edges[1]))
    return pd.DataFrame(table)
