"""The trained agent as it is deployed: one compiled forward pass, and the checkpoint that holds it.

Training uses the network of :mod:`opd.agent.network`; here its weights are plain arrays and the choice of
a whole configuration is one call of compiled code, because a decision for one state is dominated by
the overhead of its many small steps.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit

from opd.agent.heads import Heads, choose, limits_of
from opd.agent.network import ActorCritic
from opd.pipeline import Configuration, InfeasibleError, Pipeline, as_configuration, from_choices

FORMAT = "opd agent 1"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or was made for something else than it is asked to do."""


class Policy(NamedTuple):
    """Weights of the policy as float32 arrays; S inputs, W width, R residual blocks, N tasks, K options."""

    mean: np.ndarray  # (S,)
    deviation: np.ndarray  # (S,)
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


def export(network: ActorCritic) -> Policy:
    """The part of a network that decides."""
    w = {name: tensor.detach().numpy().astype(np.float32) for name, tensor in network.state_dict().items()}
    blocks = range(len(network.extractor.blocks))
    layers = ("inner", "outer")
    width = len(w["context.bias"])
    prefix = "extractor.blocks"
    weight = [[w[f"{prefix}.{r}.{layer}.weight"] for layer in layers] for r in blocks]
    bias = [[w[f"{prefix}.{r}.{layer}.bias"] for layer in layers] for r in blocks]
    return Policy(
        mean=w["extractor.mean"],
        deviation=w["extractor.deviation"],
        reduce_weight=w["extractor.reduce.weight"],
        reduce_bias=w["extractor.reduce.bias"],
        block_weight=np.array(weight, dtype=np.float32).reshape(len(blocks), 2, width, width),
        block_bias=np.array(bias, dtype=np.float32).reshape(len(blocks), 2, width),
        context_weight=w["context.weight"],
        context_bias=w["context.bias"],
        choice_embedding=w["choice_embedding"],
        head_shift=w["head_shift"],
        head_weight=w["head_weight"],
        head_bias=w["head_bias"],
    )


@njit(cache=True)
def _rectified(vector):
    return np.maximum(vector, np.float32(0.0))


@njit(cache=True)
def _decide(policy, heads, limits, state):
    """Greedy action for one state: (N, 3) choice indices, -1 where nothing fits the cores that are left."""
    limit = np.float32(10.0)
    features = np.minimum(np.maximum((state - policy.mean) / policy.deviation, -limit), limit)
    features = _rectified(policy.reduce_weight @ features + policy.reduce_bias)
    for r in range(len(policy.block_weight)):
        inner = _rectified(policy.block_weight[r, 0] @ features + policy.block_bias[r, 0])
        features = _rectified(features + (policy.block_weight[r, 1] @ inner + policy.block_bias[r, 1]))
    context = policy.context_weight @ features + policy.context_bias
    greedily = np.full((1, len(heads.bias)), np.float32(-1.0))
    choices = choose(heads, limits, context.reshape(1, -1), np.full(1, float(state[0])), greedily)[0]
    return choices.reshape(-1, 3)


class Agent:
    """A trained policy for one pipeline.

    Args:
        pipeline: the pipeline it was trained for.
        policy: its weights and observation statistics.
        parameters: how it was trained, kept beside it: reward weights, seed, training parameters.
    """

    def __init__(self, pipeline: Pipeline, policy: Policy, parameters: Mapping[str, Any]) -> None:
        self.pipeline = pipeline
        self.policy = policy
        self.parameters = dict(parameters)
        self._heads = Heads(policy.choice_embedding, policy.head_shift, policy.head_weight, policy.head_bias)
        self._limits = limits_of(pipeline)

    def decide(self, state: np.ndarray) -> Configuration:
        """The configuration for one state (S,) of Eq. 5, within the cores that state says are available.

        Raises:
            InfeasibleError: if not even the smallest configuration fits the available cores.
        """
        choices = _decide(self.policy, self._heads, self._limits, state)
        if choices.min() < 0:
            raise InfeasibleError(
                f"{state[0]:g} available cores are too few for any configuration of pipeline {self.pipeline.name!r}"
            )
        return as_configuration(from_choices(choices))

    def save(self, path: Path) -> None:
        """Write weights, observation statistics, pipeline and parameters to one file, completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        torch.save(
            {
                "format": FORMAT,
                "pipeline": asdict(self.pipeline),
                "parameters": self.parameters,
                "policy": {name: torch.from_numpy(array) for name, array in self.policy._asdict().items()},
            },
            unfinished,
        )
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path, pipeline: Pipeline) -> Agent:
        """Read an agent for ``pipeline``.

        Raises:
            CheckpointError: if the file is missing or damaged, or was made for a pipeline that differs;
                the message names the first difference.
        """
        if not path.is_file():
            raise CheckpointError(f"no agent at {path}; train one with notebook 03_ppo_training or `dvc repro train`")
        try:
            stored = _read(path)
            trained_for, parameters = stored["pipeline"], stored["parameters"]
            known = stored["format"] == FORMAT
            policy = Policy(**{name: tensor.numpy() for name, tensor in stored["policy"].items()}) if known else None
        except _UNREADABLE as error:
            raise CheckpointError(f"{path} is not a readable agent ({error}); train it again") from error
        if policy is None:
            raise CheckpointError(f"{path} has format {stored['format']!r}, not {FORMAT!r}; train it again")
        difference = first_difference(trained_for, asdict(pipeline))
        if difference:
            raise CheckpointError(
                f"{path} was trained for another pipeline: {difference}. "
                "Train again, or use the catalogue and profiles it was trained with"
            )
        return cls(pipeline, policy, parameters)


_UNREADABLE = (
    *(zipfile.BadZipFile, pickle.UnpicklingError, OSError, EOFError, RuntimeError),  # damaged
    *(ValueError, KeyError, TypeError, AttributeError),  # the checkpoint of something else
)


def _read(path: Path) -> dict[str, Any]:
    """What :meth:`Agent.save` wrote; torch does not compare the checksums that its files carry."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
    return torch.load(path, weights_only=True)


def first_difference(stored: Any, given: Any, where: str = "pipeline") -> str:
    """Where two nested structures differ first, with both values; empty if they are equal."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        for key in [*stored, *(key for key in given if key not in stored)]:
            inner = f"{where}.{key}"
            if key not in given or key not in stored:
                return f"{inner} is only in {'the checkpoint' if key in stored else 'the pipeline given'}"
            if found := first_difference(stored[key], given[key], inner):
                return found
        return ""
    if isinstance(stored, (list, tuple)) and isinstance(given, (list, tuple)):
        if len(stored) != len(given):
            return f"{where} has {len(stored)} entries in the checkpoint, {len(given)} in the pipeline given"
        pairs = enumerate(zip(stored, given, strict=True))
        return next((found for i, (a, b) in pairs if (found := first_difference(a, b, f"{where}[{i}]"))), "")
    return "" if stored == given else f"{where} is {stored!r} in the checkpoint, {given!r} in the pipeline given"
