"""Objects that a pipeline can do without: disruption budgets, network policies, what Istio and monitoring need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd.cluster.dashboard import dashboard_config
from opd.cluster.names import MODEL, QUEUE, ROUTER, labels, match_labels, models_name, queue_name, router_name
from opd.cluster.pods import METRICS
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline
from opd.serving.monitoring import SCRAPE_SECONDS, SCRAPE_TIMEOUT

GRPC_SERVICE = "/inference.GRPCInferenceService/"
"""Path under which the Open Inference Protocol is served by gRPC."""

DNS_PORT = 53

Manifest = dict[str, Any]


def extra_objects(pipeline: Pipeline, settings: ClusterSettings) -> list[Manifest]:
    """Those of them that the settings ask for; disruption budgets always."""
    found = [_disruption_budget(pipeline, task.name, settings) for task in pipeline.tasks]
    if settings.network_policy:
        found += _network_policies(pipeline, settings)
    if settings.istio_gateway:
        found += [_virtual_service(pipeline, settings), _destination_rule(pipeline, settings)]
    if settings.pod_monitor:
        found.append(_pod_monitor(pipeline, settings))
    if settings.dashboard:
        found.append(dashboard_config(pipeline.name, settings.namespace))
    return found


def _object(
    api_version: str, kind: str, name: str, its_labels: Mapping[str, str], spec: Any, namespace: str
) -> Manifest:
    metadata = {"name": name, "namespace": namespace, "labels": dict(its_labels)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec}


def _selector(pipeline: str, component: str, task: str = "") -> dict[str, Any]:
    return {"matchLabels": match_labels(labels(pipeline, component, task))}


def _disruption_budget(pipeline: Pipeline, task: str, settings: ClusterSettings) -> Manifest:
    """Whoever empties a node takes the replicas of a task one by one; router and queues have only one anyway."""
    spec = {"maxUnavailable": 1, "selector": _selector(pipeline.name, MODEL, task)}
    its_labels = labels(pipeline.name, MODEL, task)
    name = models_name(pipeline.name, task)
    return _object("policy/v1", "PodDisruptionBudget", name, its_labels, spec, settings.namespace)


# --------------------------------------------------------------------------------------------------- network


def _network_policies(pipeline: Pipeline, settings: ClusterSettings) -> list[Manifest]:
    """Clients reach the router, the router the queues, a queue the replicas of its task, monitoring all."""
    name = pipeline.name
    router, queues = {"podSelector": _selector(name, ROUTER)}, {"podSelector": _selector(name, QUEUE)}
    control_plane = [{"ipBlock": {"cidr": block}} for block in settings.control_plane_blocks]
    policies = [
        _network_policy(
            name,
            ROUTER,
            "",
            settings,
            ingress=[_allow("from", [settings.http_port, settings.grpc_port])],
            egress=[_allow("to", [settings.grpc_port], [queues])],
        )
    ]
    for task in pipeline.tasks:
        queue = {"podSelector": _selector(name, QUEUE, task.name)}
        models = {"podSelector": _selector(name, MODEL, task.name)}
        policies += [
            _network_policy(
                name,
                QUEUE,
                task.name,
                settings,
                ingress=[
                    _allow("from", [settings.grpc_port], [router]),
                    _allow("from", [settings.http_port], control_plane),
                ],
                egress=[
                    _allow("to", [settings.grpc_port], [models]),
                    _allow("to", settings.api_server_ports),
                ],
            ),
            _network_policy(
                name,
                MODEL,
                task.name,
                settings,
                ingress=[_allow("from", [settings.grpc_port], [queue])],
                egress=[_allow("to", settings.store_ports)],
            ),
        ]
    return policies


def _network_policy(
    pipeline: str, component: str, task: str, settings: ClusterSettings, ingress: list[Any], egress: list[Any]
) -> Manifest:
    """A policy that also lets metrics be read and names be resolved."""
    names = {ROUTER: router_name(pipeline), QUEUE: queue_name(pipeline, task), MODEL: models_name(pipeline, task)}
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.monitoring_namespace}}}
    dns = {"ports": [{"protocol": protocol, "port": DNS_PORT} for protocol in ("UDP", "TCP")]}
    spec = {
        "podSelector": _selector(pipeline, component, task),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [*ingress, _allow("from", [settings.metrics_port], [monitoring])],
        "egress": [*egress, dns],
    }
    its_labels = labels(pipeline, component, task)
    return _object("networking.k8s.io/v1", "NetworkPolicy", names[component], its_labels, spec, settings.namespace)


def _allow(direction: str, ports: Sequence[int], peers: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A rule for TCP ports; without peers for anybody."""
    rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": port} for port in ports]}
    return {direction: list(peers), **rule} if peers else rule


# ----------------------------------------------------------------------------------------------------- Istio


def _virtual_service(pipeline: Pipeline, settings: ClusterSettings) -> Manifest:
    """What arrives at the gateway for this pipeline goes to the router, which does all retrying there is."""
    paths = {GRPC_SERVICE: settings.grpc_port, f"/v2/models/{pipeline.name}/": settings.http_port}
    routes = [
        {
            "match": [{"uri": {"prefix": prefix}}],
            "route": [{"destination": {"host": router_name(pipeline.name), "port": {"number": port}}}],
            "timeout": f"{settings.stage.request_seconds:g}s",
            "retries": {"attempts": 0},
        }
        for prefix, port in paths.items()
    ]
    spec = {"hosts": [settings.istio_host], "gateways": [settings.istio_gateway], "http": routes}
    return _istio_object("VirtualService", pipeline.name, spec, settings)


def _destination_rule(pipeline: Pipeline, settings: ClusterSettings) -> Manifest:
    policy = {"connectionPool": {"tcp": {"connectTimeout": "2s"}}, "loadBalancer": {"simple": "LEAST_REQUEST"}}
    spec = {"host": router_name(pipeline.name), "trafficPolicy": policy}
    return _istio_object("DestinationRule", pipeline.name, spec, settings)


def _istio_object(kind: str, pipeline: str, spec: dict[str, Any], settings: ClusterSettings) -> Manifest:
    its_labels = labels(pipeline, ROUTER)
    return _object("networking.istio.io/v1", kind, router_name(pipeline), its_labels, spec, settings.namespace)


# ------------------------------------------------------------------------------------------------ monitoring


def _pod_monitor(pipeline: Pipeline, settings: ClusterSettings) -> Manifest:
    """Every pod of the pipeline, as often as the control loop counts requests."""
    endpoint = {
        "port": METRICS,
        "interval": f"{1000 * SCRAPE_SECONDS:g}ms",
        "scrapeTimeout": f"{1000 * SCRAPE_TIMEOUT:g}ms",
    }
    its_labels = {**settings.monitoring_labels, **labels(pipeline.name)}
    spec = {"selector": _selector(pipeline.name, ""), "podMetricsEndpoints": [endpoint]}
    return _object("monitoring.coreos.com/v1", "PodMonitor", pipeline.name, its_labels, spec, settings.namespace)
