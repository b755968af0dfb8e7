"""Settings of a pipeline in a cluster: everything that is not the pipeline itself."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from opd.cluster.names import DNS_LABEL, DnsLabel, LabelKey, LabelValue, quoted
from opd.cluster.overlay import Overlay
from opd.host.documents import DocumentError, DocumentModel, read_as
from opd.serving.settings import StageSettings

Flavour = Literal["deployment", "seldon"]
"""Kind of a variant's workload: a plain Deployment, or a SeldonDeployment, which needs Seldon Core 1."""

PullPolicy = Literal["Always", "IfNotPresent", "Never"]

HTTP, GRPC, METRICS = "http", "grpc", "metrics"
"""Names of the ports."""

END_SECONDS = 5
"""Time a server needs to end after its last request."""


def _matching(pattern: str, example: str) -> AfterValidator:
    """Accept text that matches a pattern; the error names an example."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{quoted(text)} is malformed; give something like {example}")
        return text

    return AfterValidator(check)


_TAG_OR_DIGEST = r"(:[\w.-]+|@sha256:[0-9a-f]{64}|:[\w.-]+@sha256:[0-9a-f]{64})"

Image = Annotated[str, _matching(rf"[a-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*{_TAG_OR_DIGEST}", "registry.example/opd:1.0")]
StoreUrl = Annotated[str, _matching(r"([a-z][a-z0-9+.-]*://|/)\S+", "s3://bucket/store or /models")]
Memory = Annotated[str, _matching(r"[1-9]\d{0,5}(Mi|Gi)", "512Mi")]
SecretName = Annotated[str, _matching(rf"|{DNS_LABEL}", "model-store")]
PriorityClass = Annotated[str, _matching(rf"|{DNS_LABEL}(\.{DNS_LABEL})*", "edge-serving")]
GatewayName = Annotated[str, _matching(rf"|({DNS_LABEL}/)?{DNS_LABEL}", "istio-system/gateway")]
HostName = Annotated[str, _matching(rf"\*|(\*\.)?{DNS_LABEL}(\.{DNS_LABEL})*", "pipeline.example")]
Port = Annotated[int, Field(ge=1, le=65535)]
UnprivilegedPort = Annotated[int, Field(ge=1024, le=65535)]
Millicores = Annotated[int, Field(ge=1, le=64_000)]


class ClusterSettings(DocumentModel):
    """Settings of the objects that are created for a pipeline."""

    namespace: DnsLabel
    """namespace of every object; without a default, so nothing lands in the wrong one"""

    image: Image
    """image of every container, with a tag or digest"""

    store: StoreUrl
    """URL of the model store as pods see it: object storage, or a folder that an overlay mounts"""

    flavour: Flavour = "deployment"
    """kind of the variants' workloads"""

    priority_class: PriorityClass = ""
    """PriorityClass of all pods of the pipeline, which must exist; that of the cluster if empty"""

    pull_policy: PullPolicy = "IfNotPresent"
    """when nodes pull the image"""

    prefetch: bool = False
    """whether every node that replicas may go to has their image beforehand, and their models if an overlay has put the
    volume ``cache`` on the node"""

    storage_secret: SecretName = ""
    """Secret whose keys become environment variables of the replicas, such as ``AWS_ACCESS_KEY_ID``,
    ``AWS_SECRET_ACCESS_KEY`` and ``FSSPEC_S3_ENDPOINT_URL``; none if empty"""

    stage: StageSettings = StageSettings()
    """how every stage forms batches"""

    gateways: int = Field(default=1, ge=1, le=64)
    """gateways side by side, each with its share of the replicas"""

    gateway_millicores: Millicores = 1000
    """CPU of each gateway in thousandths of a core; it uses one core at most"""

    gateway_memory: Memory = "512Mi"
    """memory of each gateway"""

    model_memory: Memory = "1Gi"
    """memory of each replica"""

    emulated: bool = False
    """whether replicas are emulated: small pods that take the profiled times and no cores, for any pipeline with a
    profile; its name then ends in ``-emulated``"""

    emulated_millicores: Millicores = 100
    """CPU of each emulated replica in thousandths of a core"""

    emulated_memory: Memory = "256Mi"
    """memory of each emulated replica"""

    emulated_noise: float = Field(default=0.1, ge=0.0, le=3.0)
    """sigma of the lognormal factor on the service times of emulated replicas"""

    http_port: UnprivilegedPort = 8080
    """HTTP port of every server, which does not run as root"""

    grpc_port: UnprivilegedPort = 8081
    """gRPC port of every server, which does not run as root"""

    metrics_port: UnprivilegedPort = 8082
    """metrics port of every server, which does not run as root"""

    drain_seconds: int = Field(default=5, ge=0, le=300)
    """seconds that a terminating replica still serves, until nobody sends it requests any more"""

    gateway_drain_seconds: int = Field(default=20, ge=0, le=300)
    """seconds that a terminating gateway still serves: longer than its successor takes to start"""

    startup_seconds: int = Field(default=120, ge=1, le=3600)
    """seconds after which a server that does not answer is restarted"""

    apply_seconds: float = Field(default=180.0, ge=1, le=3600)
    """seconds after which an unfinished change is rolled back"""

    call_seconds: float = Field(default=10.0, ge=0.1, le=300)
    """seconds that one call to the API server may take"""

    manual_seconds: float = Field(default=600.0, ge=0, le=604_800)
    """seconds that a change by hand, such as ``kubectl scale`` or an edited ConfigMap of a stage, is left alone"""

    controller_account: DnsLabel = "opd-controller"
    """ServiceAccount of the controller, which gets the rights that it needs"""

    istio_gateway: GatewayName = ""
    """Istio Gateway, ``name`` or ``namespace/name``, through which requests arrive; none if empty"""

    istio_host: HostName = "*"
    """host name of the requests that Istio hands to the pipeline"""

    pod_monitor: bool = False
    """whether to make a PodMonitor for the Prometheus operator"""

    alerts: bool = False
    """whether to make a PrometheusRule with alerts for the Prometheus operator"""

    dashboard: bool = False
    """whether to make a ConfigMap with the Grafana dashboard, for Grafana's sidecar"""

    monitoring_labels: dict[LabelKey, LabelValue] = {}
    """labels by which the Prometheus operator finds PodMonitors and PrometheusRules, such as ``release: prometheus``"""

    admission: bool = False
    """whether the API server itself refuses replicas, variants and batch sizes that the pipeline does not allow; needs
    Kubernetes 1.30, and rights in the whole cluster to deploy"""

    network_policy: bool = False
    """whether to allow only the traffic that is needed"""

    monitoring_namespace: DnsLabel = "monitoring"
    """namespace from which metrics may be read under the network policy"""

    api_server_ports: list[Port] = [443, 6443]
    """ports of the API server to which gateways may connect under the network policy"""

    store_ports: list[Port] = [443, 9000]
    """ports of the model store to which replicas may connect under the network policy"""

    overlay: Overlay = Overlay()
    """changes to the pods"""

    @model_validator(mode="after")
    def _check_ports_differ(self) -> ClusterSettings:
        ports = tuple(self.ports.values())
        if len(set(ports)) < len(ports):
            raise ValueError(f"http_port, grpc_port and metrics_port {ports} must differ")
        return self

    @property
    def ports(self) -> dict[str, int]:
        """Ports of every server by their names in pods and Services."""
        return {HTTP: self.http_port, GRPC: self.grpc_port, METRICS: self.metrics_port}

    def grace_seconds(self, drain_seconds: int) -> int:
        """Seconds from the order to end until a pod is killed: it drains, finishes the longest request, and ends."""
        return drain_seconds + math.ceil(self.stage.request_seconds) + END_SECONDS

    @property
    def series_labels(self) -> dict[str, str]:
        """Labels that tell our series from those of a pipeline of the same name in another namespace.

        Only a PodMonitor guarantees that the series have any.
        """
        return {"namespace": self.namespace} if self.pod_monitor else {}


def read_settings(path: Path, namespace: str = "", overrides: Mapping[str, Any] | None = None) -> ClusterSettings:
    """Read settings from a YAML file: a mapping of the attributes of :class:`ClusterSettings`.

    Args:
        path: of the file.
        namespace: the caller works in; the file may leave it out, and must not name another one.
        overrides: settings by name that take precedence over those of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not plain YAML of a limited size, or not settings; it lists all problems, each with its
            place, line, value and remedy.
    """
    settings = read_as(ClusterSettings, path, {"namespace": namespace} if namespace else None, overrides)
    if namespace and settings.namespace != namespace:
        raise DocumentError(f"{path} is for namespace {settings.namespace!r}, not {namespace!r}")
    return settings
