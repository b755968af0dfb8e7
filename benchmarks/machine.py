"""On what a benchmark ran."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opd.profiles import hardware

COMPARED = ("numba", "highspy", "simpy", "ciw", "stable_baselines3", "sb3_contrib", "gurobipy")
"""Packages that are measured, ours by the compiler that it hangs on."""


def describe_machine() -> dict[str, Any]:
    """The hardware, and the versions of all that was measured; None for a package that is not there."""
    return hardware() | {package: _version(package) for package in COMPARED}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
