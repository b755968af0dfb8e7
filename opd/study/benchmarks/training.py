"""How fast and how well agents learn: ours against Stable-Baselines3, with the same steps, on the same episodes.

Six are trained: ``agent`` as in ``params.yaml``, which first imitates the myopic solver; ``agent-unaided``, the same
without imitation; and the two peers of :mod:`opd.study.benchmarks.peer_stable_baselines`, with Gymnasium environments
as their users would have them, and once more with environments that are stepped together, as ours are. All have the
same
pipeline, workload, simulator, reward, network size and number of steps, one thread, and a warm start: kernels are
compiled before.

**CPU-seconds** are those of the process that trains, from the call that starts a training to the end of the last
update. They hold all that belongs to training: for ours the expert's table, its demonstrations, their imitation, the
run of IPA that checkpoints are held against, logs and checkpoints; for the peers building environments and network.
They leave out the evaluation of greedy policies, which is the same code on the same episodes for all.

**Rewards** are Eq. 7 of greedy policies: during training on the episodes of the validation days on which our
checkpoints compete, at the end on episodes of the test days, with the checkpoint that was best in validation. The
choice is made for the peers by the same figures as for ours.

What is not the same:

* All leave an update early when the policy has moved far enough. Ours moves faster and leaves earlier, so that a part
  of its speed is fewer gradient steps; they are counted.
* Our episodes begin with the configuration of the expert, one in four of them before a burst of load, and lost requests
  cost extra. The peers learn the reward that is measured, from the environment's own beginnings.
* ``agent-unaided`` still takes those beginnings, and the scale of observations and rewards, from the expert. The steps
  of its demonstrations are not part of the step budget, their time is counted.
* In validation and test every policy begins with the expert's configuration. A peer whose action is refused keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm.auto import tqdm

from opd.agent.network import ActorCritic
from opd.agent.parameters import TrainingParameters
from opd.agent.ppo import PPOTrainer, train
from opd.agent.problem import Configure, Problem, build_problem, expert_table, table_policy
from opd.agent.validation import Validation, tolerated_drops, validate
from opd.objective import Weights
from opd.parallel import run_tasks
from opd.paths import project_path
from opd.profiling.catalogue import load_pipeline
from opd.simulator.parameters import SimulationParameters
from opd.study.analysis.estimates import spread
from opd.study.benchmarks.peer_stable_baselines import BATCHED, PEERS, Observe, train_peer
from opd.study.benchmarks.quick import QUICK
from opd.workload.cycles import burst_starts
from opd.workload.forecast import Forecaster
from opd.workload.trace import load_trace
from opd.workload.workload import Workload

MODES = {"agent": "pretrain", "agent-unaided": "none"}
"""Expert mode of our two methods."""

METHODS = (*MODES, *PEERS, *BATCHED)
"""All that are trained; ours first."""

MYOPIC = "myopic"
"""The row of the summary that holds the solver, which is not trained."""


@dataclass(frozen=True)
class TrainingBudget:
    """How much is trained.

    Attributes:
        methods: which of :data:`METHODS`.
        seeds: one training run of every method each.
        changes: departures from ``training`` of ``params.yaml``.
        test_episodes: episodes of the test days, half of them begun before bursts and not part of the reward.
        test_decisions: decisions in each; 120 are the 1200 s of the paper.
        workers: processes; more than there are cores would make caches and so CPU-seconds worse.
    """

    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1)
    changes: dict[str, Any] = field(default_factory=dict)
    test_episodes: int = 128
    test_decisions: int = 120
    workers: int = 2


FULL = TrainingBudget()
"""What is reported: 163,840 steps a run."""

SMOKE = TrainingBudget(
    seeds=(0,),
    changes=QUICK,
    test_episodes=4,
    test_decisions=5,
    workers=1,
)
"""Only shows that everything runs."""


class Task(NamedTuple):
    """What is the same for all runs.

    Attributes:
        problem: training and validation.
        test: the same with the test days in place of the validation days.
        parameters: ours; every method takes what it has a meaning for.
        test_parameters: the same, with the number and length of the test's episodes.
    """

    problem: Problem
    test: Problem
    parameters: TrainingParameters
    test_parameters: TrainingParameters


def build_task(
    budget: TrainingBudget, pipeline: str, source: dict[str, Any] | None = None, forecaster: Forecaster | None = None
) -> Task:
    """The study's own problem, with its forecaster.

    Args:
        budget: how much is trained.
        pipeline: name of a pipeline of the catalogue.
        source: parameters of the study; by default those of ``params.yaml``.
        forecaster: foretells the load; by default the study's.

    Raises:
        FileNotFoundError: if no forecaster is given and none has been trained; ``make repro`` does it.
    """
    given = source or yaml.safe_load(project_path("params.yaml").read_text(encoding="utf-8"))
    parameters = TrainingParameters(**given["training"] | budget.changes)
    trace = load_trace(given["trace"], given["damping"])
    forecaster = forecaster or _study_forecaster(given["damping"])
    simulation = SimulationParameters(**given["simulation"])
    device = load_pipeline(pipeline, profiles=project_path(given["profiles"]))
    problem = build_problem(device, trace, forecaster, Weights(**given["weights"]), simulation, parameters)
    days = Workload.of(trace, "test", simulation.interval, forecaster.predict_many)
    bursts = (burst_starts(trace, "test") - trace.split("test").start) // simulation.interval
    return task_with_test(problem, days, bursts, parameters, budget)


def _study_forecaster(damping: int) -> Forecaster:
    path = project_path("models", "forecaster.npz")
    if not path.is_file():
        raise FileNotFoundError(f"no forecaster at {path}; `make repro` trains it, as its second stage")
    return Forecaster.load(path, damping)


def task_with_test(
    problem: Problem, days: Workload, bursts: np.ndarray, parameters: TrainingParameters, budget: TrainingBudget
) -> Task:
    """A task whose policies are tested on ``days``, with load about to jump at the decisions ``bursts`` (M,)."""
    test = problem._replace(validation=days, validation_bursts=bursts)
    tests = replace(parameters, validation_episodes=budget.test_episodes, validation_decisions=budget.test_decisions)
    return Task(problem, test, parameters, tests)


# ------------------------------------------------------------------------------------------------- observation


class Observer:
    """A stopwatch that stands still while it evaluates a policy, and keeps the best one.

    Args:
        problem: gives the validation episodes.
        parameters: number and length of the episodes, and the penalty for lost requests.
    """

    def __init__(self, problem: Problem, parameters: TrainingParameters) -> None:
        self._problem = problem
        self._parameters = parameters
        # As ours does: losing no more requests than IPA costs nothing when checkpoints are compared.
        self._tolerated_drops = tolerated_drops(problem, parameters)
        self._begin = process_time()
        self._paused = 0.0
        self._gradient_steps = 0
        self.rows: list[dict[str, float]] = []
        self.best: Configure | None = None
        self._best = -np.inf

    @contextmanager
    def training(self) -> Iterator[None]:
        """A training begins, and is over at the end; the steps of all optimisers in between are counted."""
        self._begin, self._paused, self._gradient_steps = process_time(), 0.0, 0
        counting = register_optimizer_step_post_hook(self._count)
        try:
            yield
        finally:
            counting.remove()

    def _count(self, *arguments: object) -> None:
        self._gradient_steps += 1

    def observe(self, steps: int, copy: Callable[[], Configure]) -> Validation:
        """Note the CPU-seconds of ``steps`` steps, then evaluate a copy of the policy outside of them.

        The best policy is one that has been trained: where nothing has been stepped there is no candidate yet.
        """
        now = process_time()
        decide = copy()
        result = validate(self._problem, self._parameters, decide, self._tolerated_drops)
        spent = {"cpu_seconds": now - self._begin - self._paused, "gradient_steps": self._gradient_steps}
        self.rows.append({"steps": steps, **spent, **result._asdict()})
        if steps and result.selection > self._best:
            self._best, self.best = result.selection, decide
        self._paused += process_time() - now
        return result


def greedy_agent(network: ActorCritic) -> Configure:
    """What a copy of our network decides without exploration."""
    return deepcopy(network).configure


class ObservedTrainer(PPOTrainer):
    """Our training, with the evaluation of its policy left to an observer."""

    def __init__(self, observe: Observe, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._observe = observe

    def prepare(self) -> None:
        """Demonstrations and imitation, which are part of training, then a first look."""
        super().prepare()
        self.validate()

    def validate(self) -> Validation:
        """The same validation as it always is, outside of the CPU-seconds."""
        steps = self.updates_done * self.parameters.num_envs * self.parameters.rollout_steps
        return self._observe(steps, lambda: greedy_agent(self.network))


def train_agent(method: str, problem: Problem, parameters: TrainingParameters, seed: int, observe: Observe) -> None:
    """Train ours from end to end: the expert's table, then all that :func:`opd.agent.ppo.train` does.

    Args:
        method: a key of :data:`MODES`.
        problem: what to train on.
        parameters: of the run.
        seed: of everything random.
        observe: called before the first update, after every ``validate_every`` updates, and so after the last.
    """
    expert = expert_table(
        problem.pipeline, problem.weights, problem.simulation, parameters.expert, len(problem.expert) - 1
    )
    own = replace(parameters, expert_mode=MODES[method])
    with TemporaryDirectory() as folder:
        train(problem._replace(expert=expert), own, seed, Path(folder), method, partial(ObservedTrainer, observe))


# -------------------------------------------------------------------------------------------------------- runs


class Run(NamedTuple):
    """One training: its learning curve, a row an observation, and what its best checkpoint does on the test days."""

    method: str
    seed: int
    curve: pd.DataFrame
    test: Validation


def _train(method: str, problem: Problem, parameters: TrainingParameters, seed: int) -> Observer:
    observer = Observer(problem, parameters)
    with observer.training():
        (train_agent if method in MODES else train_peer)(method, problem, parameters, seed, observer.observe)
    return observer


def _tiny(parameters: TrainingParameters) -> TrainingParameters:
    """As little as calls everything once, so that nothing is compiled or imported while the clock runs."""
    return replace(
        parameters,
        updates=1,
        num_envs=2,
        rollout_steps=4,
        minibatch_size=4,
        cloning_steps=2,
        validate_every=1,
        validation_episodes=2,
        validation_decisions=2,
    )


def run(task: Task, training: tuple[str, int]) -> Run:
    """Train one method with one seed in this process, on one thread."""
    method, seed = training
    torch.set_num_threads(1)
    _train(method, task.problem, _tiny(task.parameters), seed)
    observer = _train(method, task.problem, task.parameters, seed)
    assert observer.best is not None
    curve = pd.DataFrame(observer.rows).drop(columns="selection")
    curve.insert(0, "method", method)
    curve.insert(1, "seed", seed)
    return Run(method, seed, curve, validate(task.test, task.test_parameters, observer.best))


def run_all(task: Task, budget: TrainingBudget) -> list[Run]:
    """Every method with every seed, in separate processes if there are several workers."""
    # Seed by seed, so that a slow moment of the machine meets all methods; the quick ones last, so that no core is left
    # alone with a slow one at the end.
    todo = [(method, seed) for seed in budget.seeds for method in reversed(budget.methods)]
    return _told(run_tasks(run, task, todo, budget.workers), len(todo))


def _told(runs: Iterable[Run], number: int) -> list[Run]:
    """The runs, each with a line when it is there; from this process, so that a notebook shows it once."""
    done = []
    for one in tqdm(runs, total=number, unit="run"):
        spent = one.curve["cpu_seconds"].iloc[-1]
        print(f"{one.method}, seed {one.seed}: {spent:.0f} CPU-seconds, test reward {one.test.reward:.2f}", flush=True)
        done.append(one)
    return done


def measure_training(
    budget: TrainingBudget = FULL, pipeline: str = "video", forecaster: Forecaster | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train ours and the peers on a pipeline of the study.

    Args:
        budget: how much; :data:`FULL` or :data:`SMOKE`.
        pipeline: name of a pipeline of the catalogue.
        forecaster: foretells the load; by default the study's.

    Returns:
        The summary, see :func:`summarise`, and the curves, see :func:`measure_task`.

    Raises:
        FileNotFoundError: if no forecaster is given and none has been trained; ``make repro`` does it.
    """
    return measure_task(build_task(budget, pipeline, forecaster=forecaster), budget)


