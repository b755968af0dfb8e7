"""The policy's masked autoregressive heads (Sec. IV-C), compiled: a whole action for every state in one call.

An action is chosen task by task, and within a task variant, replicas and batch size in turn: 3 N choices, each seeing
those before it and masked by what is left of the capacity once the cheapest completion of the later tasks is set
aside. Every action is therefore feasible by construction (Eq. 4). Training and the deployed agent share this code:
choosing is many small steps, which cost more time one by one than the network before them.

A choice is an index: variant z, replicas f - 1, batch size log2(b). E is the number of states, W the width of a hidden
layer, K the largest number of options any choice has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from opd.pipeline import Pipeline


class Heads(NamedTuple):
    """Weights of the choices, float32."""

    embedding: np.ndarray  # (3 N, K, W) added to the context once an option is chosen
    shift: np.ndarray  # (3 N, W)
    weight: np.ndarray  # (3 N, K, W)
    bias: np.ndarray  # (3 N, K)


class Limits(NamedTuple):
    """What masks depend on."""

    cores: np.ndarray  # (N, Z) of one replica; more than the capacity where a task has no such variant
    reserve: np.ndarray  # (N,) cores that one replica of the smallest variant of every later task needs
    kinds: np.ndarray  # (3,) most variants of any task, most replicas, number of batch sizes


def limits_of(pipeline: Pipeline) -> Limits:
    """The limits of a pipeline, without the capacity, which may vary."""
    cores = pipeline.tables.cores.astype(np.float64)
    smallest = cores.min(axis=1)
    kinds = (max(len(task.variants) for task in pipeline.tasks), pipeline.max_replicas, len(pipeline.batch_sizes))
    return Limits(cores, smallest.sum() - np.cumsum(smallest), np.array(kinds))


@njit(cache=True)
def _allow(limits, step, left, variant, allowed):
    """Flag in ``allowed`` (K,) the options of choice ``step`` that keep the capacity.

    Args:
        limits: of the pipeline.
        step: position 0..3 N - 1 in the sequence of choices.
        left: cores not yet taken by earlier tasks.
        variant: the one chosen for this task; only replicas look at it.
        allowed: written to.
    """
    task, kind = divmod(step, 3)
    budget = left - limits.reserve[task]
    for option in range(len(allowed)):
        allowed[option] = option < limits.kinds[kind] and (
            kind == 2
            or (kind == 0 and limits.cores[task, option] <= budget)
            or (kind == 1 and (option + 1) * limits.cores[task, variant] <= budget)
        )


@njit(cache=True)
def _pick(logits, allowed, chance):
    """One allowed option and its log-probability; -1 if there is none.

    Args:
        logits: (K,).
        allowed: (K,).
        chance: uniform within 0..1, for the option that the cumulative probability reaches there; negative for the
            most probable option, the first of equals.
    """
    best = -1
    for option in range(len(allowed)):
        if allowed[option] and (best < 0 or logits[option] > logits[best]):
            best = option
    if best < 0:
        return -1, 0.0
    top = np.float64(logits[best])
    total = 0.0
    for option in range(len(allowed)):
        if allowed[option]:
            total += np.exp(logits[option] - top)
    picked = best
    if chance >= 0.0:
        reached = 0.0
        for option in range(len(allowed)):
            if allowed[option]:
                picked = option
                reached += np.exp(logits[option] - top)
                if reached > chance * total:
                    break
    return picked, logits[picked] - top - np.log(total)


@njit(cache=True)
def choose(heads, limits, context, left, chance):
    """Choose an action for every state.

    Args:
        heads: weights.
        limits: of the pipeline.
        context: (E, W) float32, what the network made of the states.
        left: (E,) float64, cores available.
        chance: (E, 3 N) float32, uniform within 0..1 to sample; negative for the most probable options.

    Returns:
        (E, 3 N) choices, -1 where nothing fits the cores that are left; (E, 3 N, K) masks; (E,) float32
        log-probabilities.
    """
    steps, options = heads.bias.shape
    context, left = context.copy(), left.copy()
    choices = np.full((len(context), steps), -1)
    masks = np.zeros((len(context), steps, options), dtype=np.bool_)
    log_probability = np.zeros(len(context), dtype=np.float32)
    for step in range(steps):
        task, kind = divmod(step, 3)
        hidden = np.maximum(context + heads.shift[step], np.float32(0.0))
        logits = np.dot(hidden, heads.weight[step].T) + heads.bias[step]
        for e in range(len(context)):
            variant = choices[e, 3 * task]
            _allow(limits, step, left[e], variant, masks[e, step])
            picked, logarithm = _pick(logits[e], masks[e, step], chance[e, step])
            choices[e, step] = picked
            log_probability[e] += logarithm
            if picked < 0:
                left[e] = -np.inf  # one choice that cannot be made rules out those that follow
                continue
            context[e] += heads.embedding[step, picked]
            if kind == 1:
                left[e] -= (picked + 1) * limits.cores[task, variant]
    return choices, masks, log_probability


@njit(cache=True)
def masks_of(limits, left, choices, options):
    """(E, 3 N, K) masks under which actions were chosen.

    Args:
        limits: of the pipeline.
        left: (E,) float64, cores available.
        choices: (E, 3 N).
        options: K.
    """
    episodes, steps = choices.shape
    masks = np.zeros((episodes, steps, options), dtype=np.bool_)
    for e in range(episodes):
        remaining = left[e]
        for step in range(steps):
            task, kind = divmod(step, 3)
            variant = choices[e, 3 * task]
            _allow(limits, step, remaining, variant, masks[e, step])
            if kind == 1:
                remaining -= (choices[e, step] + 1) * limits.cores[task, variant]
    return masks
