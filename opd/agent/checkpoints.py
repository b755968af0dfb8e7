"""Checkpoints of trainings: what an interrupted one goes on from.

A file of torch with tensors and plain values, and the name of its format. It is read without running anything that it
holds. What is finished is kept otherwise (:mod:`opd.agent.weights`, :mod:`opd.agent.single.deployed`).
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from opd.host.archive import written_whole
from opd.host.errors import reason_of


class TrainingStateError(RuntimeError):
    """No training can go on from a file: it is damaged, of another format, or holds more than plain values."""


def save_checkpoint(path: Path, format_name: str, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file, by convention ``.pt``.
        format_name: name and version of the format, such as ``opd course 1``.
        state: tensors and plain values by name.
    """
    with written_whole(path) as unfinished:
        torch.save({"format": format_name, **state}, unfinished)


def load_checkpoint(path: Path, format_name: str) -> dict[str, Any]:
    """Read what :func:`save_checkpoint` has written; nothing in the file is executed.

    Args:
        path: the file.
        format_name: name and version of the format that it must have.

    Raises:
        TrainingStateError: if it is none of that format, with the remedy.
    """
    remedy = "delete it, and the training starts over from what was finished before"
    try:
        state = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = "it holds more than tensors and plain values" if _holds_more(error) else reason_of(error)[:200]
        raise TrainingStateError(f"{path} is no checkpoint of format {format_name!r} ({reason}); {remedy}") from error
    found = state.pop("format", None) if isinstance(state, dict) else None
    if found != format_name:
        described = "no format" if found is None else f"format {found!r}"
        raise TrainingStateError(f"{path} has {described}, not {format_name!r}; {remedy}")
    return dict(state)


def _holds_more(error: Exception) -> bool:
    """Tell whether torch refused a file for a function or class in it."""
    return isinstance(error, pickle.UnpicklingError) and "unsupported global" in str(error).lower()
