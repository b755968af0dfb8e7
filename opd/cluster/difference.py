"""What changes between two states of an object, for people to read."""

from __future__ import annotations

from difflib import unified_diff

import yaml

from opd.cluster.api import Object

_UNSHOWN = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


def difference(before: Object, after: Object) -> str:
    """A unified diff of YAML, without what the cluster keeps for itself; an empty state is none."""
    named = after or before
    name = f"{named['kind']}/{named['metadata']['name']}"
    old, new = (_shown(each).splitlines(keepends=True) for each in (before, after))
    return "".join(unified_diff(old, new, f"{name} now", f"{name} then"))


def _shown(given: Object) -> str:
    if not given:
        return ""
    metadata = {name: value for name, value in given["metadata"].items() if name not in _UNSHOWN}
    kept = {name: value for name, value in given.items() if name != "status"}
    return yaml.safe_dump({**kept, "metadata": metadata}, sort_keys=True)
