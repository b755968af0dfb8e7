"""Objects beyond the bare pipeline: disruption budgets, policies, objects for Istio and for monitoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opd.cluster.manifests.admission import admission_objects
from opd.cluster.manifests.alerts import alert_rules
from opd.cluster.manifests.dashboard import dashboard_config
from opd.cluster.names import (
    GATEWAY,
    MODEL,
    PREFETCH,
    gateway_name,
    labels,
    models_name,
    pod_selector,
    prefetch_name,
)
from opd.cluster.resources import Object, manifest
from opd.cluster.settings import METRICS, ClusterSettings
from opd.pipeline import Pipeline
from opd.serving.monitoring.source import SCRAPE_SECONDS, SCRAPE_TIMEOUT

GRPC_SERVICE = "/inference.GRPCInferenceService/"
"""Path of the Open Inference Protocol over gRPC."""


def extra_objects(pipeline: Pipeline, settings: ClusterSettings) -> list[Object]:
    """Return the disruption budgets, and whatever else the settings ask for."""
    objects = [
        _disruption_budget(pipeline, models_name(pipeline.name, task.name), MODEL, task.name, settings)
        for task in pipeline.tasks
    ]
    if settings.gateways > 1:  # the only one must not keep a node from being drained
        objects.append(_disruption_budget(pipeline, gateway_name(pipeline.name), GATEWAY, "", settings))
    if settings.admission:
        objects += admission_objects(pipeline, settings)
    if settings.network_policy:
        objects += _network_policies(pipeline, settings)
    if settings.istio_gateway:
        objects += [_virtual_service(pipeline, settings), _destination_rule(pipeline, settings)]
    if settings.pod_monitor:
        objects.append(_pod_monitor(pipeline, settings))
    if settings.alerts:
        objects.append(alert_rules(pipeline, settings))
    if settings.dashboard:
        objects.append(dashboard_config(pipeline.name, settings.namespace))
    return objects


def _disruption_budget(pipeline: Pipeline, name: str, component: str, task: str, settings: ClusterSettings) -> Object:
    """Let a node drain evict the pods of a component one by one."""
    spec = {"maxUnavailable": 1, "selector": pod_selector(pipeline.name, component, task)}
    its_labels = labels(pipeline.name, component, task)
    return manifest("policy/v1", "PodDisruptionBudget", name, its_labels, settings.namespace, spec=spec)


# --------------------------------------------------------------------------------------------------- network


def _network_policies(pipeline: Pipeline, settings: ClusterSettings) -> list[Object]:
    """Let everybody reach the gateways, these the replicas and the API server, and monitoring all pods."""
    name, grpc = pipeline.name, [settings.grpc_port]
    gateways = {"podSelector": pod_selector(name, GATEWAY)}
    models = [{"podSelector": pod_selector(name, MODEL)}]
    ingress = [_allow("from", [settings.http_port, settings.grpc_port])]
    egress = [_allow("to", grpc, models), _allow("to", settings.api_server_ports)]
    policies = [_network_policy(name, GATEWAY, "", settings, ingress, egress)]
    for task in (each.name for each in pipeline.tasks):
        ingress, egress = [_allow("from", grpc, [gateways])], [_allow("to", settings.store_ports)]
        policies.append(_network_policy(name, MODEL, task, settings, ingress, egress))
    if settings.prefetch:
        policies.append(_network_policy(name, PREFETCH, "", settings, [], [_allow("to", settings.store_ports)]))
    return policies


def _network_policy(
    pipeline: str, component: str, task: str, settings: ClusterSettings, ingress: list[Any], egress: list[Any]
) -> Object:
    """Return a policy that also allows scraping metrics and resolving names."""
    names = {
        GATEWAY: gateway_name(pipeline),
        MODEL: models_name(pipeline, task),
        PREFETCH: prefetch_name(pipeline),
    }
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.monitoring_namespace}}}
    dns = {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}
    spec = {
        "podSelector": pod_selector(pipeline, component, task),
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [*ingress, _allow("from", [settings.metrics_port], [monitoring])],
        "egress": [*egress, dns],
    }
    its_labels = labels(pipeline, component, task)
    return manifest(
        "networking.k8s.io/v1", "NetworkPolicy", names[component], its_labels, settings.namespace, spec=spec
    )


def _allow(direction: str, ports: Sequence[int], peers: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return a rule for TCP ports, open to everybody if there are no peers."""
    rule: dict[str, Any] = {"ports": [{"protocol": "TCP", "port": port} for port in ports]}
    return {direction: list(peers), **rule} if peers else rule


# ----------------------------------------------------------------------------------------------------- Istio


def _virtual_service(pipeline: Pipeline, settings: ClusterSettings) -> Object:
    """Send requests for this pipeline from Istio's gateway to ours; Istio does not retry, ours does."""
    paths = {GRPC_SERVICE: settings.grpc_port, f"/v2/models/{pipeline.name}/": settings.http_port}
    routes = [
        {
            "match": [{"uri": {"prefix": prefix}}],
            "route": [{"destination": {"host": gateway_name(pipeline.name), "port": {"number": port}}}],
            "timeout": f"{settings.stage.request_seconds:g}s",
            "retries": {"attempts": 0},
        }
        for prefix, port in paths.items()
    ]
    spec = {"hosts": [settings.istio_host], "gateways": [settings.istio_gateway], "http": routes}
    return _istio_object("VirtualService", pipeline.name, spec, settings)


def _destination_rule(pipeline: Pipeline, settings: ClusterSettings) -> Object:
    policy = {"connectionPool": {"tcp": {"connectTimeout": "2s"}}, "loadBalancer": {"simple": "LEAST_REQUEST"}}
    spec = {"host": gateway_name(pipeline.name), "trafficPolicy": policy}
    return _istio_object("DestinationRule", pipeline.name, spec, settings)


def _istio_object(kind: str, pipeline: str, spec: dict[str, Any], settings: ClusterSettings) -> Object:
    name, its_labels = gateway_name(pipeline), labels(pipeline, GATEWAY)
    return manifest("networking.istio.io/v1", kind, name, its_labels, settings.namespace, spec=spec)


# ------------------------------------------------------------------------------------------------ monitoring


def _pod_monitor(pipeline: Pipeline, settings: ClusterSettings) -> Object:
    """Scrape every pod of the pipeline as often as the control loop counts requests."""
    endpoint = {
        "port": METRICS,
        "interval": f"{1000 * SCRAPE_SECONDS:g}ms",
        "scrapeTimeout": f"{1000 * SCRAPE_TIMEOUT:g}ms",
    }
    its_labels = {**settings.monitoring_labels, **labels(pipeline.name)}
    spec = {"selector": pod_selector(pipeline.name), "podMetricsEndpoints": [endpoint]}
    return manifest("monitoring.coreos.com/v1", "PodMonitor", pipeline.name, its_labels, settings.namespace, spec=spec)
