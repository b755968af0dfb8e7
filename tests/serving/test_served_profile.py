"""A pipeline with models of its own, from the store to a profile that policies can plan with."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_shop import shop_stages, write_shop

from opd.profiling import profiler
from opd.profiling.measuring import Effort
from opd.profiling.pipelines import load_pipeline
from opd.profiling.profiler import profile_pipeline
from opd.serving import served_variant
from opd.serving.store import STORE_URL_VARIABLE

pytestmark = pytest.mark.slow


@pytest.mark.processes
def test_a_pipeline_is_profiled_as_it_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_shop(tmp_path / "shop")
    shop_stages(folder)
    monkeypatch.setenv(STORE_URL_VARIABLE, str(folder / "store"))
    monkeypatch.setattr(served_variant, "STARTS", 1)
    monkeypatch.setattr(profiler, "THOROUGH", Effort(0.0, min_runs=2))
    serve = served_variant.served_variants(folder, cache=folder / "cache")
    measured, left_out = profile_pipeline(folder, folder / "profile.csv", serve)
    assert not left_out and len(measured) == 4 * 2
    assert measured["memory_mb"].between(20, 2000).all() and measured["startup_seconds"].between(0.1, 600).all()
    variants = [variant for task in load_pipeline(folder).tasks for variant in task.variants]
    assert [variant.assumed for variant in variants] == [False] * 4
    again, _ = profile_pipeline(folder, folder / "profile.csv", serve)  # starts nothing: all is known
    assert again[["task", "variant", "runs"]].equals(measured[["task", "variant", "runs"]])
