"""Deciding needs no training library and no figures."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.processes

HEAVY = {"torch", "pytorch_lightning", "matplotlib", "seaborn"}


def loaded_by(modules: str) -> set[str]:
    """Top-level modules in a fresh process after importing ``modules``."""
    program = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_the_loop_and_its_policies_load_neither_a_training_library_nor_an_environment():
    modules = "opd.control.loop, opd.control.policies, opd.workload.forecast, opd.agent.deployed"
    assert not loaded_by(modules) & {*HEAVY, "gymnasium"}


def test_the_policy_factory_loads_no_training_library():
    assert not loaded_by("opd.control.factory") & HEAVY
