"""Admission checks by the API server itself: a ValidatingAdmissionPolicy in CEL, and what binds it to the namespace.

They refuse what no configuration of the pipeline can have: more replicas of a variant than there can be, and a variant
or batch size that a stage does not have. The API server sees one object at a time, so the sum of cores over all
variants is not for a policy to check. What is there already may stay, so that objects with values from before a change
of the pipeline can still be labelled or finalised.

Everybody is checked but ``opd deploy``: it checks the whole configuration itself, and brings the limits of a changed
pipeline together with it, before the API server knows them.
"""

from __future__ import annotations

import json
from typing import Any

from opd.cluster.names import (
    DEPLOY_MANAGER,
    NAMESPACE_LABEL,
    STAGE_BATCH_SIZE,
    STAGE_VARIANT,
    labels,
    model_name,
    policy_name,
    stage_name,
)
from opd.cluster.resources import (
    ADMISSION_BINDING,
    ADMISSION_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    SELDON_DEPLOYMENT,
    Object,
    Resource,
    manifest,
)
from opd.cluster.settings import ClusterSettings
from opd.pipeline import Pipeline, Task, Variant

_NOT_BY_DEPLOY = (
    "!(has(request.options) && request.options != null && has(request.options.fieldManager) && "
    f"request.options.fieldManager == '{DEPLOY_MANAGER}')"
)


def admission_objects(pipeline: Pipeline, settings: ClusterSettings) -> list[Object]:
    """Return the policy of a pipeline and its binding; both belong to no namespace, and their names say to whom."""
    name = policy_name(pipeline.name, settings.namespace)
    its_labels = {**labels(pipeline.name), NAMESPACE_LABEL: settings.namespace}
    binding = {"policyName": name, "validationActions": ["Deny"]}
    return [
        manifest(*ADMISSION_POLICY[:2], name, its_labels, "", spec=_policy(pipeline, settings)),
        manifest(*ADMISSION_BINDING[:2], name, its_labels, "", spec=binding),
    ]


def most_replicas(pipeline: Pipeline, task: Task, variant: Variant) -> int:
    """Return the largest number of replicas that a variant has in any feasible configuration, 0 if it is in none.

    Every other stage has at least one replica of its smallest variant (Eq. 4).
    """
    others = sum(min(each.cores for each in other.variants) for other in pipeline.tasks if other is not task)
    return min(pipeline.max_replicas, (pipeline.capacity - others) // variant.cores)


def _policy(pipeline: Pipeline, settings: ClusterSettings) -> dict[str, Any]:
    replicas = {
        model_name(pipeline.name, task.name, variant.name): most_replicas(pipeline, task, variant)
        for task in pipeline.tasks
        for variant in task.variants
    }
    variants = {stage_name(pipeline.name, t.name): [each.name for each in t.variants] for t in pipeline.tasks}
    workload = SELDON_DEPLOYMENT if settings.flavour == "seldon" else DEPLOYMENT
    here = {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}}
    rules = [
        _rule(workload, [workload.plural, f"{workload.plural}/scale"], list(replicas)),
        _rule(CONFIG_MAP, [CONFIG_MAP.plural], list(variants)),
    ]
    variables = {
        "stage": f"request.resource.resource == '{CONFIG_MAP.plural}'",
        "old": "request.operation == 'UPDATE' ? oldObject : {}",
        **_values("replicas", "spec.replicas", "0"),
        **_values("variant", f"data.{STAGE_VARIANT}", "''"),
        **_values("size", f"data.{STAGE_BATCH_SIZE}", "''"),
        "limit": f"variables.stage ? 0 : {json.dumps(replicas)}[request.name]",
        "variants": f"variables.stage ? {json.dumps(variants)}[request.name] : []",
        "sizes": json.dumps([str(size) for size in pipeline.batch_sizes]),
    }
    return {
        "failurePolicy": "Fail",
        "matchConstraints": {"namespaceSelector": here, "resourceRules": rules},
        "matchConditions": [{"name": "not-by-opd-deploy", "expression": _NOT_BY_DEPLOY}],
        "variables": [{"name": name, "expression": expression} for name, expression in variables.items()],
        "validations": [
            _limit_of_replicas(pipeline),
            _one_of(STAGE_VARIANT, "variant", "variants"),
            _one_of(STAGE_BATCH_SIZE, "size", "sizes"),
        ],
    }


def _rule(resource: Resource, plurals: list[str], names: list[str]) -> dict[str, Any]:
    group, _, version = resource.api_version.rpartition("/")
    return {
        "apiGroups": [group],
        "apiVersions": [version],
        "operations": ["CREATE", "UPDATE"],
        "resources": plurals,
        "resourceNames": names,
    }


def _values(name: str, path: str, missing: str) -> dict[str, str]:
    """Variables with a field as it is asked for, and as it was before (``old_``), null if it was not there."""
    part = path.partition(".")[0]

    def value(of: str, otherwise: str) -> str:
        return f"has({of}.{part}) && has({of}.{path}) ? {of}.{path} : {otherwise}"

    return {name: value("object", missing), f"old_{name}": value("variables.old", "null")}


def _limit_of_replicas(pipeline: Pipeline) -> dict[str, str]:
    reason = f"max_replicas is {pipeline.max_replicas}, and {pipeline.capacity} cores must hold every other stage, too"
    words = (
        f"'pipeline {pipeline.name} allows at most ' + string(variables.limit) + ' replicas of ' + request.name + "
        f"', not ' + string(variables.replicas) + ': {reason}'"
    )
    allowed = "variables.stage || variables.replicas == variables.old_replicas || variables.replicas <= variables.limit"
    return {"expression": allowed, "messageExpression": words}


def _one_of(field: str, asked: str, allowed: str) -> dict[str, str]:
    """A validation of a field in the ConfigMaps of the stages, by the names of two variables."""
    asked, old, allowed = f"variables.{asked}", f"variables.old_{asked}", f"variables.{allowed}"
    words = f"'{field} of ' + request.name + ' must be one of ' + {allowed}.join(', ') + ', not ' + {asked}"
    return {"expression": f"!variables.stage || {asked} == {old} || {asked} in {allowed}", "messageExpression": words}
