"""Training benchmark: speed and reward of our training and of Stable-Baselines3, with the same steps and episodes.

Six methods are trained:

* ``agent``, as in ``params.yaml``: it first imitates the myopic solver;
* ``agent-unaided``: the same without imitation;
* ``ppo`` and ``maskable-ppo``, the peers of :mod:`opd.study.benchmarks.peer_stable_baselines`, with Gymnasium
  environments as their users would have them;
* ``ppo-batched`` and ``maskable-ppo-batched``: the peers with environments that are stepped together, as ours are.

All have the same pipeline, workload, simulator, reward, network size and number of steps, one thread, and a warm start:
compiled code is compiled before.

**CPU-seconds** are those of the training process, from the start of a training to the end of its last update. They
include all that belongs to training: for ours the expert's table, its demonstrations, their imitation, the run of IPA
that checkpoints are compared with, metrics and checkpoints; for the peers the making of environments and network. They
exclude the evaluation of greedy policies, which is the same code on the same episodes for all methods.

**Rewards** are Eq. 7 of greedy policies: during training on the episodes of the validation days that select our
checkpoints, at the end on episodes of the test days, with the checkpoint that was best in validation. The peers'
checkpoints are selected by the same figures.

Differences that remain:

* All methods end an update early when the policy has moved far enough. Ours moves faster and ends earlier, so a part of
  its speed is fewer gradient steps; they are counted.
* Our episodes begin with the expert's configuration, one in four before a burst of load, and dropped requests have an
  extra cost. The peers learn from the reward that is measured, and from the environment's own initial states.
* ``agent-unaided`` also uses those initial states, and takes the scale of observations and rewards from the expert. The
  steps of the demonstrations are not part of the step budget, but their time is counted.
* In validation and test every policy begins with the expert's configuration, which goes on running where a peer's first
  action is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml

from opd.agent.single.problem import Problem, TrainingParameters, build_problem, expert_table, table_policy
from opd.agent.single.rollout import Validation, validate
from opd.host.parallel import run_tasks
from opd.host.paths import project_path
from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.profiling.pipelines import load_pipeline
from opd.study.analysis.estimates import spread
from opd.study.benchmarks.budgets import SMOKE_TRAINING, TrainingBudget
from opd.study.benchmarks.peer_stable_baselines import BATCHED, PEERS, train_peer
from opd.study.benchmarks.training_observer import MODES, TrainingObserver, train_agent
from opd.workload.forecast import Forecaster
from opd.workload.trace import Workload, burst_starts, load_trace

METHODS = (*MODES, *PEERS, *BATCHED)
"""All methods, ours first."""

MYOPIC = "myopic"
"""The row of the exact solver, which is not trained."""


class TrainingBenchmark(NamedTuple):
    """Problem and parameters of all trainings of the benchmark.

    Attributes:
        problem: training and validation.
        test: the same with the test days in place of the validation days.
        parameters: our training parameters; every method uses those that apply to it.
        test_parameters: the same, with the number and length of the test episodes.
    """

    problem: Problem
    test: Problem
    parameters: TrainingParameters
    test_parameters: TrainingParameters


def study_benchmark(budget: TrainingBudget, pipeline: str, forecaster: Forecaster) -> TrainingBenchmark:
    """Make the benchmark of the study's own training problem, with the parameters of ``params.yaml``.

    Args:
        budget: how much is trained.
        pipeline: name of a pipeline that ships with the package.
        forecaster: predicts the load.
    """
    given = yaml.safe_load(project_path("params.yaml").read_text(encoding="utf-8"))
    parameters = TrainingParameters(**given["training"] | budget.changes)
    trace = load_trace(given["trace"], given["damping"])
    simulation = SimulationParameters(**given["simulation"])
    device = load_pipeline(pipeline, given["profiles"])
    problem = build_problem(device, trace, forecaster, Weights(**given["weights"]), simulation, parameters)
    days = Workload.of(trace, "test", simulation.interval, forecaster.predict_many)
    bursts = (burst_starts(trace, "test") - trace.split("test").start) // simulation.interval
    return with_test_days(problem, days, bursts, parameters, budget)


def with_test_days(
    problem: Problem, days: Workload, bursts: np.ndarray, parameters: TrainingParameters, budget: TrainingBudget
) -> TrainingBenchmark:
    """Make a benchmark that tests on ``days``, where the load jumps at the decisions ``bursts`` (M,)."""
    test = problem._replace(validation=days, validation_bursts=bursts)
    tests = replace(parameters, validation_episodes=budget.test_episodes, validation_decisions=budget.test_decisions)
    return TrainingBenchmark(problem, test, parameters, tests)


def measure_training(benchmark: TrainingBenchmark, budget: TrainingBudget) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every method with every seed, ``budget.workers`` at a time.

    Args:
        benchmark: problem and parameters.
        budget: seeds and processes.

    Returns:
        The summary, see :func:`summarise_training`, and the curves: a row for every method, seed and observation, with
        ``steps``, ``cpu_seconds`` and ``gradient_steps`` so far, and the validation of the greedy policy: means of
        ``reward`` (Eq. 7), ``qos`` (Eq. 3) and ``cost`` (cores) over ordinary episodes, and requests ``dropped`` in
        all.
    """
    # Seed by seed, so that a slow moment of the machine affects all methods; the fast ones last, so that no core is
    # left alone with a slow one at the end.
    tasks = [(method, seed) for seed in budget.seeds for method in reversed(METHODS)]
    results = []
    for result in progress_bar(
        run_tasks(train_and_test, benchmark, tasks, budget.workers), total=len(tasks), desc="training", unit="run"
    ):
        spent, reward = result.curve["cpu_seconds"].iloc[-1], result.test.reward
        print(f"{result.method}, seed {result.seed}: {spent:.0f} CPU-seconds, test reward {reward:.2f}", flush=True)
        results.append(result)
    results.sort(key=lambda result: (METHODS.index(result.method), result.seed))
    curves = pd.concat([result.curve for result in results], ignore_index=True)
    return summarise_training(results, *myopic_validation(benchmark)), curves


