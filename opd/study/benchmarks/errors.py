"""What makes a comparison void."""

from __future__ import annotations


class DisagreementError(AssertionError):
    """Two peers give different answers to the same question, so that their speeds cannot be compared."""
