"""What all figures share: a colour-blind palette, how each policy looks, and how a figure is saved."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

PALETTE = sns.color_palette("colorblind").as_hex()


class Style(NamedTuple):
    """How a policy looks in every figure."""

    label: str
    colour: str
    marker: str


_STYLES = {
    "random": Style("random", PALETTE[7], "x"),
    "greedy": Style("greedy", PALETTE[1], "v"),
    "ipa": Style("IPA", PALETTE[2], "s"),
    "ipa-highs": Style("IPA (HiGHS)", PALETTE[2], "s"),
    "dynamic-program": Style("IPA (exact dynamic program)", PALETTE[9], "^"),
    "myopic": Style("myopic (exact)", PALETTE[4], "D"),
    "myopic-backlog": Style("myopic, told what waits", PALETTE[6], "d"),
    "clairvoyant": Style("clairvoyant (knows the load)", PALETTE[5], "P"),
    "agent": Style("agent", PALETTE[0], "o"),
    "agent-frugal": Style("agent-frugal", PALETTE[3], "*"),
}
# For agents that users name themselves.
_SPARE_COLOURS = (PALETTE[8], PALETTE[9], "#000000")
_SPARE_MARKERS = "hp<>"


def policy_style(policy: str) -> Style:
    """Label, colour and marker of a policy; one that is not known gets its own by its name, always the same."""
    number = zlib.crc32(policy.encode())
    spare = Style(policy, _SPARE_COLOURS[number % len(_SPARE_COLOURS)], _SPARE_MARKERS[number % len(_SPARE_MARKERS)])
    return _STYLES.get(policy, spare)


def ordered(policies: Iterable[str]) -> list[str]:
    """Policies without repetition, from the simplest to the agents, others last by name."""
    known = list(_STYLES)
    return sorted(set(policies), key=lambda policy: (known.index(policy) if policy in known else len(known), policy))


def save_figure(figure: Figure, path: str | Path) -> Figure:
    """Write ``figure`` to an image file, making its folder, and close it."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return figure
