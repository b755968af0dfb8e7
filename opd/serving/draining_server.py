"""MLServer that drains before it stops."""

from __future__ import annotations

from mlserver import MLServer

GRACE_SECONDS = 3600.0
"""Longer than any request lives. The controller or the cluster that stops a server also kills it after its grace
period; a second limit here could only shorten that."""


class DrainingServer(MLServer):
    """MLServer that answers every running call before it stops, however long that takes."""

    async def stop(self, sig: int | None = None) -> None:
        """Refuse new calls, finish those that are running, then stop."""
        # MLServer cancels running gRPC calls after five seconds; by the time it stops gRPC, none is left.
        await self._grpc_server._server.stop(GRACE_SECONDS)
        await super().stop(sig)