class TrainingResult(NamedTuple):
    """One training: its learning curve, a row an observation, and the test of its best checkpoint."""

    method: str
    seed: int
    curve: pd.DataFrame
    test: Validation


def train_and_test(benchmark: TrainingBenchmark, task: tuple[str, int]) -> TrainingResult:
    """Train one method with one seed in this process, on one thread."""
    method, seed = task
    torch.set_num_threads(1)
    # A short training first, so that nothing is compiled or imported while time counts.
    _train(method, benchmark.problem, replace(benchmark.parameters, **SMOKE_TRAINING), seed)
    observer = _train(method, benchmark.problem, benchmark.parameters, seed)
    assert observer.best is not None
    curve = pd.DataFrame(observer.rows).drop(columns="selection")
    curve.insert(0, "method", method)
    curve.insert(1, "seed", seed)
    return TrainingResult(method, seed, curve, validate(benchmark.test, benchmark.test_parameters, observer.best))


def _train(method: str, problem: Problem, parameters: TrainingParameters, seed: int) -> TrainingObserver:
    observer = TrainingObserver(problem, parameters)
    with observer.training():
        (train_agent if method in MODES else train_peer)(method, problem, parameters, seed, observer.observe)
    return observer


def myopic_validation(benchmark: TrainingBenchmark) -> tuple[Validation, Validation]:
    """Evaluate the myopic solver on the validation episodes and on the test episodes."""
    p = benchmark.problem
    myopic = table_policy(expert_table(p.pipeline, p.objective, p.simulation, "myopic", len(p.reference) - 1))
    return validate(p, benchmark.parameters, myopic), validate(benchmark.test, benchmark.test_parameters, myopic)


# ------------------------------------------------------------------------------------------------- summary


