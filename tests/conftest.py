"""Fixtures and settings that all tests share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# One thread, compiled kernels kept: before anything imports numpy, numba or torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "numba"))

import pytest
import torch
from compiling import one_process_at_a_time
from deadlines import PATIENCE
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
one_process_at_a_time()

# A first call compiles, so time says nothing; a failure in continuous integration must come back on every run.
settings.register_profile("opd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("opd"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "opd")

LONGEST = (
    "test_journey",
    "test_book",
    "test_reproduction",
    "test_local",
    "test_local_faults",
    "test_local_lifecycle",
    "test_ocr_live",
    "test_discovery",
    "test_deployed",
    "test_checking_projects",
)
"""Modules that take a minute or more. They run first, so no test process is left with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first, then one module of each folder in turn.

    So what runs at the same time differs in what it needs: computation, other processes, or compiled code.
    """
    longest = {f"{name}.py": number for number, name in enumerate(LONGEST)}
    turns: dict[Path, dict[Path, int]] = {}
    for item in items:
        folder = turns.setdefault(item.path.parent, {})
        folder.setdefault(item.path, len(folder))
    items.sort(key=lambda item: (longest.get(item.path.name, len(longest)), turns[item.path.parent][item.path]))


@pytest.fixture(scope="session")
def twitter_trace_path() -> Path:
    """The real Twitter trace, or a skip that says how to provide it."""
    given = os.environ.get("OPD_TWITTER_TRACE")
    if not given:
        pytest.skip("needs the Twitter trace: set OPD_TWITTER_TRACE=/path/to/workload.tbz2")
    path = Path(given)
    if not path.is_file():
        pytest.fail(f"OPD_TWITTER_TRACE={given} is no file; correct it, or unset it to skip the tests that need it")
    return path


STARTS = (
    ("opd.serving.processes", "START_SECONDS"),
    ("opd.serving.measured_replica", "START_SECONDS"),
    ("opd.serving.emulation.host", "START_SECONDS"),
    ("opd.serving.local", "APPLY_SECONDS"),
    ("opd.serving.monitoring.prometheus", "READY_SECONDS"),
)
"""Modules and their limits for the start of processes."""


@pytest.fixture(scope="session", autouse=True)
def patient_starts() -> Iterator[None]:
    """On a busy machine processes start slowly; tests of these limits set their own."""
    with pytest.MonkeyPatch.context() as patch:
        for module, limit in STARTS:
            if module in sys.modules:
                patch.setattr(sys.modules[module], limit, PATIENCE)
        yield


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    """No test finds figures that another one left open."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
