"""Simulator benchmark: environment steps per CPU-second, single and batched, and the parts of a step.

A step is an interval of 10 s at :data:`LOAD` requests/s. Time is CPU time on one thread, after everything is compiled.
There is no peer; the speed itself is the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import process_time
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from opd.host.progress import progress_bar
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, as_array, to_choices
from opd.profiling.pipelines import load_pipeline
from opd.simulator import environment, kernel, simulator
from opd.simulator.environment import PipelineEnv, PipelineVectorEnv
from opd.simulator.simulator import Simulator
from opd.study.benchmarks.budgets import FULL, SimulatorBudget
from opd.study.benchmarks.simulated_requests import LOAD, varied_configurations
from opd.workload.forecast import RecentMaximum
from opd.workload.trace import Workload

Prepare = Callable[..., Callable[[], None]]
"""Builds what is timed, for a pipeline, a number of environments, a number of steps in each, and a seed."""

GYMNASIUM = "Gymnasium environment"
EPISODES = "episodes"
SIMULATOR = "simulator"


def measure_steps(budget: SimulatorBudget = FULL.simulator, name: str = "video", seed: int = 0) -> pd.DataFrame:
    """Measure environment steps per CPU-second; a step is an interval of 10 s at 12 requests/s.

    Configurations change at every step; service times have noise. ``Gymnasium environment`` is ``step`` of
    ``opd/Pipeline-v0``; ``episodes`` is what training uses: simulation, reward and next state of a batch; ``simulator``
    is the simulation alone.

    Args:
        budget: how much is measured.
        name: of the pipeline.
        seed: of workload and simulation.

    Returns:
        Columns pipeline, stages, layer, environments (stepped together), steps (in one repetition), microseconds
        (median, CPU time of one step of one environment), steps_per_cpu_second, and ratio (to the Gymnasium
        environment's).
    """
    pipeline = load_pipeline(name)
    layers: list[tuple[str, Prepare, int, int]] = [(GYMNASIUM, _gymnasium_steps, 1, budget.single_steps)]
    for environments in budget.batches:
        steps = max((budget.steps if environments > 1 else budget.single_steps) // environments, 1)
        layers += [(EPISODES, _episode_steps, environments, steps), (SIMULATOR, _simulator_steps, environments, steps)]
    # The first round compiles and warms up. Rounds, so that a slow moment of the machine affects all alike.
    rounds = progress_bar(range(budget.repetitions + 1), desc="environment steps", unit="round")
    seconds = [[_cpu_seconds(prepare(pipeline, *sizes, seed)) for _, prepare, *sizes in layers] for _ in rounds]
    rows = [(name, len(pipeline.tasks), layer, count, count * steps) for layer, _, count, steps in layers]
    table = pd.DataFrame(rows, columns=["pipeline", "stages", "layer", "environments", "steps"])
    table["microseconds"] = 1e6 * np.median(seconds[1:], axis=0) / table["steps"]
    table["steps_per_cpu_second"] = 1e6 / table["microseconds"]
    table["ratio"] = table["steps_per_cpu_second"] / table["steps_per_cpu_second"].iloc[0]
    return table


def _cpu_seconds(run: Callable[[], object]) -> float:
    begin = process_time()
    run()
    return process_time() - begin


def steady_workload(decisions: int, load: float, seed: int) -> Workload:
    """Poisson counts with the maximum of the last 20 s as forecast.

    Args:
        decisions: length in intervals of 10 s.
        load: mean requests/s.
        seed: of the counts.
    """
    counts = np.random.default_rng(seed).poisson(load, 10 * decisions)
    return Workload(counts, RecentMaximum().predict_many(counts, np.arange(0, len(counts) + 1, 10)), 10)


def _gymnasium_steps(pipeline: Pipeline, _: int, steps: int, seed: int) -> Callable[[], None]:
    environment = PipelineEnv(pipeline, steady_workload(steps + 2, LOAD, seed), episode_length=steps)
    environment.reset(seed=seed)
    choices = to_choices(_batches(pipeline, 1)[:, 0])
    actions = [choices[step % len(choices)].ravel() for step in range(steps)]

    def run() -> None:
        for action in actions:
            environment.step(action)

    return run


def _batches(pipeline: Pipeline, environments: int) -> np.ndarray:
    """(P, E, N, 3) configurations to run in turn, with a phase shift between environments."""
    varied = np.stack([as_array(choice) for choice in varied_configurations(pipeline)])
    return np.stack([varied[(phase + np.arange(environments)) % len(varied)] for phase in range(len(varied))])


def _episode_steps(
    pipeline: Pipeline,
    environments: int,
    steps: int,
    seed: int,
    load: float = LOAD,
    parameters: SimulationParameters | None = None,
) -> Callable[[], None]:
    # Episodes begin at different decisions, so that they see different loads.
    spread = 500
    work = steady_workload(steps + spread + 2, load, seed)
    episodes = PipelineVectorEnv(
        pipeline, work, parameters=parameters, num_envs=environments, episode_length=steps, seed=seed
    )
    batches = _batches(pipeline, environments)
    episodes.begin(np.arange(environments), 1 + np.arange(environments) % spread, batches[-1])

    def run() -> None:
        for step in range(steps):
            episodes.run_interval(batches[step % len(batches)])
            episodes.state()

    return run


def _simulator_steps(pipeline: Pipeline, environments: int, steps: int, seed: int) -> Callable[[], None]:
    batches = _batches(pipeline, environments)
    counts = np.random.default_rng(seed).poisson(LOAD, (steps, environments, 10))
    simulator = Simulator(pipeline, SimulationParameters(), environments, int(counts.max()), seed)
    simulator.reset(varied_configurations(pipeline)[-1])

    def run() -> None:
        for step in range(steps):
            simulator.step(batches[step % len(batches)], counts[step])

    return run


# ------------------------------------------------------------------------------------------------- parts of a step

_PARTS: tuple[tuple[str, Any, str], ...] = (
    ("arrivals drawn (compiled)", simulator, "draw_arrivals"),
    ("kernel", kernel, "simulate"),
    ("counts looked up", Workload, "windows"),
    ("reward", environment, "score"),
    ("state vector", environment, "state_vector"),
)
"""Parts of a step, each with the module or class and the name of the function that is timed."""


@contextmanager
def _timed(parts: dict[str, float]) -> Iterator[None]:
    """Sum up the CPU-seconds spent in each of :data:`_PARTS`."""

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = process_time()
            result = function(*args)
            parts[name] = parts.get(name, 0.0) + process_time() - begin
            return result

        return timed

    with ExitStack() as stack:
        for name, owner, attribute in _PARTS:
            stack.enter_context(mock.patch.object(owner, attribute, wrap(name, getattr(owner, attribute))))
        yield


def profile(
    budget: SimulatorBudget = FULL.simulator, environments: int = 256, name: str = "video", seed: int = 0
) -> pd.DataFrame:
    """Measure where the time of a batched environment step goes.

    The compiled kernel cannot be timed from within. Its parts are measured by leaving them out: the noise of service
    times, then all requests.

    Args:
        budget: how much is measured.
        environments: episodes stepped together.
        name: of the pipeline.
        seed: of workload and simulation.

    Returns:
        Columns part, microseconds (CPU time of one step of one environment, median) and share (of the step).
    """
    pipeline = load_pipeline(name)
    noiseless = SimulationParameters(service_noise=0.0)
    settings: dict[str, dict[str, Any]] = {
        "usual": {},
        "no noise": {"parameters": noiseless},
        # Too small to ever draw a request, but not zero: queues need room for one request.
        "silent": {"parameters": noiseless, "load": 1e-3},
    }
    # The first round warms up. Settings take turns, so that a slow moment of the machine affects all alike.
    rounds = [
        {"setting": which} | _profiled_step(pipeline, environments, budget, seed, given)
        for _ in progress_bar(range(budget.repetitions + 1), desc="environment steps", unit="round")
        for which, given in settings.items()
    ][len(settings) :]
    medians = pd.DataFrame(rounds).groupby("setting").median()
    kernel = medians.pop("kernel")
    parts = {
        "kernel: queues, batches and latencies of requests": kernel["no noise"] - kernel["silent"],
        "kernel: noise of service times": kernel["usual"] - kernel["no noise"],
        "kernel: replicas, and the interval without requests": kernel["silent"],
    } | medians.loc["usual"].to_dict()
    table = pd.Series(parts, name="microseconds").rename_axis("part").reset_index()
    table["share"] = table["microseconds"] / table["microseconds"].sum()
    return table.sort_values("microseconds", ascending=False, ignore_index=True)


def _profiled_step(
    pipeline: Pipeline, environments: int, budget: SimulatorBudget, seed: int, settings: dict[str, Any]
) -> dict[str, float]:
    """Microseconds of each part of one environment step."""
    steps = max(budget.steps // environments, 1)
    run = _episode_steps(pipeline, environments, steps, seed, **settings)
    parts: dict[str, float] = {}
    with _timed(parts):
        total = _cpu_seconds(run)
    parts["checks, buffers and the rest (Python)"] = total - sum(parts.values())
    return {part: 1e6 * seconds / (steps * environments) for part, seconds in parts.items()}
