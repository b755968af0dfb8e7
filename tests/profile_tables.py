"""The pipelines that ship with the package and their profiles, and small tables to test with."""

from __future__ import annotations

import pandas as pd

from opd.profiling.measuring import as_table
from opd.profiling.pipeline_file import read_pipeline_file
from opd.profiling.profiles import shipped_profiles

PIPELINES = ("video", "audio-qa", "audio-sentiment", "summarisation-qa", "nlp", "ocr")
FILES = {name: read_pipeline_file(name) for name in PIPELINES}
REFERENCE = shipped_profiles()
VARIANTS = list(
    dict.fromkeys(
        (task.name, variant.name) for file in FILES.values() for task in file.tasks for variant in task.variants
    )
)
SERVED = [task.name for task in FILES["ocr"].tasks]
"""Tasks whose variants are trained models."""


def timed(latency: dict[tuple[int, int], float], task: str = "task", variant: str = "variant") -> pd.DataFrame:
    """A measured table from latencies by (cores, batch size)."""
    return as_table([[task, variant, c, b, s, 1.5 * s, 5, "measured", 1.0, None] for (c, b), s in latency.items()])
