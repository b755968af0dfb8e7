"""Claims of ``docs/ray.md``."""

from __future__ import annotations

from evidence.claim import Claim, Row, TableClaim
from evidence.tables import Number, Tables

PAGE = "docs/ray.md"
SCALING = "benchmarks/ray_scaling.csv"
PLACES = (("processes", 1), ("processes", 2), ("ray", 1), ("ray", 2), ("ray", 4))


def costs(tables: Tables) -> list[Row]:
    """CPU-seconds within tasks and outside, of trainings and of cycles, in every place."""
    rows = []
    for kind in ("trainings", "cycles"):
        found = [tables.rows(SCALING, kind=kind, place=place, workers=workers).iloc[0] for place, workers in PLACES]
        within = [tables.worked(SCALING, row["cpu_seconds"] - row["overhead_cpu_seconds"], "") for row in found]
        outside = [tables.worked(SCALING, row["overhead_cpu_seconds"], "") for row in found]
        cells = " | ".join(["{:.0f}"] * len(PLACES))
        rows.append((f"| {found[0]['tasks']} {kind}, CPU-seconds within tasks | {cells} |", within))
        rows.append((f"| and outside | {cells} |", outside))
    return rows


def projection(tables: Tables) -> list[Number]:
    """Measured seconds of a training, a gap and a start, then the arithmetic with them."""
    row = tables.rows(SCALING, kind="trainings", place="ray", workers=2).iloc[0]
    training, gap, start = row["task_cpu_seconds"], row["gap_ms"] / 1000.0, row["start_seconds"]
    one = round(training, 1) + round(gap, 2)

    def minutes(calls: int, rounds: int) -> float:
        return (calls * start + rounds * (training + gap)) / 60.0

    values = [training, gap, start, start, one, minutes(7, 9), start, one, minutes(2, 4), minutes(7, 98)]
    cell = "trainings on 2 Ray nodes: `task_cpu_seconds`, `gap_ms`, `start_seconds`, and the arithmetic of the page"
    return [tables.worked(SCALING, value, cell) for value in values]


CLAIMS = [
    TableClaim(
        PAGE,
        "| | 1 process | 2 processes | 1 Ray node | 2 Ray nodes | 4 Ray nodes |",
        costs,
        "`cpu_seconds` − `overhead_cpu_seconds`, and `overhead_cpu_seconds`, by kind, place and workers",
    ),
    Claim(
        PAGE,
        "With `training` {:.1f} s, `gap` {:.2f} s and `start` {:.1f} s as measured, `make study` would take "
        "7 × {:.1f} s + 9 × {:.2f} s = {:.1f} minutes for the 195 on 64 cores, and side by side "
        "2 × {:.1f} s + 4 × {:.2f} s = {:.1f} minutes, where two cores take {:.1f}.",
        projection,
    ),
]
