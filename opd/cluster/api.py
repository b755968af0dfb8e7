"""The Kubernetes API of one namespace: every call has a timeout, a bounded number of attempts and a named error.

Objects are plain dictionaries as in a manifest, of any kind, built in or not. Underneath is the official client, whose
own defaults (no timeout, waits as long as an answer's ``Retry-After`` says) are never used.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from opd.cluster.errors import (
    ClusterError,
    ConflictError,
    CredentialsError,
    GoneError,
    NoAnswerError,
    OtherNamespaceError,
    ServerFailedError,
    TooManyRequestsError,
    UnauthorisedError,
    error_of,
)

logger = logging.getLogger(__name__)

Object = dict[str, Any]
"""A Kubernetes object as in a manifest."""

CONFLICT_ATTEMPTS = 6
"""So often an object that others change meanwhile is read and changed again."""

WATCH_SECONDS = 20.0
"""A watch is opened again after this long, so that a connection which died silently is noticed."""

PAGE = 500
"""Objects that one answer to a list may hold."""

_DRY_RUN: dict[str, Any] = {"dry_run": "All"}


@dataclass(frozen=True)
class RetryPolicy:
    """How long the cluster is waited for; a call takes ``attempts`` times connecting, reading and pausing at most.

    Attributes:
        connect_seconds: for a connection.
        read_seconds: for the next bytes of an answer.
        attempts: to make a call that may be repeated.
        first_pause: seconds between the first two of them, doubled each time.
        longest_pause: seconds between two of them at most; a cluster that asks for more has refused.
    """

    connect_seconds: float = 3.0
    read_seconds: float = 10.0
    attempts: int = 4
    first_pause: float = 0.2
    longest_pause: float = 5.0


class Resource(NamedTuple):
    """A kind of objects."""

    api_version: str
    kind: str
    namespaced: bool = True

    @property
    def plural(self) -> str:
        """The kind as paths name it."""
        lower = self.kind.lower()
        return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"

    @property
    def type_fields(self) -> Object:
        """The fields by which an object says of which kind it is."""
        return {"apiVersion": self.api_version, "kind": self.kind}

    def path(self, namespace: str, name: str = "") -> str:
        """Where the API has all objects of a namespace (of all namespaces if empty), or one of them."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        scope = f"/namespaces/{quote(namespace, safe='')}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{quote(name, safe='')}" if name else "")


