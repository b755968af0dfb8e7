"""What a user changes of the pods, from a YAML file, without touching code.

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

A section is merged into the template of every pod of its component, ``all`` into each, before the component's own.
Mappings are merged key by key, lists of the fields in :data:`MERGE_KEYS` element by element, every other list is
replaced; null takes a field away. A volume or environment variable replaces the one of its name. Everything is checked
when the overlay is made: nothing reaches a cluster that is no pod, or that touches what is not the user's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opd.cluster.names import COMPONENTS, check_keys, check_labels, check_name
from opd.cluster.pod_schema import SchemaError, check_pod_spec
from opd.documents import read_document

ALL = "all"
SECTIONS = (ALL, *COMPONENTS)

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
"""Lists of a pod whose elements are told apart by a field of theirs, as Kubernetes does it."""

_REPLACED = ("env", "volumes")
"""Of these, an element means one thing or another, never a mixture."""

_DNS_LABELLED = ("containers", "initContainers", "volumes")


class OverlayError(ValueError):
    """An overlay is malformed, or changes what is not the user's."""


@dataclass(frozen=True)
class Overlay:
    """A checked overlay; without sections it changes nothing.

    Attributes:
        sections: by component or ``all``, a patch of the pod template: ``metadata`` and ``spec``.

    Raises:
        OverlayError: naming the place and what is wrong with it.
        BadNameError: if a container or volume is not named by a DNS label, or a label or annotation is not the user's.
    """

    sections: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_keys(self.sections, SECTIONS, "the overlay")
        for name, section in self.sections.items():
            _require_keys(section, ("metadata", "spec"), name)
            if "metadata" in section:
                _check_metadata(section["metadata"], f"{name}.metadata")
            if "spec" in section:
                _check_spec(section["spec"], f"{name}.spec")

    def apply(self, component: str, template: Mapping[str, Any]) -> dict[str, Any]:
        """A pod template with the user's changes.

        Args:
            component: of the pod.
            template: its ``metadata`` and ``spec``; left as it is.

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
        """What the overlay alone says of a component's pods, such as their ``tolerations`` and ``nodeSelector``."""
        return dict(self._merged({}, component).get("spec", {}))

    def _merged(self, template: Mapping[str, Any], component: str) -> dict[str, Any]:
        merged: dict[str, Any] = deepcopy(dict(template))
        for name in (ALL, component):
            merged = _merge(merged, self.sections.get(name, {}))
        return merged


def read_overlay(path: Path) -> Overlay:
    """The overlay in a YAML file; an empty one changes nothing.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is no plain YAML document, or too large a one.
        OverlayError: if it is no overlay.
        BadNameError: if a container or volume is not named by a DNS label, or a label or annotation is not the user's.
    """
    content = read_document(path)
    return Overlay({} if content is None else content)


# ------------------------------------------------------------------------------------------------- checking


def _require_keys(value: Any, known: Sequence[str], place: str) -> None:
    if not isinstance(value, Mapping):
        raise OverlayError(f"{place} must be a mapping of {', '.join(known)}, not {type(value).__name__}")
    for key in value:
        if key not in known:
            raise OverlayError(f"{place} may not set {key!r}, only {', '.join(known)}")


def _check_metadata(metadata: Any, place: str) -> None:
    _require_keys(metadata, ("labels", "annotations"), place)
    check_labels(f"{place}.labels", metadata.get("labels", {}))
    check_keys(f"{place}.annotations", metadata.get("annotations", {}))


def _check_spec(spec: Any, place: str) -> None:
    if spec is None or (isinstance(spec, Mapping) and spec.get("containers", ()) is None):
        raise OverlayError(f"{place} may not take our containers away")
    try:
        check_pod_spec(spec, place)
    except SchemaError as error:
        raise OverlayError(str(error)) from error
    _check_lists(spec, place)


def _check_lists(value: Any, place: str) -> None:
    """Every element of a list that is merged says which one it is, once."""
    listed: dict[Any, Any] = dict(enumerate(value)) if isinstance(value, list) else {}
    for key, child in (value if isinstance(value, Mapping) else listed).items():
        here = f"{place}.{key}"
        if key in MERGE_KEYS and isinstance(child, list):
            names = [element.get(MERGE_KEYS[key]) for element in child]
            for name, count in Counter(names).items():
                if name is None or count > 1:
                    raise OverlayError(f"{here}: each needs a {MERGE_KEYS[key]} of its own, but there is {name!r}")
            for name in names if key in _DNS_LABELLED else ():
                check_name(here, name)
        _check_lists(child, here)


# -------------------------------------------------------------------------------------------------- merging


def _merge(base: Any, patch: Any, key: str = "") -> Any:
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        merged = {name: value for name, value in base.items() if patch.get(name, "") is not None}
        for name, value in patch.items():
            if value is not None:
                merged[name] = _merge(merged.get(name), value, name)
        return merged
    if isinstance(patch, Mapping):
        return _merge({}, patch)
    if key in MERGE_KEYS and isinstance(patch, list):
        return _merge_list(base or [], patch, key)
    return deepcopy(patch)


def _merge_list(base: Sequence[Any], patch: Sequence[Any], key: str) -> list[Any]:
    by = MERGE_KEYS[key]
    patches = {element[by]: element for element in patch}
    merged = []
    for element in base:
        change = patches.pop(element[by], {})
        merged.append(_merge({} if change and key in _REPLACED else element, change))
    return merged + [_merge({}, element) for element in patches.values()]
