"""A Kubernetes API server over HTTP, small but real: objects of any kind with versions, conflicts and watches.

:class:`ApiServer` keeps the objects and can be told to fail in every way an API server does.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from emulator import admission, field_managers, rights
from emulator.http_server import Drop, Handler, Refusal, Server

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?P<rest>/.*)?$"
)


@dataclass
class Fault:
    """What happens to the next ``times`` requests whose ``METHOD path?query`` matches ``pattern``, before they are
    handled: ``act`` may raise :class:`Refusal` or :class:`Drop`, sleep, or change objects."""

    pattern: str
    act: Callable[[], object]
    times: int = 1


@dataclass
class Watcher:
    """One open watch; ``closing`` ends it, ``error`` is sent first."""

    closing: bool = False
    error: dict | None = None


class ApiServer:
    """The API server; ``url`` is its address. Requests with a token in ``accounts`` have the rights of that account.

    Args:
        token: that requests must carry, any if None.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.accounts: dict[str, str] = {}
        self.objects: dict[tuple[str, str, str, str], dict] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[Fault] = []
        self.changed = threading.Condition()
        self.proxy: Callable[[dict, int, str], Any] | None = None
        self._log: list[tuple[int, tuple, str, dict]] = []
        self._compacted = 0
        self._version = 100
        self._watchers: list[Watcher] = []
        self._port = 0
        self.start()

    # --------------------------------------------------------------------------------------------- for the tests

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = Server(_ApiHandler, self._port, api=self)
        self._port, self.url = self._server.port, self._server.url

    def stop(self) -> None:
        """Stop listening and break every connection; the objects stay."""
        self._server.stop()

    def fail(self, pattern: str, act: Callable[[], object], times: int = 1) -> None:
        """Add a fault."""
        self.faults.append(Fault(pattern, act, times))

    def refuse(
        self, pattern: str, code: int, times: int = 1, message: str = "as the test wants", **headers: str
    ) -> None:
        """Add a fault that answers with a status."""

        def act() -> None:
            raise Refusal(code, message, **headers)

        self.fail(pattern, act, times)

    def drop(self, pattern: str, times: int = 1) -> None:
        """Add a fault that closes the connection."""

        def act() -> None:
            raise Drop

        self.fail(pattern, act, times)

    def end_watches(self) -> None:
        """End every open watch, as happens after some minutes."""
        with self.changed:
            for watcher in self._watchers:
                watcher.closing = True
            self.changed.notify_all()

    def forget_history(self) -> None:
        """Make versions until now too old to watch from, and report that to open watches."""
        with self.changed:
            self._compacted = self._version
            self._version += 1
            for watcher in self._watchers:
                watcher.error = {
                    "kind": "Status",
                    "code": 410,
                    "reason": "Expired",
                    "message": "too old resource version",
                }
            self.changed.notify_all()

    def watches(self) -> int:
        """Number of open watches."""
        with self.changed:
            return len(self._watchers)

    def find(self, plural: str, name: str) -> dict:
        """A copy of an object."""
        with self.changed:
            return deepcopy(next(o for key, o in self.objects.items() if key[1] == plural and key[3] == name))

    def all(self, plural: str, **labels: str) -> list[dict]:
        """Copies of all objects of a kind whose labels match; ``__`` in a name stands for ``/``, ``_`` for a dot."""
        wanted = {name.replace("__", "/").replace("_", "."): value for name, value in labels.items()}
        with self.changed:
            of_kind = [o for key, o in self.objects.items() if key[1] == plural]
            return [deepcopy(o) for o in of_kind if wanted.items() <= (o["metadata"].get("labels") or {}).items()]

    def edit(self, plural: str, name: str, change: Callable[[dict], object], manager: str = "") -> None:
        """Change an object as somebody else would, who sets the fields if a manager is named."""
        with self.changed:
            key = next(key for key in self.objects if key[1] == plural and key[3] == name)
            changed = deepcopy(self.objects[key])
            change(changed)
            self.store(key, field_managers.updated(self.objects[key], changed, manager) if manager else changed)

    # --------------------------------------------------------------------------------------------- the store

    def put(self, manifest: dict, manager: str = "") -> dict:
        """Create an object, without checking rights, whose fields a manager has applied if one is named."""
        plural = _plural(manifest["kind"])
        namespaced = manifest["kind"] not in ("Node", "Namespace")
        namespace = manifest["metadata"].get("namespace", "") if namespaced else ""
        made = deepcopy(manifest)
        if manager:
            made = field_managers.applied(_empty(manifest), manifest, manager, force=False)
        return self.create((manifest["apiVersion"], plural, namespace), made)

    def create(self, place: tuple[str, str, str], manifest: dict, dry_run: bool = False) -> dict:
        """Create an object of a group, kind and namespace."""
        metadata = manifest.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata.get("generateName", "") + uuid.uuid4().hex[:5]
        if place[2]:
            metadata["namespace"] = place[2]
        key = (*place, metadata["name"])
        with self.changed:
            if key in self.objects:
                raise Refusal(409, f'{place[1]} "{metadata["name"]}" already exists')
            metadata.update(uid=str(uuid.uuid4()), creationTimestamp=_now(), generation=1)
            return manifest if dry_run else self.store(key, manifest, "ADDED")

    def _replace(self, key: tuple[str, str, str, str], manifest: dict, dry_run: bool) -> dict:
        with self.changed:
            found = self._found(key)
            version = manifest["metadata"].get("resourceVersion")
            if version and version != found["metadata"]["resourceVersion"]:
                raise Refusal(409, "the object has been modified; please apply your changes to the latest version")
            manifest["metadata"].update({n: found["metadata"][n] for n in ("uid", "creationTimestamp", "generation")})
            admission.check(self.objects, key, "", "client", manifest, found)
            return self._keep(key, field_managers.updated(found, manifest, "client"), dry_run)

    def _keep(self, key: tuple[str, str, str, str], manifest: dict, dry_run: bool) -> dict:
        """Store another state of an object, if it is another one."""
        found = self._found(key)
        if manifest.get("spec") != found.get("spec"):
            manifest = {
                **manifest,
                "metadata": {**manifest["metadata"], "generation": found["metadata"]["generation"] + 1},
            }
        same = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": ""}} == {
            **found,
            "metadata": {**found["metadata"], "resourceVersion": ""},
        }
        return found if same else manifest if dry_run else self.store(key, manifest)

    def _apply(self, key: tuple[str, str, str, str], manifest: dict, query: dict[str, str], account: str) -> dict:
        """Server-side apply to an object."""
        manager, force = query["fieldManager"], "force" in query
        dry_run, uid = query.get("dryRun") == "All", manifest["metadata"].get("uid")
        with self.changed:
            if key in self.objects:
                found = self.objects[key]
                if uid and uid != found["metadata"]["uid"]:
                    raise Refusal(409, "the uid in the precondition is of another object")
                made = field_managers.applied(found, manifest, manager, force)
                admission.check(self.objects, key, "", manager, made, found)
                return self._keep(key, made, dry_run)
            if uid:
                raise Refusal(409, f"uid mismatch: there is no object with uid {uid}")
            self._authorise(account, key[:3], key[1], "create", "")
            made = field_managers.applied(_empty(manifest), manifest, manager, force)
            admission.check(self.objects, key, "", manager, made, None)
            return self.create(key[:3], made, dry_run)

    def _scale(self, key: tuple[str, str, str, str], scale: dict, query: dict[str, str]) -> dict:
        """Server-side apply to the scale subresource of an object, whose replicas are where all kinds have them."""
        with self.changed:
            found = self._found(key)
            wanted = {"metadata": {}, "spec": {"replicas": scale["spec"]["replicas"]}}
            made = field_managers.applied(found, wanted, query["fieldManager"], "force" in query, "scale")
            before = {**scale, "spec": {"replicas": found["spec"]["replicas"]}}
            admission.check(self.objects, key, "scale", query["fieldManager"], scale, before)
            kept = self._keep(key, made, query.get("dryRun") == "All")
            return {**scale, "spec": {"replicas": kept["spec"]["replicas"]}}

    def _authorise(self, account: str, place: tuple[str, str, str], resource: str, verb: str, name: str) -> None:
        if account:
            group = place[0].rpartition("/")[0]
            rights.check(list(self.objects.values()), account, place[2], group, resource, verb, name)

    def delete(self, key: tuple[str, str, str, str], dry_run: bool = False) -> dict:
        """Delete an object; a pod that runs on a node is only marked, for the kubelet to end it."""
        with self.changed:
            found = deepcopy(self._found(key))
            if dry_run:
                return found
            if key[1] == "pods" and found["spec"].get("nodeName"):
                found["metadata"].setdefault("deletionTimestamp", _now())
                return self.store(key, found)
            self.remove(key)
            return found

    def remove(self, key: tuple[str, str, str, str]) -> None:
        """Remove an object at once."""
        with self.changed:
            gone = deepcopy(self.objects.pop(key))
            self._note(key, "DELETED", gone)

    def store(self, key: tuple[str, str, str, str], manifest: dict, what: str = "MODIFIED") -> dict:
        """Store a state of an object and report it to watches."""
        with self.changed:
            self.objects[key] = manifest
            self._note(key, what, manifest)
            return manifest

    def _note(self, key: tuple, what: str, manifest: dict) -> None:
        self._version += 1
        manifest["metadata"]["resourceVersion"] = str(self._version)
        self._log.append((self._version, key, what, deepcopy(manifest)))
        self.changed.notify_all()

    def _found(self, key: tuple[str, str, str, str]) -> dict:
        if key not in self.objects:
            raise Refusal(404, f'{key[1]} "{key[3]}" not found')
        return self.objects[key]

    # --------------------------------------------------------------------------------------------- requests

    def handle(self, method: str, target: str, headers: Any, body: Any, answer: Handler) -> None:
        """Answer one request."""
        self.requests.append((method, target, headers.get("Authorization", "")))
        for fault in list(self.faults):
            if fault.times > 0 and re.search(fault.pattern, f"{method} {target}"):
                fault.times -= 1
                fault.act()
        if self.token and headers.get("Authorization", "").lower() != f"bearer {self.token}".lower():
            raise Refusal(401, "Unauthorized")
        url = urlsplit(target)
        match = _PATH.match(url.path)
        if match is None:
            raise Refusal(404, f"there is no {url.path}")
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        place = (match["core"] or match["group"], match["plural"], match["namespace"] or "")
        name, dry_run = unquote(match["name"] or ""), query.get("dryRun") == "All"
        account = self.accounts.get(headers.get("Authorization", "").split(" ")[-1], "")
        resource = "/".join([match["plural"], *(match["rest"] or "").split("/")[1:2]])
        self._authorise(account, place, resource, rights.verb_of(method, name, "watch" in query), name)
        if method == "PATCH" and headers.get("Content-Type") != "application/apply-patch+yaml":
            raise Refusal(415, "of all patches, only server-side apply is emulated")
        if method == "PATCH" and match["rest"] == "/scale":
            answer.send(200, self._scale((*place, name), body, query))
        elif method == "PATCH" and not match["rest"]:
            answer.send(200, self._apply((*place, name), body, query, account))
        elif method == "POST" and match["rest"] == "/token":
            token = uuid.uuid4().hex
            self.accounts[token] = self._found((*place, name))["metadata"]["name"]
            answer.send(201, {"kind": "TokenRequest", "status": {"token": token}})
        elif match["rest"]:
            answer.send(200, self._ask_pod(place, name, match["rest"]))
        elif method == "GET" and name:
            with self.changed:
                answer.send(200, deepcopy(self._found((*place, name))))
        elif method == "GET" and query.get("watch", "").lower() == "true":
            self._watch(place, query, answer)
        elif method == "GET":
            answer.send(200, self._list(place, query))
        elif method == "POST":
            answer.send(201, self.create(place, body, dry_run))
        elif method == "PUT":
            answer.send(200, self._replace((*place, name), body, dry_run))
        elif method == "DELETE":
            answer.send(200, self.delete((*place, name), dry_run))
        else:
            raise Refusal(405, f"{method} is not emulated")

    def _ask_pod(self, place: tuple[str, str, str], name: str, rest: str) -> Any:
        pod_name, _, port = name.partition(":")
        with self.changed:
            pod = deepcopy(self._found((*place, pod_name)))
        if self.proxy is None or not rest.startswith("/proxy"):
            raise Refusal(404, f"there is no {rest}")
        return self.proxy(pod, int(port), rest.removeprefix("/proxy"))

    def _list(self, place: tuple[str, str, str], query: dict[str, str]) -> dict:
        with self.changed:
            found = [
                deepcopy(o) for key, o in sorted(self.objects.items()) if _within(key, place) and _matches(o, query)
            ]
            metadata = {"resourceVersion": str(self._version)}
        if place[0] in ("v1", "apps/v1") or place[0].endswith(".k8s.io/v1"):  # their items do not say what they are
            found = [{n: value for n, value in o.items() if n not in ("apiVersion", "kind")} for o in found]
        begin, limit = int(query.get("continue", 0)), int(query.get("limit", 0)) or len(found)
        if begin + limit < len(found):
            metadata["continue"] = str(begin + limit)
        return {"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": found[begin : begin + limit]}

    def _watch(self, place: tuple[str, str, str], query: dict[str, str], answer: Handler) -> None:
        since = int(query["resourceVersion"])
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 60))
        watcher = Watcher()
        with self.changed:
            if since <= self._compacted:
                raise Refusal(410, f"too old resource version: {since} ({self._compacted})")
            self._watchers.append(watcher)
        answer.begin_stream()
        try:
            while True:
                with self.changed:
                    news = [entry for entry in self._log if entry[0] > since and _within(entry[1], place)]
                    if not news and not watcher.closing and watcher.error is None:
                        self.changed.wait(max(min(deadline - time.monotonic(), 0.5), 0.0))
                        if time.monotonic() < deadline and not answer.broken():
                            continue
                        watcher.closing = True
                for since, _, what, manifest in news:  # noqa: B007
                    if _matches(manifest, query):
                        answer.stream({"type": what, "object": manifest})
                if watcher.error is not None:
                    answer.stream({"type": "ERROR", "object": watcher.error})
                if watcher.closing or watcher.error is not None:
                    answer.end_stream()
                    return
        finally:
            with self.changed:
                self._watchers.remove(watcher)


