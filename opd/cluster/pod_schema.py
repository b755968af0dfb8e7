"""Models of partial pods, built from the fields and types that the Kubernetes client knows.

The API server has the last word; these models find a misspelt field, or text in place of a number, before it is asked.
The client's own models do not serve here: they insist on complete objects, and accept field names in snake case.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache, partial
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, create_model, model_validator

from opd.cluster.names import check_name
from opd.host.documents import DocumentModel

MERGE_KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists of a pod and the field that identifies their elements, as Kubernetes merges them."""

_NAMED_BY_DNS_LABEL = ("containers", "initContainers", "volumes")

_QUANTITIES = ("limits", "requests", "overhead", "sizeLimit")
"""Fields that are text for the client, although people may write numbers."""

_LIST = re.compile(r"[Ll]ist\[(.*)\]")
_MAPPING = re.compile(r"[Dd]ict[\[(]str, (.*)[\])]")


def check_pod_spec(spec: Any) -> Any:
    """Return a partial pod specification after checking that all fields exist and have the right type, or are null.

    Raises:
        ValueError: if it removes the containers of the pod.
        ValidationError: listing the places that are wrong.
    """
    if spec is None or (isinstance(spec, Mapping) and spec.get("containers", ()) is None):
        raise ValueError("must not remove our containers")
    _model("V1PodSpec").model_validate(spec)
    return spec


PodSpecPatch = Annotated[dict[str, Any], BeforeValidator(check_pod_spec)]
"""A partial pod specification, with the errors of its parts."""


class _PodPart(DocumentModel):
    """Base of the models; an error about an unknown field names the known ones."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, part: Any) -> Any:
        for name in part if isinstance(part, Mapping) else ():
            if name not in cls.model_fields:
                shown = repr(name) if len(str(name)) < 80 else f"{str(name)[:80]!r}..."
                raise ValueError(f"unknown field {shown}; known are {', '.join(sorted(cls.model_fields))}")
        return part


@cache
def _model(kind: str) -> type[_PodPart]:
    """Build the model of one kind of the client, with all fields optional."""
    from kubernetes.client import models  # takes seconds, and most pods are not patched

    described = getattr(models, kind)
    fields: dict[str, Any] = {
        described.attribute_map[attribute]: (_type(described.attribute_map[attribute], its_type) | None, None)
        for attribute, its_type in described.openapi_types.items()
    }
    return create_model(kind, __base__=_PodPart, **fields)


def _type(field: str, described: str) -> Any:
    if listed := _LIST.fullmatch(described):
        elements: Any = list[_type("", listed[1])]  # type: ignore[misc]
        return Annotated[elements, AfterValidator(partial(_check_elements, field))] if field in MERGE_KEYS else elements
    if mapped := _MAPPING.fullmatch(described):
        return dict[str, _type(field, mapped[1]) | None]  # type: ignore[misc]
    if field in _QUANTITIES:
        return Annotated[Any, AfterValidator(_check_number_or_text)]
    plain = {"str": str, "datetime": str, "int": int, "float": float, "bool": bool}
    if described in plain:
        return plain[described]
    if described == "object":  # a port or a share
        return Annotated[Any, AfterValidator(_check_number_or_text)]
    return _model(described)


def _check_elements(field: str, elements: list[_PodPart]) -> list[_PodPart]:
    """Return the elements of a merged list after checking that each has an identity of its own."""
    key = MERGE_KEYS[field]
    names = [getattr(element, key) for element in elements]
    for name, count in Counter(names).items():
        if name is None or count > 1:
            raise ValueError(f"each needs a {key} of its own, but there is {name!r}")
    for name in names if field in _NAMED_BY_DNS_LABEL else ():
        check_name(key, name)
    return elements


def _check_number_or_text(value: Any) -> Any:
    finite = not isinstance(value, float) or math.isfinite(value)
    if not isinstance(value, int | float | str | None) or isinstance(value, bool) or not finite:
        shown = value if isinstance(value, float | bool) else type(value).__name__
        raise ValueError(f"must be a finite number or text, not {shown}")
    return value
