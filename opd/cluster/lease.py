"""Leadership: only the controller that holds the Lease acts, and it renews the Lease.

The Lease itself is deployed with the pipeline. Clocks of machines differ, so times that others wrote are never compared
with the local clock: a foreign Lease has expired if it has not changed for its duration, as watched on the local clock.
Our own counts from before we asked.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

from opd.cluster.api import Cluster
from opd.cluster.connection import RetryPolicy
from opd.cluster.errors import ClusterError, ConflictError, LedByAnotherError, NotDeployedError, NotFoundError
from opd.cluster.names import lease_name
from opd.cluster.resources import LEASE, Object
from opd.host.waiting import wait_until

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LeaseTimes:
    """Times of a Lease.

    Attributes:
        duration: seconds after which others may take a Lease that is not renewed.
        renewal: seconds after which a holder stops acting if it could not renew; a call that was begun in time may
            take the rest of ``duration``.
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
    def retry_policy(self) -> RetryPolicy:
        """A single attempt, which ends while the Lease still holds; the next one follows after ``retry``."""
        seconds = (self.duration - self.renewal) / 2
        return RetryPolicy(connect_seconds=seconds, read_seconds=seconds, attempts=1)


def leases_of(cluster: Cluster, pipelines: Iterable[str], times: LeaseTimes) -> dict[str, Lease]:
    """The Leases of several pipelines, by name, to be entered together.

    Each is taken only while the one before it is held, in the order of the names: of two controllers that want some of
    the same, one gets them all.
    """
    made: dict[str, Lease] = {}
    holder: str | None = None
    wanted: Callable[[], bool] = lambda: True  # noqa: E731
    for name in sorted(pipelines):
        made[name] = lease = Lease(cluster, name, holder, times, wanted=wanted)
        holder, wanted = lease.holder, partial(getattr, lease, "held")
    return made


class Lease:
    """Takes the Lease when it is free and renews it, in a thread of its own, within a ``with`` block.

    Args:
        cluster: namespace of the Lease; calls use the retry policy of ``times``.
        pipeline: name of the controlled pipeline.
        holder: name of this controller, different for every process; made up if not given.
        times: how long it holds.
        clock: monotonic seconds.
        wanted: whether to hold it; one that is no longer wanted is returned.
    """

    def __init__(
        self,
        cluster: Cluster,
        pipeline: str,
        holder: str | None = None,
        times: LeaseTimes | None = None,
        clock: Callable[[], float] = time.monotonic,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        own_name = f"{os.environ.get('OPD_POD') or os.uname().nodename}-{uuid.uuid4().hex[:8]}"
        self.name, self.holder, self._pipeline = lease_name(pipeline), holder or own_name, pipeline
        self._times, self._clock, self._wanted = times or LeaseTimes(), clock, wanted
        self._cluster = cluster.with_retry_policy(self._times.retry_policy)
        self._until = float("-inf")
        self._seen: tuple[Any, float] = (None, 0.0)
        self._trouble: ClusterError | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="lease")

    def __enter__(self) -> Self:
        """Begin to ask for the Lease, without waiting for it."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def hold(self, seconds: float) -> Iterator[Self]:
        """Hold the Lease within a ``with`` block.

        Args:
            seconds: to wait for it at most.

        Raises:
            NotDeployedError: if there is none.
            LedByAnotherError: if it was not free in time.
            ClusterError: if the cluster did not answer.
        """
        with self:
            self.wait_until_held(seconds)
            yield self

    def wait_until_held(self, seconds: float, stop: threading.Event | None = None) -> None:
        """Wait for the Lease.

        Args:
            seconds: to wait at most.
            stop: ends the wait early.

        Raises:
            NotDeployedError: if there is none.
            LedByAnotherError: if it was not free in time.
            ClusterError: if the cluster did not answer.
        """
        stopped = stop or threading.Event()

        def is_over() -> bool:
            if isinstance(self._trouble, NotFoundError):
                raise NotDeployedError(f"pipeline {self._pipeline!r} is not deployed: {self._trouble}")
            return self.held or stopped.is_set()

        if wait_until(is_over, seconds):
            return
        if self._trouble:
            raise ClusterError(f"the Lease {self.name!r} was not held after {seconds:g} s: {self._trouble}")
        raise LedByAnotherError(
            f"another controller holds the Lease {self.name!r} of pipeline {self._pipeline!r}: not free after "
            f"{seconds:g} s; stop that controller"
        )

    def check_held(self) -> None:
        """Raise unless the Lease is held.

        Raises:
            LedByAnotherError: if it has been lost.
        """
        if not self.held:
            raise LedByAnotherError(
                f"the Lease {self.name!r} of pipeline {self._pipeline!r} is lost: another controller leads now, or the "
                "API server did not answer; stop that controller, or see why the API server does not answer, then "
                "repeat the command"
            )

    @property
    def held(self) -> bool:
        """True if this controller may act now."""
        return self._clock() < self._until

    def close(self) -> None:
        """Return the Lease, so that the next controller need not wait until it expires."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(self._times.duration)
        self._give_back()

    def _give_back(self) -> None:
        held, self._until = self.held, float("-inf")
        if held:
            try:
                found = self._cluster.get(LEASE, self.name)
                if found["spec"].get("holderIdentity") == self.holder:
                    self._cluster.replace({**found, "spec": {**found["spec"], "holderIdentity": ""}})
            except ClusterError as error:
                logger.warning("the Lease was not returned and will expire: %s", error)

    def attempt(self) -> bool:
        """Try once to take or renew the Lease; return whether it is held.

        Raises:
            NotFoundError: if there is none, because the pipeline is not deployed.
            ClusterError: if the cluster does not answer.
        """
        begin = self._clock()
        found = self._cluster.get(LEASE, self.name)
        spec = found.get("spec") or {}
        if spec.get("holderIdentity") not in ("", None, self.holder) and not self._has_expired(found):
            self._until = float("-inf")
            return False
        try:
            self._cluster.replace({**LEASE.type_fields, "metadata": found["metadata"], "spec": self._spec(spec)})
        except ConflictError:  # another controller was faster
            return False
        self._until = begin + self._times.renewal
        return True

    def _has_expired(self, found: Object) -> bool:
        """Return whether a foreign Lease has not changed for its duration, as watched from here."""
        version, now = found["metadata"]["resourceVersion"], self._clock()
        if version != self._seen[0]:
            self._seen = (version, now)
        duration = float((found.get("spec") or {}).get("leaseDurationSeconds") or self._times.duration)
        return now - self._seen[1] > duration

    def _spec(self, spec: Object) -> Object:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = spec.get("holderIdentity") == self.holder
        return {
            **spec,
            "holderIdentity": self.holder,
            "leaseDurationSeconds": max(round(self._times.duration), 1),
            "renewTime": now,
            "acquireTime": spec.get("acquireTime", now) if ours else now,
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if ours or not spec else 1),
        }

    def _run(self) -> None:
        leading = False
        while not self._closing.is_set():
            try:
                if self._wanted():
                    self.attempt()
                else:
                    self._give_back()
                self._trouble = None
            except ClusterError as error:
                self._trouble = error
                logger.warning("the Lease %s cannot be read now: %s", self.name, error)
            if self.held != leading:
                leading = not leading
                logger.info("%s %s the Lease %s", self.holder, "holds" if leading else "does not hold", self.name)
            self._closing.wait(self._times.retry)
