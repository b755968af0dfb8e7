"""Numbers that no claim covers: measured ones without a table, and those that are no measurements, with reasons."""

from __future__ import annotations

from evidence.coverage import Exempt


def section(page: str, first: str, last: str, reason: str) -> Exempt:
    """A stretch of a page from some words up to others."""
    return Exempt(page, rf"(?s){first}.*?(?={last})", reason)


def texts(page: str, reason: str, *expressions: str) -> Exempt:
    """Several texts of a page with one reason."""
    return Exempt(page, "|".join(expressions), reason)


UNTABLED = [
    section(
        "docs/your-own-pipeline.md",
        "The outputs below are from one run",
        "Every command has",
        "one run of the tutorial, as are the outputs on this page; run its commands to see yours",
    ),
    section(
        "docs/kubernetes.md",
        "Seen on the emulated cluster of the tests",
        "Before there was a gateway",
        "one run of the tests that the table names, on a busy machine",
    ),
    section(
        "docs/kubernetes.md",
        "Before there was a gateway",
        "The same faults of gateway and replicas on one machine",
        "one or two runs of an earlier version, on one cluster",
    ),
    section(
        "docs/kubernetes.md",
        "An earlier version, on a real Kubernetes 1.36, wrote the first line",
        "\n\n",
        "several starts of an earlier version, on one cluster",
    ),
]
"""Measured numbers of which there is no table."""

EVERYWHERE = [
    Exempt(
        "",
        r"Eqs?\. \d+(?:(?:–|, | and | to )\d+)*|Algs?\. \d+|Figs?\. \d+(?:(?:, | and | to )\d+)*",
        "a place in the paper",
    ),
    Exempt("", r"95 % interval|9[59](?:th|\.) percentile", "which interval or percentile it is"),
    Exempt("", r"(?m)^\d+\. ", "counts the items of a list"),
]

LANDING = [
    texts("README.md", "a version", r"Python 3\.11 or 3\.12, and git\. \(3\.13 works", r"Apache-2\.0"),
    texts("README.md", "an example of a service level", r"\*95 % of the requests within half a second\*"),
    texts("docs/results.md", "the ends of the scale, by definition", r"is 0 %, and `foresight`, [^.]* is 100 %"),
]

CHOOSING = [
    texts(
        "docs/choosing-a-policy.md",
        "sizes of the pipelines that were timed",
        "2 × 5 → 10 × 10",
        "for 2 stages with 5 variants and 10 stages with 10",
    ),
    texts("docs/choosing-a-policy.md", "a setting of the planner", "after 500 ms outside the simulator"),
    texts(
        "docs/choosing-a-policy.md",
        "settings of the study",
        "the last 20 s",
        "a cycle of 20 minutes",
        "start-up times from 2 to 60 s",
    ),
    texts("docs/choosing-a-policy.md", "start-up times in the profiles that ship", "start in 2 to 5 s"),
]

AGENT = [
    section(
        "docs/agent.md", r"\A", "## How good it is", "how the agent works and was trained: settings in `opd/agent`"
    ),
]

LEVELS = [
    texts("docs/service-levels.md", "an example of a service level", r"\*95 % of the requests within 0\.5 s\*"),
    texts("docs/service-levels.md", "a definition", r"It is 1 where\s+none ended"),
    texts(
        "docs/service-levels.md",
        "limits of the test that it names",
        r"median error is 3 % or more, if more than a tenth of the errors are above 10 %, or if one is outside of "
        r"−12 % to \+30 %",
    ),
    texts("docs/service-levels.md", "a setting, `MARGIN`", r"1\.05 times the predicted latency"),
    texts(
        "docs/service-levels.md",
        "the level that notebook `15_service_levels` asks for",
        "95 % of the requests within twice",
        r"\+1\.00 of mean accuracy worth 20 cores",
    ),
]

BOUND = [section("docs/bound.md", r"\A", "## How tight it is", "the theorem and its proof")]

CALIBRATION = [
    section("docs/calibration.md", r"\A", "## What it is worth", "how it works: settings of `opd.control.calibration`"),
]

POLICIES = [
    section("docs/policies.md", r"## Lookahead", "The shortlist saves", "settings of the planner, `opd.planner`"),
    texts("docs/policies.md", "defaults of a training", r"2048 by default", r"with the defaults 410 decisions"),
    section("docs/policies.md", "`hpa` is the Horizontal", "### Thresholds", "rules of the autoscalers"),
    section("docs/policies.md", "The thresholds that ship", "To tune them", "the search for thresholds, as it was set"),
    texts("docs/policies.md", "how variants are counted", "Variants count from 0"),
]

