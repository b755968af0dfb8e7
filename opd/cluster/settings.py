"""How a pipeline is laid out in a cluster: everything that is not the pipeline itself."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from opd.cluster.names import BadNameError, check_labels, check_name
from opd.cluster.overlay import Overlay
from opd.documents import describe_problems, read_document
from opd.serving.stage_queue import StageSettings

Flavour = Literal["deployment", "seldon"]
"""Kind of a variant's workload: a plain Deployment, or a SeldonDeployment, which needs Seldon Core 1."""

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

PULL_POLICIES = ("Always", "IfNotPresent", "Never")

FINISH_SECONDS = 5
"""Beyond the longest request, what a server needs to end once it is told to."""

_IMAGE = re.compile(r"[a-z0-9][\w.-]*(:\d+)?(/[\w.-]+)*(:[\w.-]+|@sha256:[0-9a-f]{64}|:[\w.-]+@sha256:[0-9a-f]{64})")
_MEMORY = re.compile(r"[1-9]\d{0,5}(Mi|Gi)")
_URL = re.compile(r"([a-z][a-z0-9+.-]*://|/)\S+")
_HOST = re.compile(r"\*|(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")

_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}


class SettingsError(ValueError):
    """A setting of the cluster is out of its range."""


@dataclass(frozen=True)
class ClusterSettings:
    """Where and how the objects of a pipeline are made.

    Attributes:
        namespace: of every object; there is no default, so that nothing lands in the wrong one.
        image: of every container, with a tag or digest.
        store: URL of the model store as pods see it: object storage, or a folder that an overlay mounts.
        flavour: ``deployment`` or ``seldon``.
        pull_policy: of the image.
        storage_secret: Secret whose keys become environment variables of the replicas, such as ``AWS_ACCESS_KEY_ID``,
            ``AWS_SECRET_ACCESS_KEY`` and ``FSSPEC_S3_ENDPOINT_URL``; none if empty.
        stage: how every stage forms batches.
        router_millicores: CPU of the router, thousandths of a core.
        queue_millicores: CPU of each queue.
        router_memory: of the router.
        queue_memory: of each queue.
        model_memory: of each replica.
        http_port: of every server.
        grpc_port: likewise.
        metrics_port: likewise.
        drain_seconds: a pod that is to end waits this long first, until nobody sends it anything any more.
        startup_seconds: a server that does not answer after this long is started again.
        apply_seconds: a change that is not done after this long is taken back.
        call_seconds: one call to the API server may take this long.
        istio_gateway: Istio Gateway, ``name`` or ``namespace/name``, through which requests come; none if empty.
        istio_host: host name of the requests that the gateway hands to the router.
        pod_monitor: make a PodMonitor for the Prometheus operator.
        dashboard: make a ConfigMap with the Grafana dashboard, for its sidecar.
        monitoring_labels: by which the Prometheus operator finds PodMonitors, such as ``release: prometheus``.
        network_policy: let only those talk who must.
        monitoring_namespace: from where metrics may be read under the network policy.
        control_plane_blocks: CIDR blocks of the API server, which asks queues for their state; any if empty.
        api_server_ports: to which queues may connect under the network policy.
        store_ports: to which replicas may connect, for the model store.
        overlay: what a user changes of the pods.

    Raises:
        SettingsError: naming the setting, its value and its limits.
        BadNameError: if a name is no DNS label.
    """

    namespace: str
    image: str
    store: str
    flavour: Flavour = "deployment"
    pull_policy: str = "IfNotPresent"
    storage_secret: str = ""
    stage: StageSettings = StageSettings()
    router_millicores: int = 500
    queue_millicores: int = 500
    router_memory: str = "512Mi"
    queue_memory: str = "512Mi"
    model_memory: str = "1Gi"
    http_port: int = 8080
    grpc_port: int = 8081
    metrics_port: int = 8082
    drain_seconds: int = 5
    startup_seconds: int = 120
    apply_seconds: float = 180.0
    call_seconds: float = 10.0
    istio_gateway: str = ""
    istio_host: str = "*"
    pod_monitor: bool = False
    dashboard: bool = False
    monitoring_labels: Mapping[str, str] = field(default_factory=dict)
    network_policy: bool = False
    monitoring_namespace: str = "monitoring"
    control_plane_blocks: tuple[str, ...] = ()
    api_server_ports: tuple[int, ...] = (443, 6443)
    store_ports: tuple[int, ...] = (443, 9000)
    overlay: Overlay = Overlay()

    def __post_init__(self) -> None:
        self._check_types()
        self._check_names()
        self._check_choices()
        self._check_numbers()

    @property
    def grace_seconds(self) -> int:
        """From the order to end until a pod is killed: it drains, finishes the longest request, and ends."""
        return self.drain_seconds + math.ceil(self.stage.request_seconds) + FINISH_SECONDS

    @property
    def series_labels(self) -> dict[str, str]:
        """Labels by which our series differ from those of a pipeline of the same name in another namespace.

        Only where a PodMonitor is made is it certain that the series have any.
        """
        return {"namespace": self.namespace} if self.pod_monitor else {}

    def _check_types(self) -> None:
        for each in fields(self):
            if not _is(getattr(self, each.name), str(each.type)):
                raise SettingsError(f"{each.name} {getattr(self, each.name)!r} must be of type {each.type}")

    def _check_names(self) -> None:
        check_name("namespace", self.namespace)
        check_name("monitoring_namespace", self.monitoring_namespace)
        check_labels("monitoring_labels", self.monitoring_labels)
        if self.storage_secret:
            check_name("storage_secret", self.storage_secret)
        if self.istio_gateway:
            parts = self.istio_gateway.split("/")
            if len(parts) > 2:
                raise BadNameError(f"istio_gateway {self.istio_gateway!r} is neither name nor namespace/name")
            for part in parts:
                check_name("istio_gateway", part)

    def _check_choices(self) -> None:
        for name, value, known in (
            ("flavour", self.flavour, FLAVOURS),
            ("pull_policy", self.pull_policy, PULL_POLICIES),
        ):
            if value not in known:
                raise SettingsError(f"{name} {value!r} is not one of {', '.join(known)}")
        for name, pattern, example in (
            ("image", _IMAGE, "registry.example/opd:1.0"),
            ("store", _URL, "s3://bucket/store or /models"),
            ("router_memory", _MEMORY, "512Mi"),
            ("queue_memory", _MEMORY, "512Mi"),
            ("model_memory", _MEMORY, "1Gi"),
            ("istio_host", _HOST, "pipeline.example"),
        ):
            if not pattern.fullmatch(getattr(self, name)):
                raise SettingsError(f"{name} {getattr(self, name)!r} is malformed; give something like {example}")
        for block in self.control_plane_blocks:
            try:
                ipaddress.ip_network(block)
            except ValueError as error:
                raise SettingsError(f"control_plane_blocks: {error}; give something like 10.0.0.0/24") from error

    def _check_numbers(self) -> None:
        limits = {
            "router_millicores": (1, 64_000),
            "queue_millicores": (1, 64_000),
            "drain_seconds": (0, 300),
            "startup_seconds": (1, 3600),
            "apply_seconds": (1, 3600),
            "call_seconds": (0.1, 300),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise SettingsError(f"{name} {getattr(self, name)} is not within {low}..{high}")
        ports = (self.http_port, self.grpc_port, self.metrics_port)
        if len(set(ports)) < len(ports):
            raise SettingsError(f"http_port, grpc_port and metrics_port {ports} must differ")
        for port in (*ports, *self.api_server_ports, *self.store_ports):
            if not 1 <= port <= 65535:
                raise SettingsError(f"port {port} is not within 1..65535")
        if min(ports) < 1024:
            raise SettingsError(f"ports {ports} must be 1024 or more: servers do not run as root")


def _is(value: Any, kind: str) -> bool:
    """Whether a value has the type that an annotation names; what is checked elsewhere is taken as it is."""
    if kind.startswith("tuple["):
        return isinstance(value, tuple) and all(_is(each, kind[len("tuple[") : kind.index(",")]) for each in value)
    return kind not in _TYPES or (isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "bool"))


