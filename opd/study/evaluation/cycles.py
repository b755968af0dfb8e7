"""Evaluation (Sec. VI): every policy on every pipeline, cycle and seed, through the same control loop.

With the same seed all policies meet the same requests, so rows can be compared in pairs. The seed of an agent that was
trained for the pipeline is also that of its training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from opd.agent.weights import SHIPPED, TrainedAgent
from opd.control import AGENT, DECISION_SHARE, READY_POLICIES, is_user_policy, policy_label
from opd.control.factory import KnownLoad, agent_kind, build_policy
from opd.control.loop import Step, run
from opd.control.policies import Policy
from opd.control.warm_up import warm_up
from opd.host.machine import hardware
from opd.host.parallel import run_tasks
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Objective, Weights, objective_fields, share_within
from opd.pipeline import Configuration, Pipeline
from opd.simulator.backend import Device, SimulatedBackend
from opd.solvers import IpaParameters, greedy
from opd.study.evaluation.bound import reward_bound
from opd.workload.forecast import HISTORY_SECONDS, Forecaster
from opd.workload.quantile_futures import futures_of
from opd.workload.trace import CYCLE_SECONDS, TWITTER_CYCLES, Cycle, Trace, cycle_counts

LOADS = tuple(cycle.name for cycle in TWITTER_CYCLES)
"""The paper's three workloads, found in any trace under these names."""

SCORES = ("reward", "qos", "cost", "accuracy", "throughput")
"""Scores that are averaged over the decisions of a cycle."""

_CELL = ("pipeline", "cycle", "policy", "seed")
COLUMNS = [
    *(*_CELL, *SCORES, "latency_mean", "latency_p99", "within"),
    *("dropped", "refused", "by_expert", "decision_ms_mean", "bound"),
]


@dataclass(frozen=True)
class Setting:
    """The common setting of all runs of the evaluation.

    Attributes:
        trace: the workload.
        forecaster: predicts the load for every policy.
        objective: of QoS and reward; the agent may have been trained with another.
        simulation: behaviour of the device.
        ipa: weights of IPA's own objective.
        agents: path of every trained agent by (pipeline, policy, seed).
        decision_share: share of the interval that a decision of a user's policy may take.
        calibration: whether the policies are told what the measured service times say of the profiles.
    """

    trace: Trace
    forecaster: Forecaster
    objective: Objective
    simulation: SimulationParameters
    ipa: IpaParameters
    agents: Mapping[tuple[str, str, int], Path]
    decision_share: float = DECISION_SHARE
    calibration: bool = False

    def policy(self, name: str, pipeline: Pipeline, seed: int, simulated: bool = True) -> Policy:
        """Build one of the trained agents, a policy that needs no training or a user's policy.

        Args:
            name: of the policy.
            pipeline: to control.
            seed: of the policy; for a trained agent also of its training.
            simulated: whether it runs in the simulator; elsewhere a planner's time is limited.

        Raises:
            ValueError: if it is none of these, or only the simulator tells what it needs to know.
        """
        path = self.agents.get((pipeline.name, name, seed))
        if path is None and name not in READY_POLICIES and not is_user_policy(name):
            trained = sorted({policy for _, policy, _ in self.agents})
            raise ValueError(
                f"no policy {name!r} for pipeline {pipeline.name!r} and seed {seed}; there are "
                f"{', '.join((*READY_POLICIES, *trained))}, or module:Class"
            )
        kind, seconds = name if path is None else agent_kind(name, path), self.decision_share * self.simulation.interval
        known = pipeline, self.objective, self.simulation, self.ipa, seed, path
        return build_policy(
            kind,
            *known,
            simulated=simulated,
            decision_seconds=seconds,
            load=KnownLoad(futures_of(self.forecaster), self.usual_load),
        )

    def origins(self, pipeline: str, policies: Iterable[str]) -> dict[str, str]:
        """How the one agent was trained, in words, for every policy that is this agent."""
        files = {AGENT: SHIPPED} | {name: path for (owner, name, _), path in self.agents.items() if owner == pipeline}
        known = {name: files[name] for name in policies if name in files}
        return {name: TrainedAgent.load(path).origin for name, path in known.items() if agent_kind(name, path) == AGENT}

    @property
    def usual_load(self) -> float:
        """Mean load of the training days, requests/s."""
        return float(self.trace.counts[self.trace.split("train")].mean())


