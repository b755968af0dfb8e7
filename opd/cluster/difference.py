"""The change of an object: its state before and after, what became of it, and the difference for people to read."""

from __future__ import annotations

from difflib import unified_diff
from typing import NamedTuple

import yaml

from opd.cluster.resources import Object

_KEPT_BY_CLUSTER = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


class ObjectChange(NamedTuple):
    """An object before and after; empty before it was created and after it was deleted."""

    before: Object
    after: Object

    @property
    def outcome(self) -> str:
        """``created``, ``changed``, ``unchanged`` or ``deleted``."""
        if not self.before:
            return "created"
        if not self.after:
            return "deleted"
        versions = {each["metadata"].get("resourceVersion") for each in self}
        return "unchanged" if len(versions) == 1 else "changed"

    def difference(self) -> str:
        """Return a unified diff of YAML, without fields that the cluster maintains."""
        named = self.after or self.before
        name = f"{named['kind']}/{named['metadata']['name']}"
        old, new = (_as_yaml(each).splitlines(keepends=True) for each in self)
        return "".join(unified_diff(old, new, f"{name} now", f"{name} then"))


def _as_yaml(given: Object) -> str:
    if not given:
        return ""
    metadata = {name: value for name, value in given["metadata"].items() if name not in _KEPT_BY_CLUSTER}
    shown = {name: value for name, value in given.items() if name != "status"}
    return yaml.safe_dump({**shown, "metadata": metadata}, sort_keys=True)
