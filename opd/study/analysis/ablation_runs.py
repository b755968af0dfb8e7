"""Training and evaluation of the ablations; trained networks are kept and interrupted trainings resume."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from tqdm.auto import tqdm

from opd.agent.jobs import Job
from opd.agent.network import ActorCritic
from opd.agent.ppo import train
from opd.agent.problem import Problem, TrainingParameters
from opd.control.policies import MyopicPolicy, Policy
from opd.host.archive import written_whole
from opd.host.parallel import run_tasks
from opd.measurement import Observation, observed_state
from opd.pipeline import Configuration, Pipeline, as_configuration
from opd.study.analysis.ablation_networks import AblatedTrainer, IndependentNetwork
from opd.study.analysis.ablations import (
    ABLATIONS,
    FORECASTS,
    VARIANTS,
    environment_of,
    in_environment,
    without_startup,
)
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Cycle

COLUMNS = ["pipeline", "variant", "seed", "cycle", "reward", "qos", "cost", "dropped", "refused"]

_FORMAT = "opd ablation 1"
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


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


# ---------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True)
class AblationTraining(Job):
    """The training of one ablation with one seed: :class:`opd.agent.jobs.Job` for networks of any class.

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
        """Whether the network at the path is the one this would train."""
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
        pipeline = known if environment.startup else without_startup(known)
        policy = MyopicPolicy(pipeline, study.setting.weights, study.setting.simulation.batch_timeout)
    policy = ForecastOverride(policy, environment.forecast)
    rows = []
    for cycle in study.cycles:
        steps = run_cycle(pipeline, policy, cycle, run.seed, study.setting)
        refused = sum(bool(step.refused) for step in steps)
        rows.append(run._asdict() | {"cycle": cycle.name, "refused": refused} | cycle_summary(steps))
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
    progress = tqdm(run_tasks(run_ablation, study, runs, workers), total=len(runs), unit="run")
    return pd.DataFrame([row for rows in progress for row in rows])[COLUMNS]
