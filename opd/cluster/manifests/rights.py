"""Rights in the namespace: of the gateways, which only look, and of the controller, which only scales."""

from __future__ import annotations

from typing import Any

from opd.cluster.names import CONTROLLER, GATEWAY, gateway_name, labels, lease_name, model_name, stage_name
from opd.cluster.resources import SELDON_DEPLOYMENT, Object, manifest
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline

RBAC = "rbac.authorization.k8s.io"


def gateway_account(pipeline: Pipeline, settings: ClusterSettings) -> list[Object]:
    """Return the account of the gateways, which may only look at pods and at the configuration of the stages."""
    name = gateway_name(pipeline.name)
    account = manifest(
        "v1",
        "ServiceAccount",
        name,
        labels(pipeline.name, GATEWAY),
        settings.namespace,
        automountServiceAccountToken=False,
    )
    rules = [_rule("", ["configmaps", "pods"], ["get", "list", "watch"])]
    return [account, *_granted(name, labels(pipeline.name, GATEWAY), rules, name, settings)]


def controller_rights(pipeline: Pipeline, settings: ClusterSettings) -> list[Object]:
    """Return the rights of the controller, whose account is deployed with it.

    It sets the replicas of the variants and the content of the stages' ConfigMaps, and renews its Lease; apart from
    Events, it creates and deletes nothing. Where one of these has a name, the right holds for that name only.
    """
    variants = [model_name(pipeline.name, t.name, each.name) for t in pipeline.tasks for each in t.variants]
    stages = [stage_name(pipeline.name, task.name) for task in pipeline.tasks]
    is_seldon = settings.flavour == "seldon"
    group, kind = (SELDON_DEPLOYMENT.group, SELDON_DEPLOYMENT.plural) if is_seldon else ("apps", "deployments")
    rules = [
        _rule(group, [kind], ["list"]),
        _rule(group, [f"{kind}/scale"], ["patch"], variants),
        _rule("", ["configmaps"], ["get", "patch"], stages),
        _rule("", ["pods"], ["list"]),
        _rule("", ["pods/proxy"], ["get"]),  # every gateway tells which variant it uses
        _rule("apps", ["deployments"], ["get"], [gateway_name(pipeline.name)]),  # Events are about it
        _rule("", ["events"], ["create"]),
        _rule("coordination.k8s.io", ["leases"], ["get", "update"], [lease_name(pipeline.name)]),
    ]
    return _granted(
        lease_name(pipeline.name), labels(pipeline.name, CONTROLLER), rules, settings.controller_account, settings
    )


def _granted(
    name: str, its_labels: dict[str, str], rules: list[Object], account: str, settings: ClusterSettings
) -> list[Object]:
    """Return a Role and what binds it to an account."""
    subject = {"kind": "ServiceAccount", "name": account, "namespace": settings.namespace}
    role = {"apiGroup": RBAC, "kind": "Role", "name": name}
    return [
        manifest(f"{RBAC}/v1", "Role", name, its_labels, settings.namespace, rules=rules),
        manifest(f"{RBAC}/v1", "RoleBinding", name, its_labels, settings.namespace, subjects=[subject], roleRef=role),
    ]


def _rule(group: str, resources: list[str], verbs: list[str], names: list[str] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"apiGroups": [group], "resources": resources, "verbs": verbs}
    return {**rule, "resourceNames": names} if names else rule
