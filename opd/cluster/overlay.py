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
merged key by key, lists of the fields in :data:`opd.cluster.pod_schema.MERGE_KEYS` element by element, and every other
list is replaced; null removes a field. A volume or environment variable replaces the one of its name. An overlay is
checked when it is read: nothing reaches the cluster that does not belong in a pod or that touches labels of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from opd.cluster.names import LabelKey, LabelValue
from opd.cluster.pod_schema import MERGE_KEYS, PodSpecPatch
from opd.host.documents import DocumentModel, read_as

ALL = "all"

_REPLACED = ("env", "volumes")
"""Lists in which an element has one source or another, never a mixture."""


class OverlayError(ValueError):
    """An overlay and a pod template do not make a pod."""


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
    router: TemplatePatch = TemplatePatch()
    queue: TemplatePatch = TemplatePatch()
    model: TemplatePatch = TemplatePatch()

    @property
    def sections(self) -> dict[str, Any]:
        """The changes as they are written in a file; the caller's own copy."""
        return deepcopy(self.model_dump(exclude_unset=True))

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
        sections = self.sections
        merged: dict[str, Any] = deepcopy(dict(template))
        for name in (ALL, component):
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
