"""Compilation ahead of the first decision, which it would delay by more than an interval.

    python -m opd.control.warm_up

fills Numba's cache (``NUMBA_CACHE_DIR``) with everything that decisions need. Compiled code depends on the types of its
arguments and not on their sizes, so a small pipeline serves for all. An image runs it while it is built and names the
folder in ``OPD_COMPILED``: the root file system of a container is read-only, but Numba must be able to write.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from pathlib import Path

import numpy as np

from opd.agent.single.deployed import Agent, PolicyWeights
from opd.control import DEPLOYABLE_POLICIES, SINGLE_AGENT
from opd.control.factory import KnownLoad, build_policy
from opd.control.loop import expected_load
from opd.control.policies import Policy
from opd.measurement import SimulationParameters, idle_observation, state_names
from opd.objective import Objective, Weights
from opd.pipeline import Pipeline
from opd.profiling.synthetic import synthetic_pipeline
from opd.solvers import IpaParameters
from opd.workload.forecast import HISTORY_SECONDS, Forecaster, ForecastParameters, Patterns
from opd.workload.forecast_network import (
    BIN_SECONDS,
    FEATURES,
    INTERVALS,
    QUANTILE_LOADS,
    QUANTILE_UNITS,
    QUANTILES,
    ForecastNetwork,
)
from opd.workload.quantile_futures import futures_of

COMPILED_VARIABLE = "OPD_COMPILED"
"""Environment variable with the folder of compiled code that an image ships."""


def warm_up(pipeline: Pipeline, policy: Policy, forecast: Callable[[np.ndarray], float]) -> None:
    """Compile what a policy and a forecast need; their later results are as if this had not been called.

    Args:
        pipeline: that is controlled.
        policy: of :mod:`opd.control.policies`, or a user's.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
    """
    _take_compiled_code()
    expected_load(forecast, np.ones(HISTORY_SECONDS, dtype=np.int64))
    policy.warm_up(idle_observation(pipeline))


def _take_compiled_code() -> None:
    """Copy the compiled code of the image to where Numba looks for it and can write."""
    shipped, cache = os.environ.get(COMPILED_VARIABLE), os.environ.get("NUMBA_CACHE_DIR")
    if shipped and cache and Path(shipped).is_dir():
        shutil.copytree(shipped, cache, dirs_exist_ok=True)


def fill_cache() -> None:
    """Warm up every policy that can be deployed, for either kind of objective, and a forecaster."""
    pipeline, simulation = synthetic_pipeline(2, 2, seed=0), SimulationParameters()
    objectives: tuple[Objective, ...] = (Weights(), pipeline.service_level)
    with tempfile.TemporaryDirectory() as folder:
        agent, forecaster = Path(folder) / "agent.npz", Path(folder) / "forecaster.npz"
        _untrained_agent(pipeline, simulation).save(agent)
        _untrained_forecaster().save(forecaster)
        trained = Forecaster.load(forecaster)
        load = KnownLoad(futures_of(trained))
        for name, objective in product(DEPLOYABLE_POLICIES, objectives):
            file = agent if name == SINGLE_AGENT else None
            policy = build_policy(name, pipeline, objective, simulation, IpaParameters(), agent=file, load=load)
            warm_up(pipeline, policy, trained.predict)


def _untrained_agent(pipeline: Pipeline, simulation: SimulationParameters) -> Agent:
    """An agent of the smallest size, with a fallback policy."""
    inputs, steps, width = len(state_names(pipeline)), 3 * len(pipeline.tasks), 2
    most = max(*(len(task.variants) for task in pipeline.tasks), pipeline.max_replicas, len(pipeline.batch_sizes))
    shapes = {
        "mean": (inputs,),
        "std": (inputs,),
        "reduce_weight": (width, inputs),
        "reduce_bias": (width,),
        "block_weight": (1, 2, width, width),
        "block_bias": (1, 2, width),
        "context_weight": (width, width),
        "context_bias": (width,),
        "choice_embedding": (steps, most, width),
        "head_shift": (steps, width),
        "head_weight": (steps, most, width),
        "head_bias": (steps, most),
    }
    weights = PolicyWeights(**{name: np.ones(shape, dtype=np.float32) for name, shape in shapes.items()})
    parameters = {
        "largest_load": 1.0,
        "weights": asdict(Weights()),
        "training": {"expert": "myopic"},
        "simulation": asdict(simulation),
    }
    return Agent(pipeline, weights, parameters)


def _untrained_forecaster() -> Forecaster:
    """A forecaster of the smallest size; for weights of zero, loads are those of the past."""
    units, quantiles = 1, INTERVALS * len(QUANTILES)
    shapes = {
        "input_weight": (FEATURES, 4 * units),
        "hidden_weight": (units, 4 * units),
        "bias": (4 * units,),
        "output_weight": (units,),
        "quantile_hidden_weight": (QUANTILE_UNITS, units + QUANTILE_LOADS),
        "quantile_hidden_bias": (QUANTILE_UNITS,),
        "quantile_weight": (quantiles, QUANTILE_UNITS),
        "quantile_bias": (quantiles,),
    }
    arrays = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
    network = ForecastNetwork(level_mean=0.0, level_deviation=1.0, output_bias=0.0, **arrays)
    patterns = Patterns(np.ones((1, INTERVALS), dtype=np.float32), np.ones((1, INTERVALS, BIN_SECONDS), np.float16))
    return Forecaster(network, patterns, ForecastParameters(hidden_size=units), "", 1, 0)


if __name__ == "__main__":
    fill_cache()
