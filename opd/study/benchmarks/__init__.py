"""Benchmarks against peers: the simulator, the training and the decision time."""

from __future__ import annotations


class DisagreementError(AssertionError):
    """Two peers answer the same question differently, so their speeds cannot be compared."""