def read_settings(path: Path, namespace: str = "") -> ClusterSettings:
    """The settings in a YAML file: a mapping of the attributes of :class:`ClusterSettings`.

    ``stage`` maps the attributes of :class:`opd.serving.stage_queue.StageSettings`; ``overlay`` is the overlay itself.

    Args:
        path: of the file.
        namespace: in which the caller works; then the file need not say it, and must not say another.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is no plain YAML document, or too large a one.
        SettingsError: naming the setting, its value and its limits.
        OverlayError: if ``overlay`` is none.
        BadNameError: if a name is no DNS label.
    """
    given = _known(read_document(path), ClusterSettings, str(path))
    if namespace and given.setdefault("namespace", namespace) != namespace:
        raise SettingsError(f"{path} is for namespace {given['namespace']!r}, not {namespace!r}")
    if "stage" in given:
        given["stage"] = _stage(_known(given["stage"], StageSettings, f"{path}: stage"), str(path))
    if "overlay" in given:
        given["overlay"] = Overlay(given["overlay"])
    missing = {"namespace", "image", "store"} - set(given)
    if missing:
        raise SettingsError(f"{path} lacks {', '.join(sorted(missing))}")
    values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}
    return ClusterSettings(**values)


def _known(content: Any, kind: type[ClusterSettings] | type[StageSettings], place: str) -> dict[str, Any]:
    known = [each.name for each in fields(kind)] if is_dataclass(kind) else list(kind.model_fields)
    if not isinstance(content, Mapping):
        raise SettingsError(f"{place} must be a mapping of settings, not {type(content).__name__}")
    for name in content:
        if name not in known:
            raise SettingsError(f"{place} may not set {name!r}, only {', '.join(known)}")
    return dict(content)


def _stage(given: dict[str, Any], place: str) -> StageSettings:
    try:
        return StageSettings(**given)
    except ValidationError as error:
        raise SettingsError(describe_problems(error, f"{place}: stage", StageSettings)) from error
