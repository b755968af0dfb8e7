"""Deciding needs no training library, no environment and no figures."""

from __future__ import annotations

import subprocess
import sys

import pytest
from deadlines import PATIENCE

pytestmark = pytest.mark.processes

HEAVY = {"torch", "pytorch_lightning", "matplotlib", "seaborn", "gymnasium"}


def loaded_by(modules: str) -> set[str]:
    """Top-level modules in a fresh process after importing ``modules``."""
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "modules",
    ["opd.control.loop, opd.control.policies, opd.workload.forecast, opd.agent.single.deployed", "opd.control.factory"],
)
def test_deciding_loads_neither_a_training_library_nor_an_environment(modules: str):
    assert not loaded_by(modules) & HEAVY
