"""The package's catalogue and reference profiles, and small tables to test with."""

from __future__ import annotations

import pandas as pd

from opd.profiling.catalogue import load_catalogue
from opd.profiling.profiles import COLUMNS, load_profiles

CATALOGUE = load_catalogue()
REFERENCE = load_profiles()
PIPELINES = ("video", "audio-qa", "audio-sentiment", "summarisation-qa", "nlp", "ocr")
VARIANTS = [(task, name) for task, entry in CATALOGUE.tasks.items() for name in entry.variants]


def timed(latency: dict[tuple[int, int], float], task: str = "task", variant: str = "variant") -> pd.DataFrame:
    """A measured table from latencies by (cores, batch size)."""
    table = [[task, variant, c, b, s, 1.5 * s, 5, "measured", 1.0] for (c, b), s in latency.items()]
    return pd.DataFrame(table, columns=COLUMNS)
