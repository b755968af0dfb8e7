"""Traffic of a live run: stretches of a trace, and requests from the samples of a pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from opd.host.documents import DocumentError
from opd.live.traffic import most_varied_window, samples_path, scaled_stretch
from opd.profiling.pipeline_file import pipeline_path
from opd.serving.samples import read_samples
from opd.workload.trace import Trace
from opd.workload.trace_limits import DAY_SECONDS


def test_the_most_varied_stretch_within_the_bounds_is_found():
    counts = np.concatenate([np.full(40, 8), np.full(20, 10), np.full(20, 20), np.full(20, 40), np.full(40, 9)])
    start = most_varied_window(counts, 10, 20, 5, 22, 10)
    assert start == 40  # its two intervals are at 10 and 20 requests/s
    with pytest.raises(ValueError, match="no 20 s of the load stay within 41 and 50"):
        most_varied_window(counts, 10, 20, 41, 50, 10)


def test_the_stretch_that_varies_most_is_scaled_to_the_peak():
    counts = np.full(DAY_SECONDS, 60)
    trace = Trace("flat", counts, np.arange(len(counts)), damping=8)
    test = trace.split("test")
    counts[test.start + 100 : test.start + 120] = 300
    scaled, start = scaled_stretch(trace, lead=10, seconds=40, peak=45.0, interval=20)
    assert scaled.damping == 7  # 300 / 7 is at most 45, 300 / 6 is not
    stretch = scaled.counts[test][start + 10 : start + 50].reshape(-1, 20).mean(axis=1)
    assert sorted(stretch.tolist()) == [8.0, 42.0]
    assert scaled_stretch(trace, 10, 40, 1000.0, 20)[0].damping == 1  # loads are never multiplied


@given(st.lists(st.integers(0, 30), min_size=60, max_size=200), st.integers(0, 15))
def test_no_stretch_within_the_bounds_varies_more(counts, least):
    load_of = np.array(counts)
    try:
        start = most_varied_window(load_of, 10, 20, least, 25, 10)
    except ValueError:
        start = None
    spreads = {}
    for first in range(0, len(load_of) - 29, 5):
        means = load_of[first + 10 : first + 20].mean(), load_of[first + 20 : first + 30].mean()
        if min(means) >= least and max(means) <= 25:
            spreads[first] = np.std(means)
    assert (start is None) == (not spreads)
    assert start is None or spreads[start] == pytest.approx(max(spreads.values()))


@pytest.fixture
def project(tmp_path):
    """A function that writes a pipeline file with these samples."""

    def written(samples):
        content = yaml.safe_load(pipeline_path("ocr").read_text())
        content["samples"] = samples
        for name in ("labels", "metric"):  # they need samples
            del content[name]
        (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(content))
        return tmp_path

    return written


def test_requests_are_the_samples_that_the_pipeline_file_names(project):
    folder = project("requests.json")
    (folder / "requests.json").write_text("[]")
    assert samples_path(folder) == folder / "requests.json"


def test_a_pipeline_without_samples_or_with_missing_ones_cannot_be_loaded(project):
    with pytest.raises(DocumentError, match="names no samples.*add `samples:`"):
        samples_path(project(None))
    with pytest.raises(FileNotFoundError, match="absent.json do not exist; correct `samples:`, or write that file"):
        samples_path(project("absent.json"))


def test_the_samples_of_the_ocr_pipeline_are_twenty_images():
    samples = read_samples(samples_path("ocr"))
    assert len(samples) == 20
    assert all(each.inputs[0].contents.bytes_contents[0].startswith(b"\xff\xd8") for each in samples)
