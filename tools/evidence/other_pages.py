"""Claims of pages with few of them, and of pipelines on one device in ``docs/benchmarks.md``."""

from __future__ import annotations

from evidence.claim import Claim, Row, TableClaim
from evidence.readme import takes
from evidence.shared import EVALUATION, PIPELINES
from evidence.tables import Number, Tables

# ------------------------------------------------------------------------------------------------ docs/bound.md

CYCLES = ("steady-high", "fluctuating", "steady-low")


def mean(tables: Tables, pipeline: str, cycle: str, column: str) -> Number:
    """Mean over the seeds of the bound, or of the reward of foresight."""
    rows = tables.rows(EVALUATION, pipeline=pipeline, cycle=cycle, policy="foresight")
    return tables.worked(EVALUATION, rows[column].mean(), f"mean `{column}` of foresight")


def bounds(tables: Tables) -> list[Row]:
    """Bound, reward of foresight, and the distance in percent of the reward, each in three cycles."""
    rows = []
    for pipeline in PIPELINES:
        bound, reward = ([mean(tables, pipeline, cycle, name) for cycle in CYCLES] for name in ("bound", "reward"))
        apart = [
            tables.worked(EVALUATION, 100.0 * (float(most.value) / float(own.value) - 1.0), "`bound` ÷ `reward` − 1")
            for most, own in zip(bound, reward, strict=True)
        ]
        three, percent = " / ".join(["{:.2f}"] * 3), " / ".join(["{:.1f}"] * 3)
        rows.append((f"| {pipeline} | {three} | {three} | {percent} % |", [*bound, *reward, *apart]))
    return rows


BOUND = [
    TableClaim(
        "docs/bound.md",
        "| pipeline | bound | foresight | bound above it |",
        bounds,
        f"means of `bound` and `reward` of foresight: {', '.join(CYCLES)}",
    )
]

# ----------------------------------------------------------------------------------------- docs/architecture.md

FORECAST, COVERAGE = "twitter/forecast.json", "twitter/forecast/coverage.csv"


def futures(tables: Tables) -> list[Row]:
    """Energy scores of three sources of futures, and the worst coverage of the quantiles, on two sets of days."""
    rows = []
    for days in ("validation", "test"):
        scores = [
            tables.key(FORECAST, "damping_8", "futures", "energy_score", days, source)
            for source in ("nearest", "quantile", "recent")
        ]
        part = tables.rows(COVERAGE, split=days)
        off = 100.0 * (part["observed"] - part["nominal"]).abs().max()
        rows.append(
            (f"| {days} | {{:.2f}} | {{:.2f}} | {{:.2f}} | {{:.1f}} % |", [*scores, tables.worked(COVERAGE, off, "")])
        )
    return rows


FUTURES = [
    TableClaim(
        "docs/architecture.md",
        "| days | `NearestFutures` | `QuantileFutures` | `RecentFutures` | coverage off by at most |",
        futures,
        "`damping_8.futures.energy_score`; largest |`observed` − `nominal`|",
    )
]

# ------------------------------------------------------------------------------------------------- docs/live.md

LIVE = [takes("docs/live.md", "It takes about {:.0f} minutes on an otherwise idle machine.", "make live")]

# --------------------------------------------------------------------- pipelines on one device, docs/benchmarks.md

SHARED = "benchmarks/shared_device.csv"


def divisions(tables: Tables) -> list[Row]:
    """Pairs in which the arbiter is at or above the best split, its leads, and dropped requests, by policy."""
    rows = []
    for policy in ("myopic-backlog", "agent"):
        pairs = tables.rows(SHARED, policy=policy)
        divided = pairs[(pairs["first"] != "ocr") & (pairs["second"] != "ocr")]
        found = [(pairs["lead"] >= 0.0).sum(), len(pairs)]
        found += [extreme for name in ("lead", "lead_each") for extreme in (pairs[name].min(), pairs[name].max())]
        found += [divided["dropped_arbiter"].max(), divided["dropped_split"].min(), divided["dropped_split"].max()]
        leads = " | ".join(["{:.4f} to {:.2f}"] * 2)
        line = f"| `{policy}` | {{}} of {{}} | {leads} | {{:.0f}}; {{:.0f}} to {{:.0f}} |"
        rows.append((line, [tables.worked(SHARED, value, "extremes over the pairs") for value in found]))
    return rows


DEVICE = [
    TableClaim(
        "docs/benchmarks.md",
        "| policy | pairs at or above the best split | lead over it, % | lead over the best split of each cycle, % "
        "| requests dropped in a cycle: arbiter, best split |",
        divisions,
        "`lead`, `lead_each`, `dropped_...` of all pairs",
    )
]

# ---------------------------------------------------------------------------------------------- docs/gateway.md

GATEWAY, GATEWAY_LOAD = "live/gateway.csv", "live/gateway_load.csv"
LAYOUTS = ("router and queues", "gateway")


def costs_of_gateways(tables: Tables) -> list[Row]:
    """Figures of both layouts for all numbers of stages and replicas."""
    rows = []
    for stages, replicas in tables.csv(GATEWAY)[["stages", "replicas"]].drop_duplicates().itertuples(index=False):
        at = {"stages": stages, "replicas": replicas}
        single = [
            tables.cell(GATEWAY, column, layout=layout, **at)
            for column in ("cpu_ms", "added_p50_ms", "added_p95_ms")
            for layout in LAYOUTS
        ]
        load = [tables.cell(GATEWAY_LOAD, "requests_per_cpu_second", layout=layout, **at) for layout in LAYOUTS]
        milliseconds = " | ".join(["{:.1f}, {:.1f}"] * 3)
        rows.append((f"| {stages} × {replicas} | {milliseconds} | {{:,.0f}}; {{:,.0f}} |", [*single, *load]))
    return rows


COSTS = [
    TableClaim(
        "docs/gateway.md",
        "| stages × replicas | CPU ms: old, gateway | added p50 ms: old, gateway | added p95 ms: old, gateway "
        "| requests per CPU second at once: old, gateway |",
        costs_of_gateways,
        "the columns of these names",
    )
]

# ------------------------------------------------------------------------------------------- docs/kubernetes.md

STARTS = "cluster/controller_start.csv"


def most(tables: Tables, column: str) -> Number:
    """The largest of a column over all starts of controllers."""
    return tables.worked(STARTS, tables.csv(STARTS)[column].max(), f"largest `{column}`")


def starts(tables: Tables) -> list[Row]:
    """How a controller starts."""
    lines = {
        "| first line of the log | {:.1f} s after its start |": "first_line",
        "| warmed up | {:.1f} s later |": "warm_up",
        "| first decision applied | {:.1f} s after it leads |": "first_decision",
        "| memory then | {:.0f} MB |": "memory_mb",
    }
    return [(line, [most(tables, column)]) for line, column in lines.items()]


def image(tables: Tables) -> list[Number]:
    """What the image adds to that of Python."""
    size = float(most(tables, "packages_mb").value) + float(most(tables, "compiled_mb").value)
    return [tables.worked(STARTS, size, "`packages_mb` + `compiled_mb`")]


IMAGE = [
    Claim("docs/kubernetes.md", "Packages and compiled code take {:.0f} MB on the disk, beside Python itself", image),
    TableClaim(
        "docs/kubernetes.md",
        "| of a controller | slowest or largest |",
        starts,
        "largest `first_line`, `warm_up`, `first_decision` and `memory_mb`",
    ),
]

CLAIMS = [*BOUND, *FUTURES, *LIVE, *DEVICE, *COSTS, *IMAGE]
