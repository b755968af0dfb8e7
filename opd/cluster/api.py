"""The Kubernetes API of one namespace, for objects of any kind, built in or not."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy, deepcopy
from typing import Any

from kubernetes.client import Configuration
from tenacity import RetryError, Retrying, retry_if_exception_type, stop_after_attempt

from opd.cluster.connection import ApiRequest, Connection, RetryPolicy, credentials, parse_answer
from opd.cluster.errors import ConflictError, OtherNamespaceError
from opd.cluster.resources import POD, Object, Resource, resource_of

CONFLICT_ATTEMPTS = 6
"""Attempts to change an object that others change at the same time."""

PAGE = 500
"""Objects in one answer to a list, at most."""


class Cluster:
    """One namespace of a cluster, as one account sees it; may be used by several threads.

    Args:
        namespace: in which everything happens.
        load: reads the credentials, again whenever they are not accepted.
        retry_policy: limits of every call.

    Raises:
        CredentialsError: if there are none.
    """

    def __init__(
        self, namespace: str, load: Callable[[], Configuration] = credentials, retry_policy: RetryPolicy | None = None
    ) -> None:
        self.namespace, self.retry_policy = namespace, retry_policy or RetryPolicy()
        self._connection = Connection(load)
        self._before_write: Callable[[], object] = lambda: None

    def guarded(self, check: Callable[[], object]) -> Cluster:
        """Return the same namespace with a ``check`` before every attempt to write, which may raise to prevent it."""
        other = copy(self)
        other._before_write = check
        return other

    def with_retry_policy(self, retry_policy: RetryPolicy) -> Cluster:
        """Return the same namespace with another retry policy."""
        other = copy(self)
        other.retry_policy = retry_policy
        return other

    def get(self, resource: Resource, name: str) -> Object:
        """Read one object.

        Raises:
            NotFoundError: if there is none.
            ClusterError: as every call, naming what went wrong.
        """
        return self._call("GET", resource, name)

    def list(
        self, resource: Resource, labels: str = "", fields: str = "", everywhere: bool = False
    ) -> tuple[list[Object], str]:
        """Read all objects that match the selectors, of this namespace or everywhere, and the version to watch from."""
        found: list[Object] = []
        selectors: dict[str, Any] = {"label_selector": labels or None, "field_selector": fields or None, "limit": PAGE}
        following = None
        while True:
            page = self._call("GET", resource, everywhere=everywhere, _continue=following, **selectors)
            # Items of built-in kinds do not state their kind.
            found += [{**resource.type_fields, **each} for each in page.get("items") or []]
            following = page["metadata"].get("continue")
            if not following:
                return found, page["metadata"].get("resourceVersion", "")

    def create(self, manifest: Object, dry_run: bool = False, repeat: bool = False) -> Object:
        """Create an object.

        Args:
            manifest: what to create.
            dry_run: let the cluster check it without keeping it.
            repeat: try again if there is no answer; an object that exists may then be the one of the first attempt.

        Raises:
            ConflictError: if it exists.
        """
        self._check_namespace(manifest)
        return self._call("POST", resource_of(manifest), body=manifest, repeatable=repeat, dry_run=dry_run)

    def replace(self, manifest: Object, dry_run: bool = False) -> Object:
        """Replace an object by one that was read before and changed.

        Raises:
            ConflictError: if it changed since it was read.
        """
        self._check_namespace(manifest)
        return self._call("PUT", resource_of(manifest), manifest["metadata"]["name"], body=manifest, dry_run=dry_run)

    def modify(
        self, resource: Resource, name: str, change: Callable[[Object], object], dry_run: bool = False
    ) -> Object:
        """Read an object, change it and replace it; changes that others make meanwhile are read again and kept.

        Args:
            resource: its kind.
            name: its name.
            change: alters the object in place; called again on the newer one after a conflict.
            dry_run: let the cluster check the change without keeping it.

        Returns:
            the object as it is now.

        Raises:
            ConflictError: if others were faster :data:`CONFLICT_ATTEMPTS` times.
        """

        def read_and_replace() -> Object:
            found = self.get(resource, name)
            wanted = deepcopy(found)
            change(wanted)
            return found if wanted == found else self.replace(wanted, dry_run)

        retry = retry_if_exception_type(ConflictError)
        try:
            return Retrying(retry=retry, wait=self.retry_policy.backoff, stop=stop_after_attempt(CONFLICT_ATTEMPTS))(
                read_and_replace
            )
        except RetryError as error:
            raise ConflictError(
                f"{resource.kind} {name!r} was changed by others {CONFLICT_ATTEMPTS} times during one change here; "
                "find out who else writes to it"
            ) from error

    def delete(self, resource: Resource, name: str, dry_run: bool = False) -> None:
        """Delete an object and what it owns.

        Raises:
            NotFoundError: if there is none, or no more.
        """
        self._call("DELETE", resource, name, propagation_policy="Background", dry_run=dry_run)

    def ask_pod(self, name: str, port: int, path: str) -> Any:
        """Return the answer of a pod to a GET through the API server, from JSON."""
        description = f"GET {path} of pod {name!r}"
        where = f"{POD.path(self.namespace, f'{name}:{port}')}/proxy{path}"
        return parse_answer(description, self.send(ApiRequest(description, "GET", where)))

    def send(self, request: ApiRequest) -> Any:
        """Make a call within the retry policy; see :meth:`Connection.send`."""
        return self._connection.send(request, self.retry_policy, self._before_write)

    def _call(
        self,
        method: str,
        resource: Resource,
        name: str = "",
        body: Object | None = None,
        repeatable: bool = True,
        everywhere: bool = False,
        dry_run: bool = False,
        **query: Any,
    ) -> Any:
        named = name or ((body or {}).get("metadata") or {}).get("name", "")
        scope = "" if everywhere or not resource.namespaced else f" in namespace {self.namespace!r}"
        description = f"{method} {resource.kind}{f' {named!r}' if named else ''}{scope}"
        path = resource.path("" if everywhere else self.namespace, name)
        if dry_run:
            query["dry_run"] = "All"
        return parse_answer(description, self.send(ApiRequest(description, method, path, body, query, repeatable)))

    def _check_namespace(self, manifest: Object) -> None:
        given = manifest["metadata"].get("namespace", self.namespace)
        if given != self.namespace:
            raise OtherNamespaceError(
                f"{manifest['kind']} {manifest['metadata'].get('name')!r} is of namespace {given!r}, but this program "
                f"works in {self.namespace!r}; correct the manifest, or name the other namespace"
            )
