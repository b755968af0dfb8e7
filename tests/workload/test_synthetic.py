"""The bundled trace: published statistics of the recording that it imitates."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from deadlines import PATIENCE

from opd.workload import synthetic
from opd.workload.trace import burst_starts, load_trace
from opd.workload.trace_limits import DAY_SECONDS, MIN_SECONDS


def test_the_bundled_file_is_what_the_generator_makes(bundled):
    np.testing.assert_array_equal(bundled.recorded, synthetic.generate_counts())
    assert bundled.is_synthetic


@pytest.mark.processes
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_the_command_line_writes_a_readable_trace(tmp_path, suffix):
    path = tmp_path / f"other{suffix}"
    command = [
        sys.executable,
        "-m",
        "opd.workload.synthetic",
        "--output",
        path,
        "--seconds",
        str(MIN_SECONDS),
        "--seed",
        "5",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert str(path) in done.stdout
    np.testing.assert_array_equal(load_trace(path).counts, synthetic.generate_counts(MIN_SECONDS, seed=5))


def test_mean_and_percentiles(bundled):
    assert bundled.counts.mean() == pytest.approx(64.9, abs=1.0)
    np.testing.assert_allclose(np.percentile(bundled.counts, [5, 50, 95, 99.9]), [37, 54, 177, 276], atol=6)


def test_autocorrelation(bundled):
    deviation = bundled.counts - bundled.counts.mean()
    lags = (1, 60, 300, 600)
    found = [np.mean(deviation[:-lag] * deviation[lag:]) / np.mean(deviation**2) for lag in lags]
    np.testing.assert_allclose(found, [0.958, 0.876, 0.467, 0.170], atol=0.045)


def test_frequency_of_new_maxima(bundled):
    counts = pd.Series(bundled.counts)
    ahead = counts[::-1].rolling(20).max()[::-1].shift(-1)
    surpassed = (ahead > counts.rolling(120).max())[120:-20]
    assert 100 * surpassed.mean() == pytest.approx(13.4, abs=0.8)


def test_there_are_a_dozen_bursts_a_day(bundled):
    bursts = sum(len(burst_starts(bundled, split)) for split in ("train", "validation", "test"))
    assert bursts / (len(bundled.counts) / DAY_SECONDS) == pytest.approx(12, abs=1)


def test_seeds_differ_and_repeat():
    first = synthetic.generate_counts(5000, seed=1)
    np.testing.assert_array_equal(first, synthetic.generate_counts(5000, seed=1))
    assert (first != synthetic.generate_counts(5000, seed=3)).mean() > 0.5
    with pytest.raises(ValueError, match="0 seconds cannot be generated"):
        synthetic.generate_counts(0)
