"""Folders with a small pipeline, as people write them."""

from __future__ import annotations

from pathlib import Path

SHOP = """\
name: shop
device: {cores: 6}
limits: {replicas: 3, batch_size: 4}
objective:
  latency: {seconds: 1.0, percentile: 95}
  accuracy: {floor: 0.4}
samples: samples/requests.json
tasks:
  - name: first
    metric: F1
    variants:
      - name: small
        model: models/small.onnx
        accuracy: 0.5
        cores: 1
      - name: large
        model: shop.models:Large
        runtime: python
        settings: {depth: 3}
        accuracy: {value: 0.6, source: measured}
        cores: 2
  - name: second
    adapter: {rename: {scores: features}}
    variants:
      - {name: small, architecture: bert-tiny, accuracy: 0.5, cores: 1}
"""

PROFILE = """\
task,variant,cores,batch_size,latency_mean,latency_p99,runs,kind,startup_seconds,memory_mb
first,small,1,1,0.05,0.06,20,measured,2.0,120
first,small,1,2,0.05,0.06,20,measured,2.0,120
first,small,1,4,0.05,0.06,20,measured,2.0,120
first,large,2,1,0.06,,,assumed,2.5,
first,large,2,2,0.08,,,assumed,2.5,
first,large,2,4,0.12,,,assumed,2.5,
second,small,1,1,0.05,0.05,0,extrapolated,2.0,
second,small,1,2,0.05,0.05,0,extrapolated,2.0,
second,small,1,4,0.05,0.05,0,extrapolated,2.0,
"""


def write_pipeline(folder: Path, text: str = SHOP, profile: str = PROFILE) -> Path:
    """Write ``pipeline.yaml`` and ``profile.csv`` into a folder, which need not exist, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.yaml").write_text(text, encoding="utf-8")
    (folder / "profile.csv").write_text(profile, encoding="utf-8")
    return folder
