"""Agents to test with: untrained, but with opinions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from opd.agent.single.deployed import Agent
from opd.agent.single.network import ActorCritic, export
from opd.measurement import state_names
from opd.objective import Weights
from opd.pipeline import Configuration, Pipeline

PARAMETERS = {"seed": 3, "weights": {"alpha": 10.0}, "expert_mode": "pretrain"}


def opinionated(pipeline, seed, width=16, blocks=1):
    """A network with heads far from the nearly uniform ones that training starts from."""
    torch.manual_seed(seed)
    network = ActorCritic(pipeline, width, blocks)
    with torch.no_grad():
        network.head_weight.normal_(0.0, 1.0)
        network.head_bias.normal_(0.0, 0.5)
        network.choice_embedding.normal_(0.0, 1.0)
    return network


def random_states(pipeline, seed, number):
    """States with the cores available anywhere from just enough to all of the device."""
    generator = np.random.default_rng(seed)
    states = generator.normal(0.0, 3.0, (number, len(state_names(pipeline))))
    smallest = pipeline.tables.cores.min(axis=1).sum()
    states[:, 0] = generator.integers(int(smallest), pipeline.capacity, size=number, endpoint=True)
    return torch.as_tensor(states, dtype=torch.float32)


def agent_for(pipeline: Pipeline, seed: int = 0) -> Agent:
    return Agent(pipeline, export(opinionated(pipeline, seed)), PARAMETERS)


def trained_with(largest_load: float, weights: Weights, expert: str = "myopic") -> dict[str, Any]:
    """Parameters of a checkpoint, as far as the fallback policy depends on them."""
    return {
        "largest_load": largest_load,
        "weights": asdict(weights),
        "training": {"expert": expert},
        "simulation": {"batch_timeout": 0.5, "interval": 10},
    }


class ThriftyAgent:
    """An agent that always chooses the smallest configuration, and counts its decisions."""

    def __init__(self, pipeline: Pipeline, largest_load: float = 100.0) -> None:
        self.pipeline, self.decisions = pipeline, 0
        self.parameters = trained_with(largest_load, Weights())

    def decide(self, state: np.ndarray) -> Configuration:
        self.decisions += 1
        return self.pipeline.smallest_configuration()
