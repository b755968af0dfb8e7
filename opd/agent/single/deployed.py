"""The trained agent as it is deployed: one compiled forward pass, and the file that holds its weights.

Training uses the network of :mod:`opd.agent.single.network`. Here its weights are plain arrays and a whole
configuration is chosen in one call of compiled code, without torch: for a single state the overhead of many small calls
dominates.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from opd.agent.single.compatibility import PROFILE_TOLERANCE, pipeline_differences
from opd.agent.single.heads import Heads, choose, limits_of
from opd.host.archive import ArchiveError, load_archive, save_archive
from opd.pipeline import Configuration, InfeasibleError, Pipeline, as_configuration, from_choices

logger = logging.getLogger(__name__)

FORMAT = "opd agent 2"


class CheckpointError(RuntimeError):
    """The file of an agent cannot be read, or the agent was trained for another pipeline."""


class PolicyWeights(NamedTuple):
    """Weights of the policy as float32 arrays; S inputs, W width, R residual blocks, N tasks, K options."""

    mean: np.ndarray  # (S,)
    std: np.ndarray  # (S,)
    reduce_weight: np.ndarray  # (W, S)
    reduce_bias: np.ndarray  # (W,)
    block_weight: np.ndarray  # (R, 2, W, W)
    block_bias: np.ndarray  # (R, 2, W)
    context_weight: np.ndarray  # (W, W)
    context_bias: np.ndarray  # (W,)
    choice_embedding: np.ndarray  # (3 N, K, W)
    head_shift: np.ndarray  # (3 N, W)
    head_weight: np.ndarray  # (3 N, K, W)
    head_bias: np.ndarray  # (3 N, K)


@njit(cache=True)
def _relu(vector):
    return np.maximum(vector, np.float32(0.0))


@njit(cache=True)
def _decide(weights, heads, limits, state):
    """Greedy action for one state: (N, 3) choice indices, -1 where nothing fits the remaining cores."""
    bound = np.float32(10.0)
    features = np.minimum(np.maximum((state - weights.mean) / weights.std, -bound), bound)
    features = _relu(weights.reduce_weight @ features + weights.reduce_bias)
    for r in range(len(weights.block_weight)):
        inner = _relu(weights.block_weight[r, 0] @ features + weights.block_bias[r, 0])
        features = _relu(features + (weights.block_weight[r, 1] @ inner + weights.block_bias[r, 1]))
    context = weights.context_weight @ features + weights.context_bias
    greedy = np.full((1, len(heads.bias)), np.float32(-1.0))
    choices = choose(heads, limits, context.reshape(1, -1), np.full(1, float(state[0])), greedy)[0]
    return choices.reshape(-1, 3)


class Agent:
    """A trained policy for one pipeline.

    Args:
        pipeline: the pipeline it was trained for.
        weights: of the policy, with the statistics that standardise states.
        parameters: how it was trained: reward weights, seed, training parameters. They are saved with it as JSON.
    """

    def __init__(self, pipeline: Pipeline, weights: PolicyWeights, parameters: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.weights = weights
        self.parameters = dict(parameters)
        self._heads = Heads(weights.choice_embedding, weights.head_shift, weights.head_weight, weights.head_bias)
        self._limits = limits_of(pipeline)

    def decide(self, state: np.ndarray) -> Configuration:
        """The configuration for one state (S,) of Eq. 5, within the cores that the state says are available.

        Raises:
            InfeasibleError: if not even the smallest configuration fits the available cores.
        """
        choices = _decide(self.weights, self._heads, self._limits, state)
        if choices.min() < 0:
            raise InfeasibleError(
                f"{state[0]:g} available cores are too few for any configuration of pipeline {self.pipeline.name!r}"
            )
        return as_configuration(from_choices(choices))

    def save(self, path: Path) -> None:
        """Write weights, pipeline and parameters to one file, completely or not at all.

        Raises:
            TypeError: if JSON cannot hold the parameters.
        """
        metadata = {"pipeline": asdict(self.pipeline), "parameters": self.parameters}
        save_archive(path, FORMAT, metadata, self.weights._asdict())

    @classmethod
    def load(cls, path: Path, pipeline: Pipeline) -> Agent:
        """Read an agent for ``pipeline``; profiles that differ a little are accepted, with a warning in the log.

        Raises:
            CheckpointError: if the file is missing, damaged or of another format, or if the agent was trained for a
                different pipeline; the message names all differences.
        """
        if not path.is_file():
            raise CheckpointError(f"no agent at {path}; train one with notebook 03_ppo_training or `dvc repro train`")
        try:
            metadata, arrays = load_archive(path, FORMAT)
        except ArchiveError as error:
            raise CheckpointError(f"{error}; train the agent again") from error
        missing = {"pipeline", "parameters", *PolicyWeights._fields} - {*metadata, *arrays}
        if missing:
            raise CheckpointError(f"{path} is no agent, it lacks {', '.join(sorted(missing))}; train the agent again")
        _check_pipeline(path, metadata["pipeline"], pipeline)
        weights = PolicyWeights(**{name: arrays[name] for name in PolicyWeights._fields})
        return cls(pipeline, weights, metadata["parameters"])


def _check_pipeline(path: Path, stored: Mapping[str, Any], pipeline: Pipeline) -> None:
    """Raise :class:`CheckpointError` if an agent was trained for another pipeline; log small differences."""
    # The pipeline given passes through JSON as well, which turns tuples to lists and keys to text.
    differences = list(pipeline_differences(stored, json.loads(json.dumps(asdict(pipeline)))))
    if not differences:
        return
    texts = "; ".join(each.text for each in differences)
    if not all(each.small for each in differences):
        raise CheckpointError(
            f"{path} was trained for another pipeline: {texts}. Latencies and start-up times may differ by "
            f"{PROFILE_TOLERANCE:.0%}, all else must agree. Train again, or use the pipeline and profile it was "
            "trained with"
        )
    logger.warning("%s was trained with a slightly different profile: %s", path, texts)
