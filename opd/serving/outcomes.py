"""The outcomes of requests, for those that count them without the machinery of a server."""

COMPLETED, REJECTED, DROPPED, FAILED = OUTCOMES = ("completed", "rejected", "dropped", "failed")
"""Outcomes of requests: answered, rejected by a full queue, dropped for age, or anything else."""
