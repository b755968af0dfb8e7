"""Only one controller acts: it holds a Lease and renews it.

Clocks of machines differ, so times that others wrote are never compared with ours: a Lease has run out when we have
watched it for its duration, on our own clock, and it did not change. Our own hold counts from before we asked for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from opd.cluster.api import LEASE, Cluster, Object, Patience
from opd.cluster.errors import ClusterError, ConflictError, NotFoundError
from opd.cluster.names import CONTROLLER, labels, lease_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    """How long a Lease holds.

    Attributes:
        duration: seconds after which others may take a Lease that is not renewed.
        renewal: seconds after which we no longer act if it could not be renewed; the rest of ``duration`` is what a
            call that was begun in time may take.
        retry: seconds between two attempts to take or renew it.

    Raises:
        ValueError: unless ``retry < renewal < duration``.
    """

    duration: float = 15.0
    renewal: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.retry < self.renewal < self.duration:
            raise ValueError(
                f"a Lease needs 0 < retry < renewal < duration, not {self.retry}, {self.renewal}, {self.duration} s"
            )

    @property
    def patience(self) -> Patience:
        """One attempt, which ends while the Lease still holds; the next one is made at the next turn."""
        seconds = (self.duration - self.renewal) / 2
        return Patience(connect_seconds=seconds, read_seconds=seconds, attempts=1)


class Lease:
    """Takes the Lease when it is free and keeps it, in a thread of its own, until it is closed.

    Args:
        cluster: namespace of the Lease, which is asked with the patience of ``times``.
        pipeline: whose controller it is for.
        holder: who we are, different for every process.
        times: how long it holds.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipeline: str,
        holder: str,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.holder = lease_name(pipeline), holder
        self._labels = labels(pipeline, CONTROLLER)
        self._times, self._clock = times or LeaseTimes(), clock
        self._cluster = cluster.with_patience(self._times.patience)
        self._until = float("-inf")
        self._seen: tuple[Any, float] = (None, 0.0)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="lease")

    def start(self) -> None:
        """Begin to ask for it."""
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether we may act now."""
        return self._clock() < self._until

    def close(self) -> None:
        """Give it back, so that another one need not wait until it runs out."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(self._times.duration)
        held, self._until = self.held, float("-inf")
        if held:
            try:
                self._cluster.modify(LEASE, self.name, self._give_back)
            except ClusterError as error:
                logger.warning("the lease was not given back and runs out: %s", error)

    def attempt(self) -> bool:
        """Take or renew it once; says whether we hold it.

        Raises:
            ClusterError: if the cluster does not answer.
        """
        begin = self._clock()
        try:
            found = self._cluster.get(LEASE, self.name)
        except NotFoundError:
            return self._ask(begin, lambda: self._cluster.create(self._lease({}, {})))
        spec = found.get("spec") or {}
        if spec.get("holderIdentity") not in ("", None, self.holder) and not self._ran_out(found):
            self._until = float("-inf")
            return False
        return self._ask(begin, lambda: self._cluster.replace(self._lease(found["metadata"], spec)))

    def _ask(self, begin: float, write: Callable[[], object]) -> bool:
        try:
            write()
        except ConflictError:  # another one was faster
            return False
        self._until = begin + self._times.renewal
        return True

    def _ran_out(self, found: Object) -> bool:
        """Whether a foreign Lease did not change while we watched it for its duration."""
        version, now = found["metadata"]["resourceVersion"], self._clock()
        if version != self._seen[0]:
            self._seen = (version, now)
        duration = float((found.get("spec") or {}).get("leaseDurationSeconds") or self._times.duration)
        return now - self._seen[1] > duration

    def _lease(self, metadata: Object, spec: Object) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = spec.get("holderIdentity") == self.holder
        wanted = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": max(round(self._times.duration), 1),
            "renewTime": now,
            "acquireTime": spec.get("acquireTime", now) if ours else now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if ours or not spec else 1),
        }
        return {
            **LEASE.type_fields,
            "metadata": {**metadata, "name": self.name, "labels": {**(metadata.get("labels") or {}), **self._labels}},
            "spec": {**spec, **wanted},
        }

    def _give_back(self, found: Object) -> None:
        if found["spec"].get("holderIdentity") == self.holder:
            found["spec"]["holderIdentity"] = ""

    def _run(self) -> None:
        leading = False
        while not self._closing.is_set():
            try:
                self.attempt()
            except ClusterError as error:
                logger.warning("the lease %s cannot be seen now: %s", self.name, error)
            if self.held != leading:
                leading = not leading
                logger.info("%s %s the lease %s", self.holder, "holds" if leading else "does not hold", self.name)
            self._closing.wait(self._times.retry)
