"""Figures of the profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from profile_tables import PIPELINES, REFERENCE

from opd.profiling.pipelines import load_pipeline
from opd.profiling.profiles import compare_latencies
from opd.study.plots.profiles import accuracy_by_cores, plot_accuracy_frontier, plot_comparison, plot_latency


def test_the_frontier_matches_enumeration():
    pipeline = load_pipeline("audio-sentiment")
    best = accuracy_by_cores(pipeline, 10.0)
    stages = []
    for task in pipeline.tasks:
        options = []
        for variant in task.variants:
            for size in pipeline.batch_sizes:
                needed = int(np.ceil(10.0 / variant.throughput(size) - 1e-9))
                if needed <= pipeline.max_replicas:
                    options.append((needed * variant.cores, variant.accuracy))
        stages.append(options)
    for cores in (4, 8, pipeline.capacity):
        pairs = [a + b for used, a in stages[0] for more, b in stages[1] if used + more <= cores]
        assert best[cores] == pytest.approx(max(pairs, default=-np.inf))


def test_the_legend_of_a_single_frontier_fits_into_the_figure(tmp_path: Path):
    figure = plot_accuracy_frontier([load_pipeline("ocr")], tmp_path / "frontier.png")
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1


def test_profile_figures_are_written(tmp_path: Path):
    plot_latency(REFERENCE, ["detection", "classification"], tmp_path / "latency.png")
    plot_accuracy_frontier([load_pipeline(name) for name in PIPELINES], tmp_path / "frontier.png")
    plot_comparison(compare_latencies(REFERENCE, REFERENCE), tmp_path / "comparison.png")
    assert {path.name for path in tmp_path.glob("*.png")} == {"latency.png", "frontier.png", "comparison.png"}
