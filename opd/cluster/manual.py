"""Changes by hand: what others set that we set, as the cluster records it, and for how long that is left alone.

The cluster notes who has set each field of an object (``metadata.managedFields``). A field is changed by hand while
others have set it and we have not: whoever sets a field to another value takes it from everybody who had set it before,
and whoever sets it to the value that it has shares it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from opd.cluster.names import CONTROLLER_MANAGER, DEPLOY_MANAGER, STAGE_BATCH_SIZE, STAGE_VARIANT
from opd.cluster.resources import CONFIG_MAP, Object
from opd.control.loop import ApplyError

_OURS = (DEPLOY_MANAGER, CONTROLLER_MANAGER)

_REPLICAS = (("spec", "replicas"),)
_STAGE = (("data", STAGE_VARIANT), ("data", STAGE_BATCH_SIZE))


class ManualChangeError(ApplyError):
    """Others have changed what the pipeline runs, and that is left alone for now."""


class ManualChange(NamedTuple):
    """A field that others have set.

    Attributes:
        where: kind and name of the object.
        field: that they have set.
        manager: who it was, such as ``kubectl``.
        when: they last changed the object, by the clock of the cluster.
    """

    where: str
    field: str
    manager: str
    when: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field} was set by {self.manager!r}"


def manual_changes(found: Object) -> list[ManualChange]:
    """Return the fields of a workload, or of the ConfigMap of a stage, that were changed by hand."""
    entries = found["metadata"].get("managedFields") or []
    changes = []
    for path in _STAGE if found["kind"] == CONFIG_MAP.kind else _REPLICAS:
        managers = {each["manager"]: each.get("time", "") for each in entries if _holds(each, path)}
        if managers and not managers.keys() & set(_OURS):
            manager = max(managers, key=lambda name: managers[name])
            where = f"{found['kind']} {found['metadata']['name']!r}"
            changes.append(ManualChange(where, ".".join(path), manager, managers[manager]))
    return changes


def _holds(entry: Mapping[str, Any], path: Iterable[str]) -> bool:
    fields = entry.get("fieldsV1") or {}
    for name in path:
        fields = fields.get(f"f:{name}")
        if fields is None:
            return False
    return True


class ManualChanges:
    """Leaves changes by hand alone for some time, which begins when they are seen: clocks of machines differ.

    Args:
        seconds: to leave a change alone.
        tell: receives reason and details of every change once.
        clock: monotonic seconds.
    """

    def __init__(
        self, seconds: float, tell: Callable[[str, str], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._tell, self._clock = seconds, tell, clock
        self._seen: dict[ManualChange, float] = {}

    def check(self, objects: Iterable[Object]) -> None:
        """Raise while a change is to be left alone; nothing is raised for those that were left alone long enough.

        Args:
            objects: everything that counts; a change that is no longer there is forgotten.

        Raises:
            ManualChangeError: naming the changes, and the time that is left.
        """
        now = self._clock()
        changes = [change for found in objects for change in manual_changes(found)]
        new = [change for change in changes if change not in self._seen]
        self._seen = {change: self._seen.get(change, now) for change in changes}
        words = "; ".join(map(str, new))
        if words:
            self._tell("ManualChange", f"{words}. What the pipeline runs is left alone for {self._seconds:g} s")
        left = max((since + self._seconds - now for since in self._seen.values()), default=0.0)
        if left > 0.0:
            raise ManualChangeError(
                f"changed by hand: {'; '.join(map(str, changes))}; left alone for another {left:.0f} s, or until the "
                "pipeline is deployed again"
            )
