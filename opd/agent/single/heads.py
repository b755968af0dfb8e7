"""The policy's masked autoregressive heads (Sec. IV-C), compiled: a whole action for every state in one call.

An action is chosen task by task, and within a task variant, replicas and batch size in turn. Each of these 3 N choices
sees the earlier ones. It is masked by the cores that remain once the cheapest completion of the later tasks is set
aside, so every action is feasible by construction (Eq. 4). Training and the deployed agent share this code: choosing
takes many small steps, which one by one would cost more time than the network before them.

A choice is an index: variant z, replicas f - 1, batch size log2(b). E is the number of states, W the width of a hidden
layer, K the largest number of options of any choice.
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
    """The part of a pipeline that masks depend on."""

    cores: np.ndarray  # (N, Z) of one replica; more than the capacity where a task has no such variant
    reserve: np.ndarray  # (N,) cores that one replica of the smallest variant of every later task needs
    options: np.ndarray  # (3,) most variants of any task, most replicas, number of batch sizes


def limits_of(pipeline: Pipeline) -> Limits:
    """The limits of a pipeline, without the capacity, which may vary."""
    cores = pipeline.tables.cores.astype(np.float64)
    smallest = cores.min(axis=1)
    options = (max(len(task.variants) for task in pipeline.tasks), pipeline.max_replicas, len(pipeline.batch_sizes))
    return Limits(cores, smallest.sum() - np.cumsum(smallest), np.array(options))


@njit(cache=True)
def _mask(limits, step, cores, variant, allowed):
    """Flag in ``allowed`` (K,) the options of choice ``step`` that keep the capacity.

    Args:
        limits: of the pipeline.
        step: position 0..3 N - 1 in the sequence of choices.
        cores: not yet taken by earlier tasks.
        variant: chosen for this task; matters for the replicas only.
        allowed: written to.
    """
    task, kind = divmod(step, 3)
    budget = cores - limits.reserve[task]
    for option in range(len(allowed)):
        allowed[option] = option < limits.options[kind] and (
            kind == 2
            or (kind == 0 and limits.cores[task, option] <= budget)
            or (kind == 1 and (option + 1) * limits.cores[task, variant] <= budget)
        )


@njit(cache=True)
def _sample(logits, allowed, uniform):
    """One allowed option and its log-probability; -1 if there is none.

    Args:
        logits: (K,).
        allowed: (K,).
        uniform: within 0..1, for the option at which the cumulative probability passes it; negative for the most
            probable option, the first one of a tie.
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
    chosen = best
    if uniform >= 0.0:
        cumulative = 0.0
        for option in range(len(allowed)):
            if allowed[option]:
                chosen = option
                cumulative += np.exp(logits[option] - top)
                if cumulative > uniform * total:
                    break
    return chosen, logits[chosen] - top - np.log(total)


@njit(cache=True)
def choose(heads, limits, context, cores, uniform):
    """Choose an action for every state.

    Args:
        heads: weights.
        limits: of the pipeline.
        context: (E, W) float32, computed by the network from the states.
        cores: (E,) float64, available.
        uniform: (E, 3 N) float32, within 0..1 to sample; negative for the most probable options.

    Returns:
        (E, 3 N) choices, -1 where nothing fits the remaining cores; (E, 3 N, K) masks; (E,) float32 log-probabilities.
    """
    steps, options = heads.bias.shape
    context, cores = context.copy(), cores.copy()
    choices = np.full((len(context), steps), -1)
    masks = np.zeros((len(context), steps, options), dtype=np.bool_)
    log_prob = np.zeros(len(context), dtype=np.float32)
    for step in range(steps):
        task, kind = divmod(step, 3)
        hidden = np.maximum(context + heads.shift[step], np.float32(0.0))
        logits = np.dot(hidden, heads.weight[step].T) + heads.bias[step]
        for e in range(len(context)):
            variant = choices[e, 3 * task]
            _mask(limits, step, cores[e], variant, masks[e, step])
            chosen, logarithm = _sample(logits[e], masks[e, step], uniform[e, step])
            choices[e, step] = chosen
            log_prob[e] += logarithm
            if chosen < 0:
                cores[e] = -np.inf  # no later choice can be made either
                continue
            context[e] += heads.embedding[step, chosen]
            if kind == 1:
                cores[e] -= (chosen + 1) * limits.cores[task, variant]
    return choices, masks, log_prob


@njit(cache=True)
def masks_of(limits, cores, choices, options):
    """(E, 3 N, K) masks under which actions were chosen.

    Args:
        limits: of the pipeline.
        cores: (E,) float64, available.
        choices: (E, 3 N).
        options: K.
    """
    episodes, steps = choices.shape
    masks = np.zeros((episodes, steps, options), dtype=np.bool_)
    for e in range(episodes):
        remaining = cores[e]
        for step in range(steps):
            task, kind = divmod(step, 3)
            variant = choices[e, 3 * task]
            _mask(limits, step, remaining, variant, masks[e, step])
            if kind == 1:
                remaining -= (choices[e, step] + 1) * limits.cores[task, variant]
    return masks