def measure_task(task: Task, budget: TrainingBudget) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same for any task.

    Args:
        task: what is trained on and tested on.
        budget: methods, seeds and processes.

    Returns:
        The summary, see :func:`summarise`, and the curves: a row for every method, seed and observation, with
        ``steps``, ``cpu_seconds`` and ``gradient_steps`` so far, and of the greedy policy in validation the mean
        ``reward`` (Eq. 7), ``qos`` (Eq. 3), ``cost`` (cores) of ordinary episodes, and the requests ``dropped`` in all.

    Raises:
        ValueError: if the budget names a method that is not there.
    """
    unknown = set(budget.methods) - set(METHODS)
    if unknown:
        raise ValueError(f"unknown methods {sorted(unknown)}; there are {', '.join(METHODS)}")
    runs = run_all(task, budget)
    order = list(budget.methods)
    runs.sort(key=lambda one: (order.index(one.method), one.seed))
    return summarise(runs, *solved(task)), pd.concat([one.curve for one in runs], ignore_index=True)


def solved(task: Task) -> tuple[Validation, Validation]:
    """What the myopic solver reaches in the validation's and in the test's episodes."""
    p = task.problem
    myopic = table_policy(expert_table(p.pipeline, p.weights, p.simulation, "myopic", len(p.reference) - 1))
    return validate(p, task.parameters, myopic), validate(task.test, task.test_parameters, myopic)


# ----------------------------------------------------------------------------------------------------- summary


def first_above(curve: pd.DataFrame, level: float) -> float:
    """CPU-seconds at the first row of a learning curve whose reward is above a level; NaN if there is none."""
    above = curve.loc[curve["reward"] > level, "cpu_seconds"]
    return float(above.iloc[0]) if len(above) else np.nan


def above_for_good(curve: pd.DataFrame, level: float) -> float:
    """CPU-seconds at the row of a learning curve from which on all rewards are above a level; NaN if there is none."""
    below = np.flatnonzero(~(curve["reward"] > level))
    first = below[-1] + 1 if len(below) else 0
    return float(curve["cpu_seconds"].iloc[first]) if first < len(curve) else np.nan


def summarise(runs: Sequence[Run], validation: Validation, test: Validation) -> pd.DataFrame:
    """One row a method, and one for the myopic solver.

    Args:
        runs: of all methods, in the order of rows; all methods with the same seeds.
        validation: what the myopic solver reaches in validation.
        test: what it reaches on the test days.

    Returns:
        A frame with ``method``, ``seeds`` (runs), ``steps`` of a run, ``reached`` (how many runs passed the myopic
        solver in validation, or ``not reached``), and, each as the seeds' mean with ``_min`` and ``_max``:

        * ``cpu_seconds`` and ``gradient_steps`` of a run, ``steps_per_cpu_second``;
        * ``to_myopic_cpu_seconds`` and ``above_myopic_cpu_seconds``: until the first evaluation with a reward above the
          solver's, and until the one after which all are; of those runs that got there, NaN if none did;
        * ``final_reward`` in validation after the last step, ``test_reward`` and ``test_dropped`` of the checkpoint
          that was best in validation, reward in the units of Eq. 7 and requests;
        * for ``agent`` and ``agent-unaided``, where they are among the runs, ``..._times_speed``: their steps per
          CPU-second divided by this row's, and ``..._more_reward``: their test reward less this row's; seed by seed.
    """
    methods = list(dict.fromkeys(run.method for run in runs))
    groups = {method: [run for run in runs if run.method == method] for method in methods}
    ours = [method for method in methods if method in MODES]
    rows = [_row(group, validation.reward) for group in groups.values()]
    for row, group in zip(rows, groups.values(), strict=True):
        for own in ours:
            name = own.replace("-", "_")
            row |= spread(f"{name}_times_speed", _speeds(groups[own]) / _speeds(group))
            row |= spread(f"{name}_more_reward", _test_rewards(groups[own]) - _test_rewards(group))
    solver = {"method": MYOPIC, "seeds": 0, "steps": 0, "reached": ""}
    solver |= spread("final_reward", [validation.reward])
    solver |= spread("test_reward", [test.reward]) | spread("test_dropped", [test.dropped])
    for own in ours:
        solver |= spread(f"{own.replace('-', '_')}_more_reward", _test_rewards(groups[own]) - test.reward)
    return pd.DataFrame([*rows, solver])


def _speeds(group: Sequence[Run]) -> np.ndarray:
    return np.array([run.curve["steps"].iloc[-1] / run.curve["cpu_seconds"].iloc[-1] for run in group])


def _test_rewards(group: Sequence[Run]) -> np.ndarray:
    return np.array([run.test.reward for run in group])


def _row(group: Sequence[Run], level: float) -> dict[str, Any]:
    """The summary of one method's runs."""
    ends = pd.DataFrame([run.curve.iloc[-1] for run in group])
    first = [first_above(run.curve, level) for run in group]
    reached = int(np.isfinite(first).sum())
    return {
        "method": group[0].method,
        "seeds": len(group),
        "steps": int(ends["steps"].iloc[0]),
        "reached": f"{reached} of {len(group)}" if reached else "not reached",
        **spread("cpu_seconds", ends["cpu_seconds"].to_numpy()),
        **spread("steps_per_cpu_second", _speeds(group)),
        **spread("gradient_steps", ends["gradient_steps"].to_numpy()),
        **spread("to_myopic_cpu_seconds", first),
        **spread("above_myopic_cpu_seconds", [above_for_good(run.curve, level) for run in group]),
        **spread("final_reward", ends["reward"].to_numpy()),
        **spread("test_reward", _test_rewards(group)),
        **spread("test_dropped", [run.test.dropped for run in group]),
    }
