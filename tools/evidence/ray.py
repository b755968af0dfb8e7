"""Claims of ``docs/ray.md``."""

from __future__ import annotations

from collections.abc import Sequence

from evidence.claim import Claim, Row, TableClaim
from evidence.tables import Number, Tables
from opd.study.benchmarks.ray_report import CORES, WAYS, projected_seconds, rounds, training_cost

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
    cost = training_cost(tables.rows(SCALING))
    one = round(cost.training, 1) + round(cost.gap, 2)
    few, many = CORES
    now, side_by_side, _ = WAYS.values()

    def minutes(batches: Sequence[int], cores: int) -> float:
        return projected_seconds(cost, batches, cores) / 60.0

    def terms(batches: Sequence[int]) -> list[float]:
        return [len(batches), cost.start, rounds(batches, many), one, minutes(batches, many)]

    values = [cost.training, cost.gap, cost.start, *terms(now), *terms(side_by_side), minutes(now, few)]
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
        "{} × {:.1f} s + {} × {:.2f} s = {:.1f} minutes for the 195 on 64 cores, and side by side "
        "{} × {:.1f} s + {} × {:.2f} s = {:.1f} minutes, where two cores take {:.1f}.",
        projection,
    ),
]