def first_configuration(pipeline: Pipeline, cycle: Cycle, setting: Setting) -> Configuration:
    """The configuration that runs when a cycle begins: the cheapest one for its first forecast."""
    start = setting.trace.position(cycle.start)
    return greedy(pipeline, setting.forecaster.predict(setting.trace.counts[max(start - HISTORY_SECONDS, 0) : start]))


def run_cycle(
    pipeline: Pipeline, policy: Policy, cycle: Cycle, seed: int, setting: Setting, device: Device | None = None
) -> list[Step]:
    """Run one policy through one cycle of 1200 s, from the cheapest configuration for its first forecast.

    Args:
        pipeline: the pipeline as the policy and the control loop know it.
        policy: decides.
        cycle: part of the trace.
        seed: of arrivals and service noise.
        setting: what all runs share.
        device: with its true latencies; by default those of the pipeline.
    """
    start = setting.trace.position(cycle.start)
    counts = setting.trace.counts
    history = counts[max(start - HISTORY_SECONDS, 0) : start]
    initial = first_configuration(pipeline, cycle, setting)
    window = counts[start : start + CYCLE_SECONDS]
    backend = SimulatedBackend(pipeline, setting.simulation, history, window, initial, seed, device)
    decisions = len(window) // setting.simulation.interval
    forecast, objective = setting.forecaster.predict, setting.objective
    return list(run(backend, pipeline, policy, forecast, objective, decisions, setting.calibration))


def cycle_summary(steps: Sequence[Step]) -> dict[str, float]:
    """Summarise the steps of a cycle as one row of the evaluation; latencies are over all completed requests.

    ``within`` is the share of all requests that were completed within the latency of the service level, ``refused``
    counts the decisions that were not made or not applied, and ``by_expert`` those of a fallback policy.
    """
    within = float(sum(step.interval.within[0] for step in steps))
    ended = float(sum(step.interval.completed[0] + step.interval.dropped[0] for step in steps))
    latencies = np.concatenate([step.interval.latencies[0, : step.interval.completed[0]] for step in steps])
    some = len(latencies) > 0
    return {name: float(np.mean([getattr(step.score, name)[0] for step in steps])) for name in SCORES} | {
        "latency_mean": float(latencies.mean()) if some else float("nan"),
        "latency_p99": float(np.quantile(latencies, 0.99)) if some else float("nan"),
        "within": float(share_within(within, ended)),
        "dropped": int(sum(step.interval.dropped[0] for step in steps)),
        "refused": sum(bool(step.refused) for step in steps),
        "by_expert": sum(step.fallback for step in steps),
        "decision_ms_mean": 1e3 * float(np.mean([step.decision_seconds for step in steps])),
    }


def timeline(steps: Sequence[Step], start: float = 0.0) -> pd.DataFrame:
    """Tabulate the steps of a cycle, one row an interval, for Fig. 4; ``time`` counts from ``start``."""
    return pd.DataFrame(
        {
            "time": [step.span.begin - start for step in steps],
            "load": [step.interval.offered[0] / step.span.seconds for step in steps],
            "predicted_load": [step.predicted_load for step in steps],
            "dropped": [float(step.interval.dropped[0]) for step in steps],
            "by_expert": [step.fallback for step in steps],
            "decision_ms": [1e3 * step.decision_seconds for step in steps],
            **{
                name: [float(getattr(step.score, name)[0]) for step in steps]
                for name in (*SCORES, "latency", "excess_load", "within")
            },
        }
    )