def _plural(kind: str) -> str:
    lower = kind.lower()
    return f"{lower[:-1]}ies" if lower.endswith("y") else f"{lower}s"


def _empty(manifest: dict) -> dict:
    """What server-side apply creates an object from."""
    content = {name: manifest["metadata"][name] for name in ("name", "namespace") if name in manifest["metadata"]}
    return {"apiVersion": manifest["apiVersion"], "kind": manifest["kind"], "metadata": content}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _within(key: tuple, place: tuple[str, str, str]) -> bool:
    return key[:2] == place[:2] and place[2] in ("", key[2])


def _matches(manifest: dict, query: dict[str, str]) -> bool:
    labels = manifest["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        name, _, value = term.partition("=")
        if labels.get(name) != value.lstrip("="):
            return False
    fields = query.get("fieldSelector", "")
    return not fields or fields == f"metadata.name={manifest['metadata']['name']}"


class _ApiHandler(Handler):
    api: ApiServer

    def respond(self, body: Any) -> None:
        self.api.handle(self.command, self.path, self.headers, body, self)


def kubeconfig(api: ApiServer, folder: Path, token: str = "") -> Path:
    """A kubeconfig whose token is in the file ``token`` beside it."""
    (folder / "token").write_text(token or "any")
    user = {"name": "me", "user": {"tokenFile": str(folder / "token")}}
    cluster = {"name": "emulator", "cluster": {"server": api.url}}
    context = {"name": "emulator", "context": {"cluster": "emulator", "user": "me"}}
    document = {"apiVersion": "v1", "kind": "Config", "current-context": "emulator"}
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump({**document, "users": [user], "clusters": [cluster], "contexts": [context]}))
    return path
