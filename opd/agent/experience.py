"""What both kinds of agents learn from: where episodes begin, and advantages (Eq. 9)."""

from __future__ import annotations

import numpy as np


def episode_starts(
    latest: int, bursts: np.ndarray, burst_episodes: int, episodes: int, length: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw the decisions at which episodes begin.

    Args:
        latest: decision before which they begin.
        bursts: decisions at which the load jumps.
        burst_episodes: number of episodes, the first ones, that begin shortly before a burst.
        episodes: number of all episodes, E.
        length: decisions that an episode will last.
        generator: source of randomness.

    Returns:
        (E,) decisions, at least 1.
    """
    decisions = generator.integers(1, latest, size=episodes)
    usable = bursts[bursts < latest]
    if len(usable):
        lead = generator.integers(1, max(length // 2, 1), size=burst_episodes, endpoint=True)
        decisions[:burst_episodes] = np.maximum(generator.choice(usable, size=burst_episodes) - lead, 1)
    return decisions


def compute_gae(rewards: np.ndarray, values: np.ndarray, discount: float, gae_lambda: float) -> np.ndarray:
    """Generalised advantage estimation (Schulman et al., 2016) for episodes that are truncated, not terminated.

    The advantage at t is the sum over k >= t of (gamma lambda)^(k - t) (r_k + gamma V(s_k+1) - V(s_k)).

    Args:
        rewards: (T, E).
        values: (T + 1, E); the last row is the value of the state after the truncation.
        discount: gamma.
        gae_lambda: lambda.

    Returns:
        (T, E) estimates of the advantage of Eq. 9.
    """
    deltas = rewards + discount * values[1:] - values[:-1]
    advantages = np.zeros_like(deltas)
    advantage = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        advantage = deltas[t] + discount * gae_lambda * advantage
        advantages[t] = advantage
    return advantages
