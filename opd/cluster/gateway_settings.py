"""Settings of a gateway that follows the cluster."""

from __future__ import annotations

from pydantic import Field

from opd.serving.settings import GatewaySettings

POD_NAME_VARIABLE = "POD_NAME"
"""Environment variable with the name of the gateway's own pod."""


class ClusterGatewaySettings(GatewaySettings):
    """Settings of the process of a gateway in a pod."""

    module = "opd.cluster.gateway"

    namespace: str = Field(min_length=1)
    """Namespace of pods and ConfigMaps."""

    replica_port: int
    """gRPC port of the replicas."""