def first_above(curve: pd.DataFrame, level: float) -> float:
    """CPU-seconds of the first row of a learning curve with a reward above a level; NaN if there is none."""
    above = curve.loc[curve["reward"] > level, "cpu_seconds"]
    return float(above.iloc[0]) if len(above) else np.nan


def above_for_good(curve: pd.DataFrame, level: float) -> float:
    """CPU-seconds of the row of a learning curve from which all rewards are above a level; NaN if there is none."""
    below = np.flatnonzero(~(curve["reward"] > level))
    first = below[-1] + 1 if len(below) else 0
    return float(curve["cpu_seconds"].iloc[first]) if first < len(curve) else np.nan


def summarise_training(runs: Sequence[TrainingResult], validation: Validation, test: Validation) -> pd.DataFrame:
    """Summarise the trainings: one row a method, and one for the myopic solver.

    Args:
        runs: of all methods, in the order of rows; all methods with the same seeds.
        validation: of the myopic solver.
        test: of the myopic solver, on the test days.

    Returns:
        A frame with ``method``, ``seeds`` (runs), ``steps`` of a run, ``reached`` (how many runs passed the myopic
        solver in validation, or ``not reached``), and, each as the seeds' mean with ``_min`` and ``_max``:

        * ``cpu_seconds`` and ``gradient_steps`` of a run, ``steps_per_cpu_second``;
        * ``to_myopic_cpu_seconds`` and ``above_myopic_cpu_seconds``: until the first evaluation with a reward above the
          solver's, and until the one after which all are; of those runs that got there, NaN if none did;
        * ``final_reward`` in validation after the last step, ``test_reward`` and ``test_dropped`` of the checkpoint
          that was best in validation, reward in the units of Eq. 7 and requests;
        * for ``agent`` and ``agent-unaided``, where they are among the runs, ``..._times_speed``: their steps per
          CPU-second divided by this row's, and ``..._more_reward``: their test reward minus this row's; seed by seed.
    """
    table = pd.DataFrame([_figures(run, validation.reward) for run in runs])
    solver = {"method": MYOPIC, "seeds": 0, "steps": 0, "reached": ""}
    solver |= spread("final_reward", [validation.reward])
    solver |= spread("test_reward", [test.reward]) | spread("test_dropped", [test.dropped])
    for method in MODES:
        ours, name = table[table["method"] == method].set_index("seed"), method.replace("-", "_")
        if len(ours):
            speed = table["steps_per_cpu_second"]
            table[f"{name}_times_speed"] = table["seed"].map(ours["steps_per_cpu_second"]) / speed
            table[f"{name}_more_reward"] = table["seed"].map(ours["test_reward"]) - table["test_reward"]
            solver |= spread(f"{name}_more_reward", ours["test_reward"] - test.reward)
    rows = [_method_row(str(method), each) for method, each in table.groupby("method", sort=False)]
    return pd.DataFrame([*rows, solver])


def _figures(run: TrainingResult, level: float) -> dict[str, Any]:
    """The figures of one run that the summary is made of."""
    end = run.curve.iloc[-1]
    return {
        "method": run.method,
        "seed": run.seed,
        "steps": int(end["steps"]),
        "cpu_seconds": end["cpu_seconds"],
        "steps_per_cpu_second": end["steps"] / end["cpu_seconds"],
        "gradient_steps": end["gradient_steps"],
        "to_myopic_cpu_seconds": first_above(run.curve, level),
        "above_myopic_cpu_seconds": above_for_good(run.curve, level),
        "final_reward": end["reward"],
        "test_reward": run.test.reward,
        "test_dropped": run.test.dropped,
    }


def _method_row(method: str, runs: pd.DataFrame) -> dict[str, Any]:
    """The summary of one method's runs."""
    reached = runs["to_myopic_cpu_seconds"].count()
    row = {"method": method, "seeds": len(runs), "steps": runs["steps"].iloc[0]}
    row["reached"] = f"{reached} of {len(runs)}" if reached else "not reached"
    for figure in runs.columns.drop(["method", "seed", "steps"]):
        row |= spread(figure, runs[figure])
    return row
