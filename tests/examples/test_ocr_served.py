"""The OCR pipeline is measured like that of any user."""

from __future__ import annotations

import pytest

from opd.profiling.measuring import Effort, as_table, measured_rows
from opd.profiling.pipeline_file import read_pipeline_file
from opd.profiling.profiles import COLUMNS, extrapolate_cores
from opd.serving import served_variant


@pytest.mark.processes
def test_a_variant_of_the_second_stage_is_measured_on_line_sheets(ocr_store, tmp_path, monkeypatch):
    monkeypatch.setattr(served_variant, "STARTS", 1)
    _, recognition = read_pipeline_file("ocr").tasks
    variant = served_variant.served_variants("ocr", ocr_store, tmp_path)(recognition.name, recognition.variants[0].name)
    cells, effort = [(1, 1), (1, 4)], Effort(0.0, min_runs=3)
    table = as_table(measured_rows(recognition.name, variant.variant, variant, cells, effort))
    assert table[["cores", "batch_size"]].values.tolist() == [[1, 1], [1, 4]]
    assert (table["latency_mean"] > 0).all()
    assert table["startup_seconds"].between(0.1, 600.0).all() and table["memory_mb"].between(20, 2000).all()
    assert table["runs"].eq(3).all()
    assert extrapolate_cores(table)[COLUMNS].equals(table[COLUMNS])
