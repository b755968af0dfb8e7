"""The Kubernetes API of one namespace, for objects of any kind, built in or not."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from kubernetes.client import Configuration

from opd.cluster.connection import ApiRequest, Connection, RetryPolicy, credentials, parse_answer
from opd.cluster.errors import OtherNamespaceError
from opd.cluster.resources import POD, SCALE, Object, Resource, resource_of

APPLY = "application/apply-patch+yaml"
"""Content type of server-side apply; JSON is YAML."""

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

    def create(self, manifest: Object) -> Object:
        """Create an object, without a second attempt if there is no answer.

        Raises:
            ConflictError: if it exists.
        """
        self._check_namespace(manifest)
        return self._call("POST", resource_of(manifest), body=manifest, repeatable=False)

    def replace(self, manifest: Object) -> Object:
        """Replace an object by one that was read before and changed.

        Raises:
            ConflictError: if it changed since it was read.
        """
        self._check_namespace(manifest)
        return self._call("PUT", resource_of(manifest), manifest["metadata"]["name"], body=manifest)

    def apply(self, manifest: Object, manager: str, force: bool = False, dry_run: bool = False) -> Object:
        """Create an object, or give the fields of a manifest their values, by server-side apply.

        Fields that others have set stay. Those that an earlier manifest of the same manager had are removed if this one
        lacks them and nobody else has set them.

        Args:
            manifest: the fields; with a ``uid``, an object that does not exist is not created.
            manager: who sets them, as the cluster records it.
            force: take fields that others have set to other values.
            dry_run: let the cluster check the change without keeping it.

        Returns:
            the object as it is now.

        Raises:
            ConflictError: naming others who have set a field to another value, unless forced.
        """
        self._check_namespace(manifest)
        return self._apply(resource_of(manifest), "", manifest, manager, force, dry_run)

    def scale(
        self, resource: Resource, name: str, replicas: int, manager: str, force: bool = False, dry_run: bool = False
    ) -> Object:
        """Set the replicas of a workload by its scale subresource, as :meth:`apply` sets fields; return its scale.

        Raises:
            NotFoundError: if there is no such workload.
            ConflictError: naming others who have set another number, unless forced.
        """
        wanted = {**SCALE.type_fields, "metadata": {"name": name}, "spec": {"replicas": replicas}}
        return self._apply(resource, "/scale", wanted, manager, force, dry_run)

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

    def _apply(
        self, resource: Resource, subresource: str, fields: Object, manager: str, force: bool, dry_run: bool
    ) -> Object:
        return self._call(
            "PATCH",
            resource,
            fields["metadata"]["name"],
            subresource,
            fields,
            dry_run=dry_run,
            content_type=APPLY,
            field_manager=manager,
            force_conflicts=force or None,
        )

    def _call(
        self,
        method: str,
        resource: Resource,
        name: str = "",
        subresource: str = "",
        body: Object | None = None,
        repeatable: bool = True,
        everywhere: bool = False,
        dry_run: bool = False,
        **query: Any,
    ) -> Any:
        named = name or ((body or {}).get("metadata") or {}).get("name", "")
        scope = "" if everywhere or not resource.namespaced else f" in namespace {self.namespace!r}"
        description = f"{method} {resource.kind}{f' {named!r}' if named else ''}{scope}"
        path = resource.path("" if everywhere else self.namespace, name) + subresource
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
