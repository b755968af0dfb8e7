"""Changes that a user makes to the pods in a YAML file, without touching code.

.. code-block:: yaml

    all:
      spec:
        imagePullSecrets: [{name: registry}]
    model:
      metadata: {annotations: {example.com/team: vision}}
      spec:
        nodeSelector: {kubernetes.io/arch: arm64}
        containers:
          - name: server  # ours; another name adds a container
            env: [{name: OMP_NUM_THREADS, value: "2"}]

Each section is merged into the pod template of its component; ``all`` is merged into every template first. Mappings are
merged key by key, lists of the fields in :data:`MERGE_KEYS` element by element, and every other
list is replaced; null removes a field. A volume or environment variable replaces the one of its name. An overlay is
checked when it is read: nothing reaches the cluster that does not belong in a pod or that touches labels of ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, create_model, model_validator

from opd.cluster.names import LabelKey, LabelValue, check_name, quoted
from opd.host.documents import DocumentModel, read_as

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

_REPLACED = ("env", "volumes")
"""Lists in which an element has one source or another, never a mixture."""


class OverlayError(ValueError):
    """An overlay and a pod template do not make a pod."""


def _check_pod_spec(spec: Any) -> Any:
    """Return a partial pod specification after checking that all fields exist and have the right type, or are null.

    Raises:
        ValueError: if it removes the containers of the pod.
        ValidationError: listing the places that are wrong.
    """
    if spec is None or (isinstance(spec, Mapping) and spec.get("containers", ()) is None):
        raise ValueError("must not remove our containers")
    _model("V1PodSpec").model_validate(spec)
    return spec


PodSpecPatch = Annotated[dict[str, Any], BeforeValidator(_check_pod_spec)]
"""A partial pod specification, with the errors of its parts."""


class MetadataPatch(DocumentModel):
    """Labels and annotations of the user's own."""

    labels: dict[LabelKey, LabelValue] = {}
    annotations: dict[LabelKey, str] = {}


class TemplatePatch(DocumentModel):
    """Changes to a pod template."""

    metadata: MetadataPatch = MetadataPatch()
    spec: PodSpecPatch = {}


class Overlay(DocumentModel):
    """Changes to all pods and to those of each component; without any it changes nothing."""

    all: TemplatePatch = TemplatePatch()
    gateway: TemplatePatch = TemplatePatch()
    model: TemplatePatch = TemplatePatch()

    @property
    def sections(self) -> dict[str, Any]:
        """The changes as they are written in a file; the caller's own copy."""
        return self.model_dump(exclude_unset=True)

    def apply(self, component: str, template: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of a pod template with the user's changes.

        Args:
            component: of the pod.
            template: its ``metadata`` and ``spec``.

        Raises:
            OverlayError: if a container has no image then.
        """
        merged = self._merged(template, component)
        for kind in ("containers", "initContainers"):
            for container in merged["spec"].get(kind, ()):
                if not container.get("image"):
                    raise OverlayError(f"{kind} of {component}: container {container['name']!r} needs an image")
        return merged

    def spec(self, component: str) -> dict[str, Any]:
        """Return the changes to the specification of a component's pods, such as ``tolerations``."""
        return dict(self._merged({}, component).get("spec", {}))

    def _merged(self, template: Mapping[str, Any], component: str) -> dict[str, Any]:
        sections, merged = self.sections, deepcopy(dict(template))
        for name in ("all", component):
            merged = _merge(merged, sections.get(name, {}))
        return merged


def read_overlay(path: Path) -> Overlay:
    """Read an overlay from a YAML file; an empty one changes nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is not plain YAML of a limited size, or not an overlay; it lists all problems.
    """
    return read_as(Overlay, path, defaults={})


def _merge(base: Any, patch: Any, key: str = "") -> Any:
    if isinstance(patch, Mapping):
        old = base if isinstance(base, Mapping) else {}
        kept = {name: value for name, value in old.items() if patch.get(name, "") is not None}
        return kept | {name: _merge(kept.get(name), new, name) for name, new in patch.items() if new is not None}
    return _merge_list(base or [], patch, key) if key in MERGE_KEYS and isinstance(patch, list) else patch


def _merge_list(base: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    by = MERGE_KEYS[key]
    patches = {element[by]: element for element in patch}
    merged = []
    for element in base:
        change = patches.pop(element[by], {})
        merged.append(_merge({} if change and key in _REPLACED else element, change))
    return merged + [_merge({}, element) for element in patches.values()]


# --------------------------------------------------------------------------------------------- fields of a pod


class _PodPart(DocumentModel):
    """Base of the models of partial pods, built from the fields and types that the Kubernetes client knows.

    The API server has the last word; these models find a misspelt field, or text in place of a number, before it is
    asked. The client's own models insist on complete objects, and accept field names in snake case.
    """

    model_config = ConfigDict(use_attribute_docstrings=False)  # there are none, and the search takes many seconds

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_fields(cls, part: Any) -> Any:
        for name in part if isinstance(part, Mapping) else ():
            if name not in cls.model_fields:
                raise ValueError(f"unknown field {quoted(name)}; known are {', '.join(sorted(cls.model_fields))}")
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
