"""The policies that can control a real pipeline, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from opd.agent.agent import Agent
from opd.control.policies import AgentPolicy, GreedyPolicy, IpaPolicy, MyopicPolicy, Policy, RandomPolicy
from opd.objective import Weights
from opd.pipeline import Pipeline
from opd.solvers import IpaParameters

AGENT = "agent"
POLICIES = ("random", "greedy", "ipa", "myopic", AGENT)
"""Those that need not know the future."""


def policy_of(
    name: str,
    pipeline: Pipeline,
    weights: Weights,
    batch_timeout: float,
    ipa: IpaParameters,
    agent: Path | None = None,
    seed: int = 0,
) -> Policy:
    """The policy called ``name``.

    Args:
        name: one of :data:`POLICIES`.
        pipeline: what it controls.
        weights: of the reward that ``myopic`` maximises.
        batch_timeout: seconds the oldest request waits for its batch, for the same.
        ipa: weights of IPA's own objective.
        agent: checkpoint of ``agent``.
        seed: of ``random``.

    Raises:
        ValueError: if there is no such policy, or no checkpoint is given for the agent.
        CheckpointError: if the checkpoint cannot be read or is of another pipeline.
    """
    makers: dict[str, Callable[[], Policy]] = {
        "random": lambda: RandomPolicy(pipeline, seed),
        "greedy": lambda: GreedyPolicy(pipeline),
        "ipa": lambda: IpaPolicy(pipeline, ipa),
        "myopic": lambda: MyopicPolicy(pipeline, weights, batch_timeout),
        AGENT: lambda: AgentPolicy(_load(agent, pipeline)),
    }
    if name not in makers:
        raise ValueError(f"policy {name!r} is not one of {', '.join(POLICIES)}")
    return makers[name]()


def _load(path: Path | None, pipeline: Pipeline) -> Agent:
    if path is None:
        raise ValueError("policy 'agent' needs the checkpoint of a trained agent; name its file")
    return Agent.load(path, pipeline)
