"""The benchmark of the gateway, with few requests: its figures mean nothing here, its columns and signs do."""

import pytest
from typer.testing import CliRunner

from opd.live import gateway_benchmark

pytestmark = pytest.mark.processes


def test_every_point_is_measured_and_written(tmp_path, monkeypatch):
    import pandas as pd
    import typer

    monkeypatch.setattr(gateway_benchmark, "POINTS", [(1, 1), (2, 3)])
    monkeypatch.setattr(gateway_benchmark, "IDLE_SECONDS", 0.2)
    app = typer.Typer()
    app.command()(gateway_benchmark.main)
    result = CliRunner().invoke(app, ["--output", str(tmp_path), "--requests", "5", "--points", "2"])
    assert result.exit_code == 0, result.output
    single, load = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("gateway", "gateway_load"))
    assert list(single) == ["layout", "stages", "replicas", "cpu_ms", "added_p50_ms", "added_p95_ms"]
    assert single["layout"].tolist() == ["gateway"] * 2 and single["replicas"].tolist() == [1, 3]
    assert (single["added_p50_ms"] <= single["added_p95_ms"]).all()
    assert (load["requests"] == 5 * gateway_benchmark.CONCURRENCY).all()
    assert (load["requests_per_cpu_second"] > 0).all()
