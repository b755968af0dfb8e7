"""Fine-tuning: the one agent goes on learning on a single pipeline, by PPO, and the best of what it became is kept."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.agent.network import AgentNetwork
from opd.agent.ppo import PpoParameters, decay_learning_rate, improve, roll_out
from opd.agent.practice import PracticeProblem, begin_practice
from opd.agent.scoring import ScoringWeights, choose
from opd.agent.weights import TrainedAgent
from opd.host.archive import written_whole
from opd.host.progress import progress_bar

_Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config={"extra": "forbid", "allow_inf_nan": False})
class FineTuning:
    """Effort of fine-tuning.

    Attributes:
        updates: of PPO, a multiple of ``validate_every``.
        rollouts: of an update.
        learning_rate: at the beginning; it falls linearly to a tenth.
        validate_every: updates between two validations.
        episodes: of a validation, which are the same in each.
        decisions: in each of them.

    Raises:
        ValueError: if a value is out of its range.
    """

    updates: _Count = 30
    rollouts: _Count = 6
    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-4
    validate_every: _Count = 5
    episodes: _Count = 32
    decisions: _Count = 60

    def __post_init__(self) -> None:
        if self.updates % self.validate_every:
            raise ValueError(f"updates {self.updates} is not a multiple of validate_every {self.validate_every}")


def fine_tune(
    agent: TrainedAgent,
    training: PracticeProblem,
    validation: PracticeProblem,
    parameters: FineTuning,
    seed: int,
    metrics: Path | None = None,
    title: str = "fine-tuning",
) -> TrainedAgent:
    """Train an agent further for one pipeline.

    Args:
        agent: to begin with; what it already does is the first to be validated.
        training: the pipeline under the load of the training days.
        validation: the same under the load of the validation days.
        parameters: effort.
        seed: of everything random.
        metrics: CSV file for the figures of every update.
        title: of the progress.
    """
    p = parameters
    torch.manual_seed(seed)
    network = loaded(agent.weights)
    ppo = PpoParameters(learning_rate=p.learning_rate, demonstration_weight=0.0, problems=p.rollouts)
    optimizer = torch.optim.Adam(network.parameters(), lr=p.learning_rate, eps=1e-5)
    best = validated(network, validation, p), deepcopy(network.state_dict())
    rows = [{"update": 0.0, "validation": best[0]}]
    for update in progress_bar(range(p.updates), desc=title, unit="update"):
        decay_learning_rate(optimizer, p.learning_rate, update, p.updates)
        rng = np.random.default_rng([seed, update])
        weights = network.weights()
        rollouts = [roll_out(training, weights, int(rng.integers(2**31)), ppo) for _ in range(p.rollouts)]
        row = {"update": update + 1.0} | improve(network, optimizer, rollouts, [], ppo, rng)
        if (update + 1) % p.validate_every == 0:
            value = validated(network, validation, p)
            row["validation"] = value
            if value > best[0]:
                best = value, deepcopy(network.state_dict())
        rows.append(row)
    network.load_state_dict(best[1])
    if metrics is not None:
        with written_whole(metrics) as unfinished:
            pd.DataFrame(rows).to_csv(unfinished, index=False)
    return replace(
        agent, weights=network.copied_weights(), about={**agent.about, "fine_tuned_for": training.pipeline.name}
    )


def loaded(weights: ScoringWeights) -> AgentNetwork:
    """A network with the weights of a policy and a new critic."""
    network = AgentNetwork(len(weights.stage_bias), len(weights.block_weight))
    known = {name: torch.from_numpy(np.array(part)) for name, part in weights._asdict().items()}
    network.load_state_dict(network.state_dict() | known)
    return network


def validated(network: AgentNetwork, problem: PracticeProblem, parameters: FineTuning) -> float:
    """Mean reward, less dropped requests and in cores, of the best choices in the validation episodes."""
    p = parameters
    episodes = begin_practice(problem, p.episodes, p.decisions, np.random.default_rng(0))
    best = np.full((p.episodes, 3 * len(problem.description.cores)), -1.0)
    weights, values = network.weights(), []
    for _ in range(p.decisions):
        choices, _ = choose(weights, problem.description, episodes.situations(), best)
        values.append(episodes.run(choices)[0])
    return float(np.mean(values))
