"""The gateways of a pipeline on this machine: supervised processes, told by the reconciler what the stages run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import requests

from opd.serving.replicas import ReplicaEndpoint, share_of
from opd.serving.settings import GatewaySettings
from opd.serving.supervised_server import SupervisedServer


class LocalGateways:
    """Gateways side by side, each with its share of the replicas of every stage.

    Args:
        settings: of every gateway; the ports are chosen here.
        folder: folder for their settings and logs.
        number: of gateways.
        project: folder with modules of the adapters; by default that of this process.
    """

    def __init__(self, settings: GatewaySettings, folder: Path, number: int = 1, project: Path | None = None) -> None:
        names = [f"gateway-{place}" for place in range(number)] if number > 1 else ["gateway"]
        self.servers = [SupervisedServer(name, settings, folder, project) for name in names]
        self._told: dict[tuple[str, str], dict[str, Any]] = {}

    @property
    def address(self) -> str:
        """Target of gRPC for all gateways: ``host:port`` of the only one, or a list of addresses."""
        addresses = [server.grpc_address for server in self.servers]
        return addresses[0] if len(addresses) == 1 else f"ipv4:{','.join(addresses)}"

    @property
    def answer(self) -> bool:
        """True if every gateway answered its last probe."""
        return all(server.answers for server in self.servers)

    def errors(self) -> list[str]:
        """Reasons why gateways do not start."""
        return [server.backoff.error for server in self.servers if server.backoff.error]

    def missing(self) -> list[str]:
        """Descriptions of the gateways that do not answer."""
        silent = [server for server in self.servers if not server.answers]
        return [f"{server.name} does not answer ({server.last_words()})" for server in silent]

    def reconcile(self) -> None:
        """Probe every gateway, and restart those that have ended; does not wait."""
        for server in self.servers:
            if server.reconcile():
                self._told = {key: desired for key, desired in self._told.items() if key[0] != server.name}

    def configure(self, task: str, batch_size: int, endpoints: Sequence[ReplicaEndpoint]) -> bool:
        """Divide the replicas of a stage among the gateways that answer, and tell those that do not know it yet.

        Returns:
            whether there is such a gateway and all of them know.
        """
        members = [server for server in self.servers if server.answers]
        for place, server in enumerate(members):
            replicas = [asdict(endpoint) for endpoint in share_of(endpoints, place, len(members))]
            desired = {"batch_size": batch_size, "replicas": replicas}
            if self._told.get((server.name, task)) == desired:
                continue
            if _call(server, "PUT", task, desired) is None:
                self._told.pop((server.name, task), None)
            else:
                self._told[server.name, task] = desired
        return bool(members) and all((server.name, task) in self._told for server in members)

    def replicas(self, task: str) -> list[dict[str, Any]] | None:
        """Return the replicas of a stage as every gateway sees them, those that finish their last batch included.

        Returns:
            None if a gateway does not tell, or does not know yet what the stage runs: it may use any replica.
        """
        found: list[dict[str, Any]] = []
        for server in self.servers:
            if server.ended():  # with all its requests
                continue
            status = _call(server, "GET", task) if (server.name, task) in self._told else None
            if status is None:
                return None
            found += status["replicas"]
        return found


def _call(server: SupervisedServer, method: str, task: str, body: dict[str, Any] | None = None) -> Any:
    """Return a gateway's status of a stage; None if it does not answer."""
    if not server.answers:  # a call may take seconds; its own probes are enough
        return None
    try:
        return server.http(method, f"/stages/{task}", body)
    except requests.RequestException:  # it has died or hangs, which its next probes will show
        return None
