"""Synthetic support tickets: short messages of customers, made from phrases, with the queue that each belongs to.

A ticket has an opening, the customer's matter, mostly a remark that points to another queue, and a closing, with typing
errors. Three in ten held-out tickets state their matter in a phrase that no training ticket uses, as new customers do.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import yaml

from opd.host.paths import package_path

REMARKS = 0.8
"""Share of tickets with a remark that points to another queue."""

UNSEEN = 0.3
"""Share of held-out tickets whose matter is in a phrase that no training ticket uses."""

TYPING_ERRORS = 0.02
"""Share of letters that are left out, doubled or swapped with the next."""


class Tickets(NamedTuple):
    """Tickets and their queues.

    Attributes:
        texts: of the tickets.
        queues: names of their queues.
    """

    texts: list[str]
    queues: list[str]


@cache
def _phrases() -> dict:
    return yaml.safe_load(package_path("examples", "text", "phrases.yaml").read_text(encoding="utf-8"))


def make_tickets(count: int, seed: int, held_out: bool) -> Tickets:
    """Make tickets; ticket i of a seed does not depend on their number.

    Args:
        count: number of tickets.
        seed: of queues, phrases and typing errors.
        held_out: whether some use phrases that no training ticket uses.
    """
    rngs = [np.random.default_rng([seed, index]) for index in range(count)]
    queues = [str(rng.choice(list(_phrases()["queues"]))) for rng in rngs]
    texts = [_text(rng, queue, held_out) for rng, queue in zip(rngs, queues, strict=True)]
    return Tickets(texts, queues)


def _text(rng: np.random.Generator, queue: str, held_out: bool) -> str:
    phrases = _phrases()
    matter = phrases["queues"][queue]["unseen" if held_out and rng.random() < UNSEEN else "known"]
    parts = [str(rng.choice(matter))]
    if rng.random() < REMARKS:
        other = str(rng.choice([name for name in phrases["queues"] if name != queue]))
        parts.insert(int(rng.integers(2)), str(rng.choice(phrases["queues"][other]["remark"])))
    parts = [str(rng.choice(phrases["openings"])), *parts, str(rng.choice(phrases["closings"]))]
    words = {"item": rng.choice(phrases["items"]), "time": rng.choice(phrases["times"])}
    return _mistyped(". ".join(parts).format(**words, number=rng.integers(10_000, 100_000)), rng)


def _mistyped(text: str, rng: np.random.Generator) -> str:
    letters, kinds = list(text), rng.integers(3, size=len(text))
    for place in np.flatnonzero(rng.random(len(text)) < TYPING_ERRORS).tolist():
        following = letters[place + 1] if place + 1 < len(letters) else ""
        if kinds[place] == 2 and following:
            letters[place : place + 2] = following, letters[place]
        else:
            letters[place] = ("", 2 * letters[place])[kinds[place] % 2]
    return "".join(letters)
