"""All claims, and the pages that are covered."""

from __future__ import annotations

from evidence import agent, choosing, levels, other_pages, ray, readme, results, results_live, robustness
from evidence.exempt import EXEMPT, UNTABLED

COVERED = [
    "README.md",
    "docs/results.md",
    "docs/choosing-a-policy.md",
    "docs/agent.md",
    "docs/service-levels.md",
    "docs/bound.md",
    "docs/calibration.md",
    "docs/policies.md",
    "docs/live.md",
    "docs/gateway.md",
    "docs/kubernetes.md",
    "docs/view.md",
    "docs/benchmarks.md",
    "docs/architecture.md",
    "docs/ray.md",
]
"""Pages on which every number has to have a claim or a reason."""

_LISTS = (readme, results, results_live, choosing, agent, levels, other_pages, ray, robustness)
_ORDER = [*COVERED, "Makefile"]

CLAIMS = sorted((claim for each in _LISTS for claim in each.CLAIMS), key=lambda claim: _ORDER.index(claim.page))
"""In the order of the pages."""

__all__ = ["CLAIMS", "COVERED", "EXEMPT", "UNTABLED"]
