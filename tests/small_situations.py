"""Descriptions, situations and untrained agents to test with."""

from __future__ import annotations

import numpy as np
import torch
from small_pipelines import ocr_pipeline, varying_workload

from opd.agent.description import Description, Situations, describe
from opd.agent.network import AgentNetwork
from opd.agent.practice import Load, PracticeProblem, practice_problem
from opd.measurement import SimulationParameters
from opd.objective import Objective, Weights
from opd.pipeline import Pipeline
from opd.solvers.exact import solver_for
from opd.workload.forecast_network import INTERVALS, QUANTILES
from opd.workload.futures import RecentFutures
from opd.workload.trace import Workload

QUIET = SimulationParameters(service_noise=0.0)


def described(pipeline: Pipeline, objective: Objective | None = None, solved_loads: int = 5) -> Description:
    """The description of a pipeline, with few solved loads because solving takes time."""
    objective = objective or Weights()
    return describe(pipeline, objective, QUIET, solver_for(objective, QUIET), solved_loads)


def calm_situations(description: Description, running: list[list[int]], load: float = 5.0, many: int = 1) -> Situations:
    """The same situation ``many`` times: steady load, nothing waits, and all replicas of what runs serve."""
    tasks, variants = description.cores.shape
    chosen, stages = np.array(running), np.arange(tasks)
    loads, coming = np.array([load, load, 0.0]), np.full((INTERVALS, len(QUANTILES)), load)
    serving, none = np.zeros((tasks, variants)), np.zeros((tasks, variants))
    serving[stages, chosen[:, 0]] = chosen[:, 1] + 1.0
    latency = description.service[stages, chosen[:, 0], chosen[:, 2]]
    throughput = (chosen[:, 1] + 1) * 2.0 ** chosen[:, 2] / latency
    parts = (loads, coming, chosen, serving, none, none, latency, throughput, np.zeros(tasks))
    return Situations(*(np.repeat(part[None], many, axis=0) for part in parts))


def random_situations(description: Description, many: int, seed: int) -> Situations:
    """Any loads, anything running, any number of replicas serving or starting, short and long queues."""
    rng = np.random.default_rng(seed)
    tasks, variants, sizes = description.service.shape
    shape = (many, tasks, variants)
    present = np.isfinite(description.cores)
    limits = (description.variants, description.replicas, sizes)
    running = np.stack([rng.integers(np.broadcast_to(limit, (many, tasks))) for limit in limits], axis=-1)
    starting = rng.integers(0, 3, shape) * present
    level = description.loads[-1] * rng.uniform(0.01, 1.5, (many, 1))
    return Situations(
        loads=level * rng.lognormal(0.0, 0.3, (many, 3)),
        coming=level[..., None] * np.sort(rng.lognormal(0.0, 0.3, (many, INTERVALS, len(QUANTILES)))),
        running=running,
        serving=(rng.integers(0, description.replicas + 1, shape) * present).astype(float),
        starting=starting.astype(float),
        wait=np.where(starting > 0, rng.uniform(0.0, 6.0, shape), 0.0),
        latency=rng.lognormal(-1.0, 1.0, (many, tasks)),
        throughput=rng.lognormal(2.0, 1.0, (many, tasks)),
        queue=np.floor(rng.lognormal(0.0, 3.0, (many, tasks))),
    )


def untrained(seed: int, width: int = 16, blocks: int = 1) -> AgentNetwork:
    """A network that has not learned anything, but is far from indifferent."""
    torch.manual_seed(seed)
    network = AgentNetwork(width, blocks)
    with torch.no_grad():
        network.score_weight.normal_(0.0, 0.3)
        network.direct_weight.normal_(0.0, 0.3)
    return network


def departing(seed: int, strength: float = 1.0) -> AgentNetwork:
    """A network that does as planned, except where random scores of this strength outweigh what the plan gains."""
    torch.manual_seed(seed)
    network = AgentNetwork(16, 1)
    with torch.no_grad():
        network.score_weight.normal_(0.0, strength)
    return network


def load_of(workload: Workload, bursts: tuple[int, ...] = (40, 90, 150)) -> Load:
    """A load whose quantiles at every decision are shares of its forecast."""
    shares = np.linspace(0.4, 1.0, len(QUANTILES))
    quantiles = workload.forecasts[:, None, None] * np.ones((INTERVALS, 1)) * shares
    return Load(workload, quantiles, np.array(bursts), RecentFutures())


def small_practice(pipeline: Pipeline | None = None, workload: Workload | None = None) -> PracticeProblem:
    """The small OCR pipeline under a load that swings."""
    return practice_problem(pipeline or ocr_pipeline(), Weights(), QUIET, load_of(workload or varying_workload()))
