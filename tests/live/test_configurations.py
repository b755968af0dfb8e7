"""Configurations that a live run goes through without a policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, pipelines, stages

from opd.live.configurations import varied_configurations
from opd.pipeline import check_feasible


def test_the_varied_configurations_of_a_pipeline():
    chosen = varied_configurations(ocr_pipeline(), 4)
    assert chosen == [
        stages((0, 1, 1), (2, 1, 1)),
        stages((1, 2, 1), (1, 2, 1)),
        stages((0, 1, 2), (0, 1, 2)),
        stages((1, 1, 1), (2, 1, 1)),
    ]


@given(pipelines(), st.integers(1, 8))
def test_varied_configurations_differ_and_are_feasible(pipeline, count):
    chosen = varied_configurations(pipeline, count)
    assert 1 <= len(chosen) <= count and len(set(chosen)) == len(chosen)
    for configuration in chosen:
        check_feasible(pipeline, configuration)
