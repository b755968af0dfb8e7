"""MLServer that finishes what it has before it ends."""

from __future__ import annotations

from mlserver import MLServer

GRACE_SECONDS = 3600.0
"""Longer than any request lives. Whoever tells a server to end, the cluster or a controller, kills it when its time is
over; a second limit here could only cut that time short."""


class FinishingServer(MLServer):
    """MLServer, but calls that run when it is told to stop are answered, however long they take."""

    async def stop(self, sig: int | None = None) -> None:
        """Take no new calls, finish those that run, and end."""
        # MLServer itself stops gRPC too, but cancels what still runs after five seconds; then nothing does any more.
        await self._grpc_server._server.stop(GRACE_SECONDS)
        await super().stop(sig)
