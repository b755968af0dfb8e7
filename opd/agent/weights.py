"""The file that holds the weights of an agent, and the one that ships with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from opd.agent.scoring import NODE_INPUTS, OPTION_INPUTS, STAGE_INPUTS, ScoringWeights
from opd.host.archive import ArchiveError, load_archive, save_archive

FORMAT = "opd agent 4"

SHIPPED = Path(__file__).with_name("agent.npz")
"""The agent that ``--policy agent`` means where none was trained."""


class WeightsError(ValueError):
    """A file holds no weights of this version; the message gives the reason and the remedy."""


@dataclass(frozen=True, eq=False)
class TrainedAgent:
    """Weights and how they were trained.

    Attributes:
        weights: of the policy.
        about: anything that JSON can hold: parameters, traces, commit.
    """

    weights: ScoringWeights
    about: Mapping[str, Any]

    @property
    def origin(self) -> str:
        """How it was trained, in words."""
        pipeline = self.about.get("fine_tuned_for")
        return "trained for every pipeline" if pipeline is None else f"fine-tuned for pipeline {pipeline!r}"

    def save(self, path: Path) -> None:
        """Write one file, completely or not at all."""
        save_archive(path, FORMAT, dict(self.about), self.weights._asdict())

    @classmethod
    def load(cls, path: Path = SHIPPED) -> TrainedAgent:
        """Read an agent.

        Raises:
            WeightsError: if the file is missing, damaged, or of an agent with other inputs.
        """
        try:
            about, arrays = load_archive(path, FORMAT)
        except ArchiveError as error:
            remedy = "reinstall the package" if path == SHIPPED else "train the agent again"
            raise WeightsError(f"{error}; {remedy}") from error
        missing = set(ScoringWeights._fields) - set(arrays)
        if missing:
            raise WeightsError(f"{path} is no agent, it lacks {', '.join(sorted(missing))}; train it again")
        weights = ScoringWeights(**{name: np.ascontiguousarray(arrays[name]) for name in ScoringWeights._fields})
        found = (weights.node_weight.shape[1], weights.stage_weight.shape[1], weights.option_weight.shape[2])
        wanted = (NODE_INPUTS, STAGE_INPUTS, OPTION_INPUTS)
        if found != wanted:
            raise WeightsError(f"{path} takes {found} inputs, this version has {wanted}; train the agent again")
        return cls(weights, about)
