"""Latency of the OCR variants as they are served."""

from __future__ import annotations

import pytest

from opd.examples.ocr.served import OcrVariant
from opd.profiling.measuring import Effort, measure_variant
from opd.profiling.pipeline_file import read_pipeline_file
from opd.profiling.profiles import COLUMNS, extrapolate_cores
from opd.serving.store import STORE_URL_VARIABLE


@pytest.mark.processes
@pytest.mark.parametrize("task", ["text-detection", "text-recognition"])
def test_a_served_variant_is_measured_like_any_other(task, ocr_store, monkeypatch):
    monkeypatch.setenv(STORE_URL_VARIABLE, ocr_store.url)
    name = next(each.variants[0].name for each in read_pipeline_file("ocr").tasks if each.name == task)
    variant = OcrVariant(task, name)
    table = measure_variant(task, name, variant, [1, 4], [1], Effort(0.0, min_runs=3))
    assert table[["cores", "batch_size"]].values.tolist() == [[1, 1], [1, 4]]
    assert (table["latency_mean"] > 0).all()
    assert table["startup_seconds"].between(0.1, 600.0).all() and table["memory_mb"].between(20, 2000).all()
    assert table["runs"].eq(3).all()
    assert extrapolate_cores(table)[COLUMNS].equals(table[COLUMNS])


def test_a_served_variant_runs_on_one_thread():
    with pytest.raises(ValueError, match="text-recognition/small runs on one thread"):
        OcrVariant("text-recognition", "small").threads(2).__enter__()
