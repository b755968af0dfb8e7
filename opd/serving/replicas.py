"""Replicas: where they are, how a queue sees them, and which of them a gateway uses when there are several gateways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from opd.serving.client import Client


@dataclass(frozen=True)
class ReplicaEndpoint:
    """A replica as others tell a queue of it.

    Attributes:
        name: of the replica.
        variant: that it runs.
        address: ``host:port`` of its gRPC endpoint.
        share: part of it that belongs to this queue if several queues use it.
    """

    name: Annotated[str, Field(min_length=1)]
    variant: Annotated[str, Field(min_length=1)]
    address: Annotated[str, Field(pattern=r"^[^\s:]+:\d{1,5}$")]
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes it this replica, whatever the share."""
        return self.name, self.variant, self.address


@dataclass(eq=False)
class Replica:
    """A replica as its queue sees it.

    Attributes:
        endpoint: name, variant, address and share.
        client: connection to it.
        serving: number of requests it is working on.
        retired: it gets no more requests.
        failed: it did not answer, and gets no requests until it does.
        garbled: it failed because its answer did not fit the request, though it is alive.
    """

    endpoint: ReplicaEndpoint
    client: Client
    serving: int = 0
    retired: bool = False
    failed: bool = False
    garbled: bool = False


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
