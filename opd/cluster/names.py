"""Names and labels of the objects of a pipeline, shared by those who make objects and those who look for them.

Every name is a DNS label. Labels follow the recommended scheme of Kubernetes; two of our own name the task and variant
of an object.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from pydantic import AfterValidator

from opd.pipeline import Pipeline
from opd.profiling.pipeline_file import PipelineFile

GATEWAY, MODEL = COMPONENTS = ("gateway", "model")
"""Component labels of a pipeline's pods."""

PREFETCH = "prefetch"
"""Component label of the DaemonSet that has images and models on the nodes before replicas start."""

STAGE = "stage"
"""Component label of the ConfigMaps that hold the configuration of stages."""

STAGE_VARIANT, STAGE_BATCH_SIZE = "variant", "batch_size"
"""Keys of a stage's ConfigMap."""

CONTROLLER = "controller"
"""Component label of the controller's objects."""

NAME_LABEL = "app.kubernetes.io/name"
INSTANCE_LABEL = "app.kubernetes.io/instance"
COMPONENT_LABEL = "app.kubernetes.io/component"
PART_OF_LABEL = "app.kubernetes.io/part-of"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
TASK_LABEL = "opd.io/task"
VARIANT_LABEL = "opd.io/variant"
NAMESPACE_LABEL = "opd.io/namespace"
"""Label of objects that belong to no namespace: that of their pipeline."""

OWNED_PREFIXES = ("app.kubernetes.io/", "opd.io/")
"""Prefixes of labels and annotations that are reserved for us."""

APPLICATION = "opd"
"""Value of the labels that are the same for all objects."""

DEPLOY_MANAGER, CONTROLLER_MANAGER = "opd-deploy", "opd-controller"
"""Who sets fields of objects, as the cluster records it: the deployment, and whoever changes what a pipeline runs."""

CONTAINER = "server"
"""Name of our container in every pod."""

MAX_LABEL = 63

DNS_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?")


class BadNameError(ValueError):
    """A name is not a DNS label, or two objects would share it."""


def check_name(what: str, name: str) -> str:
    """Return ``name`` after checking that it is a DNS label.

    Args:
        what: the kind of thing that has the name, for people.
        name: to check.

    Raises:
        BadNameError: if it is not one.
    """
    if not re.fullmatch(DNS_LABEL, name):
        raise BadNameError(
            f"{what} {quoted(name)} is not a DNS label: use at most {MAX_LABEL} lower-case letters, digits and '-', "
            "with a letter or digit at both ends"
        )
    return name


def check_key(key: str) -> str:
    """Return the key of a label or annotation, after checking that it is well-formed and not one of ours.

    Raises:
        BadNameError: naming the key.
    """
    if not _KEY.fullmatch(key):
        raise BadNameError(f"{quoted(key)} is not a valid key; give something like example.com/team")
    if key.startswith(OWNED_PREFIXES):
        raise BadNameError(f"{quoted(key)} belongs to {APPLICATION}, which finds its objects by it")
    return key


def check_label_value(value: str) -> str:
    """Return the value of a label, after checking that it is well-formed.

    Raises:
        BadNameError: naming the value.
    """
    if not _VALUE.fullmatch(value):
        raise BadNameError(f"{quoted(value)} cannot be the value of a label: use letters, digits, '-._'")
    return value


DnsLabel = Annotated[str, AfterValidator(partial(check_name, "name"))]
LabelKey = Annotated[str, AfterValidator(check_key)]
LabelValue = Annotated[str, AfterValidator(check_label_value)]
"""Types of fields in settings and overlays."""


def quoted(text: object) -> str:
    """Return a name or value in quotes for an error message, shortened if it is long."""
    return repr(text) if len(str(text)) <= 2 * MAX_LABEL else f"{str(text)[:MAX_LABEL]!r}..."


def gateway_name(pipeline: str) -> str:
    """Return the name of the gateways' Deployment, Service, settings, account, and of its Role and RoleBinding."""
    return f"{pipeline}-gateway"


def stage_name(pipeline: str, task: str) -> str:
    """Return the name of the ConfigMap that holds the configuration of a stage."""
    return f"{pipeline}-{task}-stage"


def lease_name(pipeline: str) -> str:
    """Return the name of the Lease that the active controller of a pipeline holds, and of its Role and RoleBinding."""
    return f"{pipeline}-controller"


def prefetch_name(pipeline: str) -> str:
    """Return the name of the DaemonSet that has images and models on the nodes."""
    return f"{pipeline}-prefetch"


def policy_name(pipeline: str, namespace: str) -> str:
    """Return the name of the admission policy of a pipeline, which is unique in the cluster: labels have no dots."""
    return f"{pipeline}.{namespace}.opd.io"


def model_name(pipeline: str, task: str, variant: str) -> str:
    """Return the name of a variant's workload and settings."""
    return f"{pipeline}-{task}-{variant}"


def models_name(pipeline: str, task: str) -> str:
    """Return the name of objects that concern all replicas of a task, whatever their variant."""
    return f"{pipeline}-{task}-models"


def service_host(name: str, namespace: str) -> str:
    """Return the DNS name of a Service, which holds for any cluster domain."""
    return f"{name}.{namespace}.svc"


def labels(pipeline: str, component: str = "", task: str = "", variant: str = "") -> dict[str, str]:
    """Return all labels of an object; empty parts are left out."""
    every = {
        NAME_LABEL: APPLICATION,
        INSTANCE_LABEL: pipeline,
        COMPONENT_LABEL: component,
        PART_OF_LABEL: APPLICATION,
        MANAGED_BY_LABEL: APPLICATION,
        TASK_LABEL: task,
        VARIANT_LABEL: variant,
    }
    return {key: value for key, value in every.items() if value}


def match_labels(of: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that identify an object, for selectors; an operator may change the others."""
    return {key: value for key, value in of.items() if key not in (PART_OF_LABEL, MANAGED_BY_LABEL)}


def selector(pipeline: str, component: str = "", task: str = "", variant: str = "") -> str:
    """Return a selector for list and watch calls; empty parts select everything."""
    wanted = match_labels(labels(pipeline, component, task, variant))
    return ",".join(f"{key}={value}" for key, value in wanted.items())


def pod_selector(pipeline: str, component: str = "", task: str = "") -> dict[str, dict[str, str]]:
    """Return a selector in manifests for the pods of a component and task; an empty part selects all."""
    return {"matchLabels": match_labels(labels(pipeline, component, task))}


def check_names(pipeline: Pipeline | PipelineFile) -> None:
    """Raise unless all objects of ``pipeline`` get valid and unique names.

    Raises:
        BadNameError: naming the pipeline, task, variant or object.
    """
    check_name("pipeline", pipeline.name)
    if not pipeline.name[0].isalpha():
        raise BadNameError(f"pipeline {pipeline.name!r} must begin with a letter, as names of Services do")
    names = [gateway_name(pipeline.name)]
    for task in pipeline.tasks:
        check_name("task", task.name)
        names += [of(pipeline.name, task.name) for of in (stage_name, models_name)]
        for variant in task.variants:
            check_name(f"variant of task {task.name!r}", variant.name)
            names.append(model_name(pipeline.name, task.name, variant.name))
    for name, count in Counter(names).items():
        check_name("object", name)
        if count > 1:
            raise BadNameError(
                f"{count} objects of pipeline {pipeline.name!r} would be called {name!r}; rename a task or variant"
            )