@dataclass(frozen=True)
class EvaluationCell:
    """One cycle to run."""

    pipeline: Pipeline
    policy: str
    cycle: Cycle
    seed: int


def evaluate_cell(setting: Setting, cell: EvaluationCell) -> tuple[dict[str, object], pd.DataFrame]:
    """Run one cycle; return its row and its timeline."""
    policy = setting.policy(cell.policy, cell.pipeline, cell.seed)
    warm_up(cell.pipeline, policy, setting.forecaster.predict)  # else the first decision would also compile
    steps = run_cycle(cell.pipeline, policy, cell.cycle, cell.seed, setting)
    label = policy_label(cell.policy)
    key = dict(zip(_CELL, (cell.pipeline.name, cell.cycle.name, label, cell.seed), strict=True))
    return key | cycle_summary(steps), timeline(steps).assign(**key)  # type: ignore[arg-type]


def cycle_bound(setting: Setting, cycle: tuple[Pipeline, Cycle]) -> float:
    """Bound the mean reward of a pipeline in a cycle, :mod:`opd.study.evaluation.bound`; NaN for a service level."""
    if not isinstance(setting.objective, Weights):
        return float("nan")
    start, counts = first_configuration(*cycle, setting), cycle_counts(setting.trace, cycle[1])
    return reward_bound(cycle[0], setting.objective, setting.simulation, start, counts)


def _check_labels(policies: Iterable[str]) -> None:
    for label, number in Counter(map(policy_label, policies)).items():
        if number > 1:
            raise ValueError(f"{number} policies are called {label!r} in the tables; rename the class of one")


def evaluate(cells: Iterable[EvaluationCell], setting: Setting, workers: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run every cell, with progress.

    Returns:
        One row a cell with the columns of :data:`COLUMNS`, and the timelines of all cells.

    Raises:
        ValueError: if two policies have the same name in the tables.
    """
    todo = list(cells)
    _check_labels({cell.policy for cell in todo})
    finished = run_tasks(evaluate_cell, setting, todo, workers)
    results = list(progress_bar(finished, total=len(todo), desc="evaluation", unit="cycles"))
    cycles = {(cell.pipeline.name, cell.cycle.name): (cell.pipeline, cell.cycle) for cell in todo}
    bounds = dict(zip(cycles, run_tasks(cycle_bound, setting, list(cycles.values()), workers), strict=True))
    rows = pd.DataFrame([row for row, _ in results], columns=COLUMNS)
    rows["bound"] = [bounds[cell.pipeline.name, cell.cycle.name] for cell in todo]
    return rows, pd.concat([steps for _, steps in results], ignore_index=True)


def describe_run(
    setting: Setting, pipelines: Iterable[Pipeline], cycles: Iterable[Cycle], policies: Sequence[str]
) -> dict[str, Any]:
    """Describe what was evaluated and on which machine, to be stored with the results."""
    return {
        "trace": setting.trace.label,
        "cycles": {cycle.name: cycle.start for cycle in cycles},
        "policies": list(policies),
        "pipelines": {
            pipeline.name: {
                "stages": len(pipeline.tasks),
                "variants": [len(task.variants) for task in pipeline.tasks],
                "capacity": pipeline.capacity,
                "assumed": pipeline.assumed_variants,
                "agents": setting.origins(pipeline.name, policies),
            }
            for pipeline in pipelines
        },
        **objective_fields(setting.objective),
        "simulation": setting.simulation.described(),
        "ipa": asdict(setting.ipa),
        "calibration": setting.calibration,
        "hardware": hardware(),
    }


def shown_cycles(rows: pd.DataFrame) -> list[str]:
    """Select the paper's three workloads if they were run, otherwise the first three cycles."""
    cycles = list(dict.fromkeys(rows["cycle"]))
    return [load for load in LOADS if load in cycles] or cycles[:3]
