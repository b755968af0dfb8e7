"""Which replicas a gateway uses when several stand in front of one pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opd.serving.stage_queue import ReplicaEndpoint


def share_of(endpoints: Sequence[ReplicaEndpoint], place: int, gateways: int) -> list[ReplicaEndpoint]:
    """Return the replicas of one gateway among several, which all have the same part of the replicas.

    Replicas and gateways divide the same line into equal pieces; a gateway uses the replicas that its piece touches. So
    every gateway has at least one replica, each replica serves as few gateways as possible, and their shares of it add
    up to one.

    Args:
        endpoints: all replicas, in an order that all gateways agree on.
        place: of the gateway among the others, from 0.
        gateways: number of gateways.
    """
    begin, end = place * len(endpoints), (place + 1) * len(endpoints)  # in pieces of 1 / gateways of a replica
    found = []
    for number, endpoint in enumerate(endpoints):
        overlap = min(end, (number + 1) * gateways) - max(begin, number * gateways)
        if overlap > 0:
            found.append(replace(endpoint, share=overlap / gateways))
    return found