SERVING = [
    texts("docs/live.md", "size of packages in the index", "90 MB of wheels"),
    texts(
        "docs/live.md",
        "settings of the notebooks",
        "90 % of that",
        "With 1200 it is",
        "the 30 s of load",
        "some 15 s to start",
    ),
    texts("docs/live.md", "an option of the command", "service times of 40 replicas"),
    texts("docs/gateway.md", "status codes", r"\| (?:200|400|409|429|500|504) \|"),
    texts("docs/gateway.md", "a setting of the benchmark", "32 callers"),
]

CLUSTER = [
    texts(
        "docs/kubernetes.md",
        "exit and status codes, users and ports",
        r"(?s)exit with 0 when done.*?130 after",
        r"exit code [13]|exits with 3 or 1",
        r"\| 40[34] ",
        "user 10001",
        r"port 80\d\d|http://127\.0\.0\.1:8090",
    ),
    texts(
        "docs/kubernetes.md",
        "settings",
        "differ by more than 5 %",
        r"0\.1 cores, 256 MiB",
        "every 2 s",
        "the last 20 s",
        r"over 1 % of the requests of 5 min|missed over 10 min|for 5 min",
    ),
    texts("docs/kubernetes.md", "three stamps in whole seconds", "within 3 s"),
    texts("docs/kubernetes.md", "an example of a factor", "1\\.2 means that replicas take 20 % longer", "far from 1"),
    texts("docs/kubernetes.md", "a version", r"Seldon Core 1\.15 to 1\.19", r"Kubernetes 1\.30"),
    texts(
        "docs/view.md",
        "settings and codes",
        "fits 80 columns",
        "port 0",
        "last 360 intervals",
        "status 403",
        "the last 20,",
    ),
]

BENCHMARKS = [
    texts(
        "docs/benchmarks.md",
        "settings of the benchmarks",
        "batch size 1,",
        "age limit of 5 s",
        "every interval of 10 s|an interval of 10 s",
        "1e-6",
        "256 (?:copies|episodes|environments)",
        "12 requests/s",
        "step 32 Gymnasium",
        "cycle of 120 decisions|`total_ms` / 120",
        "after 500 ms",
    ),
    texts("docs/benchmarks.md", "a unit", "1/CPU-s"),
    texts("docs/benchmarks.md", "a definition", "above 1 the agent is faster", "1 is linear growth"),
    texts("docs/benchmarks.md", "a limit of a licence", "at most 2000 variables"),
    texts(
        "docs/benchmarks.md",
        "settings of the study",
        "a cycle of 1200 s",
        r"less 0\.05 for each dropped request",
        r"95 % of the requests within twice",
        r"\+1\.00 of mean accuracy is worth 20 cores",
        r"takes 0\.6 of the largest load|With 0\.6 the",
        "largest load in 20 s",
        "0 the forecaster's, 1 the truth; below 0 the mean",
        "counts as 100 % at most",
        r"damping 8, 12 validation cycles, one seed, 35 % of both devices",
    ),
]

ARCHITECTURE = [
    texts(
        "docs/architecture.md",
        "settings",
        "the next 20 s",
        "the 100 moments",
        "at damping 8",
        "last 20 single",
        "every 20 s elsewhere",
    ),
]

RAY = [
    texts("docs/ray.md", "size of packages in the index", "about 230 MB"),
    texts("docs/ray.md", "settings", "`workers: 1`", "four nodes of 16 cores"),
    texts("docs/ray.md", "a version", r"KubeRay 1\.7\.0"),
    texts("docs/ray.md", "rounded from the table above it", "some 10 CPU-seconds a node and 10 more"),
    texts("docs/ray.md", "counts of tasks", "for 4 trainings and for 240 cycles"),
    section(
        "docs/ray.md", r"\*\*A projection, not a measurement", "With `training`", "arithmetic with counts of the study"
    ),
]

EXEMPT = [
    *(*EVERYWHERE, *LANDING, *CHOOSING, *AGENT, *LEVELS, *BOUND, *CALIBRATION),
    *(*POLICIES, *SERVING, *CLUSTER, *BENCHMARKS, *ARCHITECTURE, *RAY),
]
"""Numbers that are no measurements."""