POD = Resource("v1", "Pod")
CONFIG_MAP = Resource("v1", "ConfigMap")
NODE = Resource("v1", "Node", namespaced=False)
NAMESPACE = Resource("v1", "Namespace", namespaced=False)
EVENT = Resource("v1", "Event")
DEPLOYMENT = Resource("apps/v1", "Deployment")
SELDON_DEPLOYMENT = Resource("machinelearning.seldon.io/v1", "SeldonDeployment")
LEASE = Resource("coordination.k8s.io/v1", "Lease")


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The kind of a namespaced manifest."""
    return Resource(manifest["apiVersion"], manifest["kind"])


class WatchEvent(NamedTuple):
    """What a watch reports: ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object as it is then."""

    type: str
    object: Object


def credentials(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """How to reach the cluster: by a kubeconfig that is named here or by ``KUBECONFIG``, else as a pod of it, else by
    the kubeconfig in the home folder.

    Raises:
        CredentialsError: if that cannot be read.
    """  # noqa: D205
    settings = Configuration()
    named = kubeconfig or os.environ.get("KUBECONFIG")
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and not named and not context
    try:
        if in_pod:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=named, context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        where = "the pod's service account" if in_pod else f"the kubeconfig {named or '~/.kube/config'}"
        raise CredentialsError(
            f"{where} cannot be used: {error}; set KUBECONFIG or the context, or run in a pod with a service account"
        ) from error
    return settings


class Cluster:
    """One namespace of a cluster, as one account sees it; may be used by several threads.

    Args:
        namespace: in which everything happens.
        load: reads the credentials, again whenever they are not accepted.
        retry_policy: how long calls may take.

    Raises:
        CredentialsError: if there are none.
    """

    def __init__(
        self, namespace: str, load: Callable[[], Configuration] = credentials, retry_policy: RetryPolicy | None = None
    ) -> None:
        self.namespace, self.retry_policy = namespace, retry_policy or RetryPolicy()
        self._load = load
        self._before_write: Callable[[], object] = lambda: None
        self._lock = threading.Lock()
        self._client = self._connect()

    def guarded(self, check: Callable[[], object]) -> Cluster:
        """The same namespace, where ``check`` is called before every attempt to write and may raise to prevent it."""
        other = copy(self)
        other._before_write = check
        return other

    def with_retry_policy(self, retry_policy: RetryPolicy) -> Cluster:
        """The same namespace with another retry policy."""
        other = copy(self)
        other.retry_policy = retry_policy
        return other

    # --------------------------------------------------------------------------------------------- objects

    def get(self, resource: Resource, name: str) -> Object:
        """One object.

        Raises:
            NotFoundError: if there is none.
            ClusterError: as every call, with what went wrong.
        """
        return self._request("GET", resource, name)

    def list(
        self, resource: Resource, labels: str = "", fields: str = "", everywhere: bool = False
    ) -> tuple[list[Object], str]:
        """All objects that match the selectors, of this namespace or everywhere, and the version to watch from."""
        found: list[Object] = []
        selectors: dict[str, Any] = {"label_selector": labels or None, "field_selector": fields or None, "limit": PAGE}
        following = None
        while True:
            page = self._request("GET", resource, everywhere=everywhere, _continue=following, **selectors)
            # Items of built-in kinds do not say what they are.
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
        return self._request("POST", resource_of(manifest), body=manifest, repeat=repeat, **_dry(dry_run))

    def replace(self, manifest: Object, dry_run: bool = False) -> Object:
        """Replace an object by one that was read before and changed.

        Raises:
            ConflictError: if it changed since it was read.
        """
        self._check_namespace(manifest)
        name = manifest["metadata"]["name"]
        return self._request("PUT", resource_of(manifest), name, body=manifest, **_dry(dry_run))

    def modify(
        self, resource: Resource, name: str, change: Callable[[Object], object], dry_run: bool = False
    ) -> Object:
        """Read an object, change it and replace it; what others change meanwhile is read again and kept.

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
        for attempt in range(CONFLICT_ATTEMPTS):
            found = self.get(resource, name)
            wanted = deepcopy(found)
            change(wanted)
            if wanted == found:
                return found
            try:
                return self.replace(wanted, dry_run)
            except ConflictError:
                time.sleep(self._pause(attempt))
        raise ConflictError(
            f"{resource.kind} {name!r} was changed by others {CONFLICT_ATTEMPTS} times during one change here; "
            "find out who else writes to it"
        )

    def put(self, manifest: Object, dry_run: bool = False) -> Object:
        """Create an object, or bring the one that exists to its manifest; fields the manifest lacks stay."""
        try:
            return self.create(manifest, dry_run, repeat=True)
        except ConflictError:
            name = manifest["metadata"]["name"]
            return self.modify(resource_of(manifest), name, lambda found: _lay_over(found, manifest), dry_run)

    def delete(self, resource: Resource, name: str, dry_run: bool = False) -> None:
        """Delete an object and what it owns.

        Raises:
            NotFoundError: if there is none, or no more.
        """
        self._request("DELETE", resource, name, propagation_policy="Background", **_dry(dry_run))

    def ask_pod(self, name: str, port: int, path: str) -> Any:
        """What a pod answers to a GET, through the API server, from JSON."""
        what = f"GET {path} of pod {name!r}"
        where = f"{POD.path(self.namespace, f'{name}:{port}')}/proxy{path}"
        return _parse(what, self._repeat(what, "GET", where))

    # --------------------------------------------------------------------------------------------- watching

    def watch(
        self, resource: Resource, version: str, labels: str = "", fields: str = "", seconds: float = WATCH_SECONDS
    ) -> Iterator[WatchEvent]:
        """What happens to objects from ``version`` on; ends after ``seconds`` or when the cluster ends it.

        Raises:
            GoneError: if ``version`` is too old; list again.
        """
        what = f"watching {resource.plural} in namespace {self.namespace!r}"
        response = self._repeat(
            what,
            "GET",
            resource.path(self.namespace),
            read_seconds=seconds + self.retry_policy.read_seconds,
            whole=False,
            watch=True,
            allow_watch_bookmarks=True,
            resource_version=version,
            timeout_seconds=max(round(seconds), 1),
            label_selector=labels or None,
            field_selector=fields or None,
        )
        try:
            for line in _lines(response):
                event = _parse(what, line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise error_of(int(status.get("code", 500)), what, status.get("message", ""))
                yield WatchEvent(event["type"], event["object"])
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NoAnswerError(f"{what}: the connection broke: {error}") from error
        finally:
            response.close()
            response.release_conn()

    def follow(
        self, resource: Resource, labels: str = "", fields: str = "", stop: threading.Event | None = None
    ) -> Iterator[dict[str, Object]]:
        """The objects that match, by name, at first and after every change, whatever happens to the connection.

        While the cluster cannot be reached nothing is yielded and what was known stays true; afterwards everything is
        read anew. Two attempts are at most :attr:`RetryPolicy.longest_pause` apart.
        """
        ended = stop or threading.Event()
        failures = 0
        while not ended.is_set():
            try:
                for objects in self._follow_once(resource, labels, fields):
                    failures = 0
                    yield objects
                    if ended.is_set():
                        return
            except GoneError as error:
                logger.info("%s; listing again", error)
            except ClusterError as error:
                logger.warning("%s; what is known stays until the cluster answers", error)
                ended.wait(self._pause(failures))
                failures += 1

    def _follow_once(self, resource: Resource, labels: str, fields: str) -> Iterator[dict[str, Object]]:
        """List, then watch until that fails; a watch that only ends is opened again."""
        found, version = self.list(resource, labels, fields)
        objects = {each["metadata"]["name"]: each for each in found}
        yield dict(objects)
        while True:
            begin = time.monotonic()
            for what, changed in self.watch(resource, version, labels, fields):
                version = changed["metadata"]["resourceVersion"]
                if what == "BOOKMARK":
                    continue
                if what == "DELETED":
                    objects.pop(changed["metadata"]["name"], None)
                else:
                    objects[changed["metadata"]["name"]] = changed
                yield dict(objects)
            if time.monotonic() - begin < self.retry_policy.first_pause:
                time.sleep(
                    self.retry_policy.first_pause
                )  # a cluster that ends every watch at once is not to be stormed

    # --------------------------------------------------------------------------------------------- calls

    def _request(
        self,
        method: str,
        resource: Resource,
        name: str = "",
        body: Object | None = None,
        repeat: bool = True,
        everywhere: bool = False,
        **parameters: Any,
    ) -> Any:
        named = name or ((body or {}).get("metadata") or {}).get("name", "")
        scope = "" if everywhere or not resource.namespaced else f" in namespace {self.namespace!r}"
        what = f"{method} {resource.kind}{f' {named!r}' if named else ''}{scope}"
        path = resource.path("" if everywhere else self.namespace, name)
        return _parse(what, self._repeat(what, method, path, body, repeat, **parameters))

    def _repeat(
        self,
        what: str,
        method: str,
        path: str,
        body: Object | None = None,
        repeat: bool = True,
        read_seconds: float | None = None,
        whole: bool = True,
        **parameters: Any,
    ) -> Any:
        """Make a call, again with new credentials after a 401, and again after what may pass."""
        seconds = (self.retry_policy.connect_seconds, read_seconds or self.retry_policy.read_seconds)
        failures, renewed = 0, False
        while True:
            client = self._client
            if method != "GET":
                self._before_write()
            try:
                return self._once(client, what, method, path, body, seconds, whole, parameters)
            except UnauthorisedError:
                if renewed:
                    raise
                self._renew(client)
                renewed = True
            except (TooManyRequestsError, ServerFailedError, NoAnswerError) as error:
                pause = self._pause(failures)
                failures += 1
                if isinstance(error, TooManyRequestsError):
                    pause = pause if error.retry_after is None else error.retry_after
                elif not repeat:
                    raise
                if failures >= self.retry_policy.attempts or pause > self.retry_policy.longest_pause:
                    raise
                time.sleep(pause)

    def _once(
        self,
        client: DynamicClient,
        what: str,
        method: str,
        path: str,
        body: Object | None,
        seconds: tuple[float, float],
        whole: bool,
        parameters: Mapping[str, Any],
    ) -> Any:
        try:
            response = client.request(method, path, body, serialize=False, _request_timeout=seconds, **parameters)
            return response.data if whole else response
        except ApiException as error:
            raise _named(what, error) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise NoAnswerError(
                f"{what}: no answer from {client.configuration.host} within {seconds[0]:g} s to connect and "
                f"{seconds[1]:g} s to read: {error}; check that the API server runs and can be reached"
            ) from error

    def _pause(self, failures: int) -> float:
        return min(self.retry_policy.first_pause * 2.0**failures, self.retry_policy.longest_pause)

    def _renew(self, used: DynamicClient) -> None:
        """Load the credentials anew, unless another thread has just done so."""
        with self._lock:
            if self._client is used:
                self._client = self._connect()

    def _connect(self) -> DynamicClient:
        settings = self._load()
        # Attempts are counted here: urllib3's own would multiply them, and sleep as long as Retry-After says.
        settings.retries = False
        # Kinds are known by their manifests, so that nothing need be discovered.
        return DynamicClient(ApiClient(settings), discoverer=lambda *_: None)

    def _check_namespace(self, manifest: Object) -> None:
        given = manifest["metadata"].get("namespace", self.namespace)
        if given != self.namespace:
            raise OtherNamespaceError(
                f"{manifest['kind']} {manifest['metadata'].get('name')!r} is of namespace {given!r}, but this program "
                f"works in {self.namespace!r}; correct the manifest, or name the other namespace"
            )


def _dry(dry_run: bool) -> dict[str, Any]:
    return _DRY_RUN if dry_run else {}


def _named(what: str, error: ApiException) -> ClusterError:
    """The error of an answer; the cluster's own words are in its body."""
    if not error.status:
        return NoAnswerError(f"{what}: {error.reason}; check the address and the certificates of the cluster")
    try:
        reason = json.loads(error.body or "")["message"]
    except (ValueError, TypeError, KeyError):
        reason = str(error.reason or "")
    named = error_of(int(error.status), what, reason)
    if isinstance(named, TooManyRequestsError):
        named.retry_after = _seconds(dict(error.headers or {}))
    return named


def _seconds(headers: Mapping[str, str]) -> float | None:
    given = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return float(given) if given.isdigit() else None


def _parse(what: str, text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ServerFailedError(
            f"{what}: the answer is no JSON ({text[:80]!r}); check that the address is that of an API server"
        ) from error


def _lines(response: urllib3.HTTPResponse) -> Iterator[bytes]:
    rest = b""
    for piece in response.stream(decode_content=False):
        *lines, rest = (rest + piece).split(b"\n")
        yield from filter(None, lines)


def _lay_over(found: Object, wanted: Mapping[str, Any]) -> None:
    """Put what is wanted into an object: mappings field by field, anything else whole."""
    for name, value in wanted.items():
        if isinstance(value, Mapping) and isinstance(found.get(name), dict):
            _lay_over(found[name], value)
        else:
            found[name] = deepcopy(value)
