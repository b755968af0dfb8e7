"""Evaluation of every policy under every condition, and the training of agents for the other trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from opd.agent.jobs import Job, run_jobs
from opd.agent.problem import TrainingParameters, build_problem
from opd.control import AGENT
from opd.host.parallel import run_tasks
from opd.pipeline import Pipeline
from opd.study.analysis.robustness import Condition
from opd.study.evaluation.cycles import Setting, cycle_summary, run_cycle
from opd.workload.trace import Cycle

BACKLOG, MYOPIC, IPA, GREEDY = ("myopic-backlog", "myopic", "ipa", "greedy")
POLICIES = (AGENT, BACKLOG, MYOPIC, IPA, GREEDY)

COLUMNS = [
    *("world", "variant", "trace", "pipeline", "cycle", "policy", "seed", "factor"),
    *("reward", "qos", "cost", "dropped", "refused", "fallbacks", "by_expert"),
]


def trained_agents(
    pipelines: Sequence[Pipeline],
    setting: Setting,
    parameters: TrainingParameters,
    seeds: Sequence[int],
    known: Path,
    folder: Path,
    workers: int,
) -> dict[tuple[str, str, int], Path]:
    """Find an agent for every pipeline and seed, and train the missing ones.

    Args:
        pipelines: one agent for each of them and each seed.
        setting: trace and forecaster of the trainings; its agents are ignored.
        parameters: of the trainings.
        seeds: of the trainings.
        known: folder with agents of earlier trainings; an agent is used if this training would give the same.
        folder: for all others, and for interrupted trainings.
        workers: agents trained at the same time.

    Returns:
        Paths of the agents by pipeline, policy and seed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jobs = []
    for pipeline in pipelines:
        problem = build_problem(
            pipeline, setting.trace, setting.forecaster, setting.weights, setting.simulation, parameters
        )
        for seed in seeds:
            name = f"{pipeline.name}/{AGENT}-{seed}.npz"
            earlier = Job(AGENT, seed, problem, parameters, known / name)
            jobs.append(earlier if earlier.done else replace(earlier, path=folder / name))
    run_jobs(jobs, workers)
    return {(job.problem.pipeline.name, AGENT, job.seed): job.path for job in jobs}


@dataclass(frozen=True)
class RobustnessCell:
    """One cycle to run: the number of the condition, pipeline, policy, cycle and seed."""

    condition: int
    pipeline: Pipeline
    policy: str
    cycle: Cycle
    seed: int


def evaluate_robustness(
    conditions: Sequence[Condition], pipelines: Sequence[Pipeline], seeds: Sequence[int], workers: int = 1
) -> pd.DataFrame:
    """Run every policy on every pipeline and seed through all cycles of every condition, with progress.

    Args:
        conditions: their settings must have an agent for each pipeline and seed.
        pipelines: the pipelines to configure.
        seeds: of the requests and of the agents' trainings.
        workers: cycles simulated at the same time.

    Returns:
        A row a cycle with the columns of :data:`COLUMNS`: ``reward`` and ``qos`` (Eqs. 7 and 3) and ``cost`` (cores)
        are means over its decisions. ``dropped`` counts requests, ``refused`` decisions, ``fallbacks`` decisions
        without a forecast, for which the control loop took the largest load of the last 20 s, and ``by_expert``
        decisions of the agent's fallback policy.
    """
    cells = [
        RobustnessCell(number, pipeline, policy, cycle, seed)
        for number, condition in enumerate(conditions)
        for pipeline in pipelines
        for cycle in condition.cycles
        for policy in POLICIES
        for seed in seeds
    ]
    rows = list(tqdm(run_tasks(run_cell, conditions, cells, workers), total=len(cells), unit="cycle"))
    return pd.DataFrame(rows, columns=COLUMNS)


def run_cell(conditions: Sequence[Condition], cell: RobustnessCell) -> dict[str, Any]:
    """Run one cycle, with its own policy, because some policies remember; returns a row of :data:`COLUMNS`."""
    condition, pipeline, cycle, seed = conditions[cell.condition], cell.pipeline, cell.cycle, cell.seed
    setting, device, factor = condition.change(condition.setting, pipeline, cycle, seed)
    solver = "dynamic-program" if cell.policy == IPA else cell.policy  # the optimum of HiGHS in a fraction of its time
    steps = run_cycle(pipeline, setting.policy(solver, pipeline, seed), cycle, seed, setting, device)
    return {
        **{"world": condition.name, "variant": condition.variant, "trace": condition.setting.trace.name},
        **{"pipeline": pipeline.name, "cycle": cycle.name, "policy": cell.policy, "seed": seed, "factor": factor},
        "refused": sum(bool(step.refused) for step in steps),
        "fallbacks": sum(bool(step.forecast_failure) for step in steps),
        **cycle_summary(steps),
    }
