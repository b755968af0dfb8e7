"""Requests that came to nothing in a live run: how many, why, and whether the run still shows anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pandas as pd

from opd.serving.outcomes import COMPLETED, FAILED

USELESS_SHARE = 0.5
"""A run in which more than this share of the requests failed is useless: its latencies and scores describe the minority
that did not. Requests that an overloaded pipeline rejects or drops do not count, because a policy may deserve them."""

_STAGE = re.compile(r"stage '([^']+)'")


class UselessRunError(RuntimeError):
    """Runs in which so many requests failed that their results say nothing about the policies."""


def count_failures(records: pd.DataFrame) -> dict[str, Any]:
    """Count the requests without an answer, and find their most frequent reason.

    Args:
        records: of :func:`opd.live.load.offer`.

    Returns:
        ``requests`` without an answer and their ``share`` of all; ``most_frequent``, None if there are none: its number
        of ``requests``, their ``outcome``, status ``code`` and ``stage`` (empty if the message names none), and the
        ``message`` that most of them have.
    """
    failed = records[records["outcome"] != COMPLETED]
    counted = {"requests": len(failed), "share": len(failed) / len(records) if len(records) else 0.0}
    if failed.empty:
        return {**counted, "most_frequent": None}
    by_reason = failed.groupby(["outcome", "code", failed["detail"].map(_stage_of)])["detail"]
    (outcome, code, stage), same = max(by_reason, key=lambda group: len(group[1]))
    most = {"requests": len(same), "outcome": outcome, "code": code, "stage": stage, "message": same.mode()[0]}
    return {**counted, "most_frequent": most}


def _stage_of(message: str) -> str:
    found = _STAGE.search(message)
    return found[1] if found else ""


def describe_failures(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe the failures of runs in a sentence or two for each that has any.

    Args:
        results: of :func:`opd.live.runs.summarise_run`, by policy.
    """
    sentences = []
    for name, result in results.items():
        failures = result["failures"]
        if not failures["requests"]:
            continue
        offered, share = result["requests"]["offered"], failures["share"]
        text = f"{name}: {failures['requests']} of {offered} requests ({share:.1%}) got no answer."
        if most := failures["most_frequent"]:
            text += (
                f" Most frequent reason ({most['requests']} requests): {most['outcome']}, {most['code']}: "
                f"{most['message']}"
            )
        sentences.append(text)
    return sentences


def useless_reason(requests: Mapping[str, Any]) -> str:
    """Return why a run with these counts of requests shows nothing; empty if it does show something.

    Args:
        requests: ``offered``, ``completed`` and ``failed``.
    """
    offered, failed = requests["offered"], requests.get(FAILED, 0)
    if not requests[COMPLETED]:
        return f"none of {offered} requests was completed"
    if failed > USELESS_SHARE * offered:
        return f"{failed} of {offered} requests failed, more than {USELESS_SHARE:.0%}"
    return ""


def require_useful(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Check that every run shows something.

    Args:
        results: of :func:`opd.live.runs.summarise_run`, by policy.

    Raises:
        UselessRunError: naming every run that does not, and the most frequent reasons of failure.
    """
    useless = [f"{name}: {result['useless']}" for name, result in results.items() if result["useless"]]
    if useless:
        raise UselessRunError(
            "; ".join(useless)
            + "; the results written so far are kept. Correct the cause and run again. "
            + " ".join(describe_failures(results))
        )
