"""A Kubernetes API server over HTTP, small but real: objects of any kind with versions, conflicts and watches.

:class:`ApiServer` keeps the objects and can be told to fail in every way an API server does. :class:`Kubelet` plays
the rest of a cluster: it makes pods of Deployments and SeldonDeployments, lets them become ready, or break, and takes
them away again; with a ``folder`` the pods are real server processes on addresses of the loopback interface.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import requests
import yaml

_PATH = re.compile(
    r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?P<rest>/.*)?$"
)
_REASONS = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "AlreadyExists"}


class Refusal(Exception):
    """An answer other than 2xx."""

    def __init__(self, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.headers = code, {name.replace("_", "-"): value for name, value in headers.items()}


class Drop(Exception):
    """The connection is closed without an answer."""


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
    """The API server; ``url`` is its address.

    Args:
        token: that requests must carry, any if None.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.objects: dict[tuple[str, str, str, str], dict] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.faults: list[Fault] = []
        self.changed = threading.Condition()
        self.proxy: Callable[[dict, int, str], Any] | None = None
        self._log: list[tuple[int, tuple, str, dict]] = []
        self._compacted = 0
        self._version = 100
        self._watchers: list[Watcher] = []
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    # --------------------------------------------------------------------------------------------- for the tests

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the same port as before if there was one."""
        self._server = _Server(("127.0.0.1", self._port), _handler(self))
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True, name="api server").start()

    def stop(self) -> None:
        """Stop listening and break every connection; the objects stay."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        self._server.break_connections()

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
        """Every open watch ends, as they do after some minutes."""
        with self.changed:
            for watcher in self._watchers:
                watcher.closing = True
            self.changed.notify_all()

    def forget_history(self) -> None:
        """Versions until now are too old to watch from, and open watches are told so."""
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
        """How many are open."""
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

    def edit(self, plural: str, name: str, change: Callable[[dict], object]) -> None:
        """Change an object as somebody else would."""
        with self.changed:
            key = next(key for key in self.objects if key[1] == plural and key[3] == name)
            changed = deepcopy(self.objects[key])
            change(changed)
            self._store(key, changed)

    # --------------------------------------------------------------------------------------------- the store

    def put(self, manifest: dict) -> dict:
        """Create an object, without asking who may."""
        plural = _plural(manifest["kind"])
        namespaced = manifest["kind"] not in ("Node", "Namespace")
        namespace = manifest["metadata"].get("namespace", "") if namespaced else ""
        return self._create((manifest["apiVersion"], plural, namespace), deepcopy(manifest), False)

    def _create(self, place: tuple[str, str, str], manifest: dict, dry_run: bool) -> dict:
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
            return manifest if dry_run else self._store(key, manifest, "ADDED")

    def _replace(self, key: tuple[str, str, str, str], manifest: dict, dry_run: bool) -> dict:
        with self.changed:
            found = self._found(key)
            version = manifest["metadata"].get("resourceVersion")
            if version and version != found["metadata"]["resourceVersion"]:
                raise Refusal(409, "the object has been modified; please apply your changes to the latest version")
            manifest["metadata"].update({n: found["metadata"][n] for n in ("uid", "creationTimestamp", "generation")})
            if manifest.get("spec") != found.get("spec"):
                manifest["metadata"]["generation"] += 1
            same = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": ""}} == {
                **found,
                "metadata": {**found["metadata"], "resourceVersion": ""},
            }
            return found if same else manifest if dry_run else self._store(key, manifest)

    def _delete(self, key: tuple[str, str, str, str], dry_run: bool) -> dict:
        with self.changed:
            found = deepcopy(self._found(key))
            if dry_run:
                return found
            if key[1] == "pods" and found["spec"].get("nodeName"):
                found["metadata"].setdefault("deletionTimestamp", _now())
                return self._store(key, found)
            self.remove(key)
            return found

    def remove(self, key: tuple[str, str, str, str]) -> None:
        """Take an object away at once."""
        with self.changed:
            gone = deepcopy(self.objects.pop(key))
            self._note(key, "DELETED", gone)

    def _store(self, key: tuple[str, str, str, str], manifest: dict, what: str = "MODIFIED") -> dict:
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

    def handle(self, method: str, target: str, headers: Any, body: Any, answer: _Handler) -> None:
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
        if match["rest"]:
            answer.send(200, self._ask_pod(place, name, match["rest"]))
        elif method == "GET" and name:
            with self.changed:
                answer.send(200, deepcopy(self._found((*place, name))))
        elif method == "GET" and query.get("watch", "").lower() == "true":
            self._watch(place, query, answer)
        elif method == "GET":
            answer.send(200, self._list(place, query))
        elif method == "POST":
            answer.send(201, self._create(place, body, dry_run))
        elif method == "PUT":
            answer.send(200, self._replace((*place, name), body, dry_run))
        elif method == "DELETE":
            answer.send(200, self._delete((*place, name), dry_run))
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

    def _watch(self, place: tuple[str, str, str], query: dict[str, str], answer: _Handler) -> None:
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any) -> None:
        self._connections: set = set()
        super().__init__(*arguments)

    def get_request(self) -> Any:
        connection, address = super().get_request()
        self._connections.add(connection)
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers break connections as they like."""

    def break_connections(self) -> None:
        for connection in self._connections:
            try:
                connection.shutdown(2)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise an answer waits for the acknowledgement of its own headers.
    wbufsize = -1
    disable_nagle_algorithm = True
    api: ApiServer

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            self.api.handle(self.command, self.path, self.headers, body, self)
        except Refusal as refusal:
            reason = _REASONS.get(refusal.code, "Failure")
            status = {"kind": "Status", "code": refusal.code, "reason": reason, "message": str(refusal)}
            self.send(refusal.code, status, refusal.headers)
        except Drop:
            self.close_connection = True
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _do

    def send(self, code: int, content: Any, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(text)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()

    def stream(self, content: Any) -> None:
        text = json.dumps(content).encode() + b"\n"
        self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
        self.wfile.flush()

    def end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def broken(self) -> bool:
        return self.connection.fileno() < 0

    def log_message(self, *_: Any) -> None:
        """Tests look at :attr:`ApiServer.requests`."""


def _handler(api: ApiServer) -> type[_Handler]:
    return type("Handler", (_Handler,), {"api": api})


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


@dataclass
class Behaviour:
    """How the pods of a workload fare.

    Attributes:
        start_seconds: until they are ready.
        stop_seconds: until they have ended.
        broken: why they never become ready: a reason a container waits, ``Unschedulable``, or ``silent``.
    """

    start_seconds: float = 0.1
    stop_seconds: float = 0.1
    broken: str = ""


@dataclass
class Kubelet:
    """The rest of a cluster: pods of workloads, and what becomes of them.

    Attributes:
        api: where the objects are.
        cores: that all pods of replicas may request together; more are unschedulable.
        folder: of the files of real processes, on addresses of the loopback interface; without it pods are mere words.
        behaviours: of pods by the name of their workload.
        most_cores: that the pods of replicas ever held.
        slow_collection: seconds from the deletion of a workload until its pods are told to end.
    """

    api: ApiServer
    folder: Path | None = None
    cores: float = 1e9
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    most_cores: float = 0.0
    slow_collection: float = 0.0

    def __post_init__(self) -> None:
        self._pods: dict[str, _PodLife] = {}
        # Of this process alone, as test processes run side by side.
        self._net = f"127.{20 + os.getpid() % 200}"
        self._addresses = (f"{self._net}.{a}.{b}" for a in count(1) for b in range(1, 250))
        self._numbers = count()
        self._gone_since: dict[str, float] = {}
        self._closing = threading.Event()
        self._http = requests.Session()
        self._http.trust_env = False
        self.api.proxy = self._proxy
        self._thread = threading.Thread(target=self._run, daemon=True, name="kubelet")
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        for life in self._pods.values():
            life.kill()

    def behave(self, workload: str, **behaviour: Any) -> None:
        """Set how the pods of a workload fare from now on."""
        self.behaviours[workload] = Behaviour(**behaviour)

    def _run(self) -> None:
        while not self._closing.wait(0.02):
            with self.api.changed:
                self._control()
            self._advance()

    # ------------------------------------------------------------------------------------- workloads to pods

    def _control(self) -> None:
        workloads, now = {}, time.monotonic()
        for key, workload in list(self.api.objects.items()):
            if key[1] in ("deployments", "seldondeployments"):
                workloads[key[3]] = (key, workload)
        for name in {life.workload for life in self._pods.values()}:
            self._gone_since[name] = now if name in workloads else self._gone_since.get(name, now)
            if name not in workloads and now - self._gone_since[name] >= self.slow_collection:
                self._shrink(name, 0)
        for name, (key, workload) in workloads.items():
            spec = workload["spec"]
            predictor = spec["predictors"][0] if key[1] == "seldondeployments" else None
            wanted = predictor["replicas"] if predictor else spec.get("replicas", 1)
            template = predictor["componentSpecs"][0] if predictor else spec["template"]
            version = json.dumps(template, sort_keys=True)
            strategy = spec.get("strategy") or {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
            self._roll(name, wanted, version, strategy)
            lives = [life for life in self._pods.values() if life.workload == name]
            waits = strategy.get("type") == "Recreate" and any(life.leaving for life in lives)
            alive = [life for life in lives if not life.leaving]
            new = sum(life.version == version for life in alive)
            surge = strategy.get("rollingUpdate", {}).get("maxSurge", 0)
            for _ in range(0 if waits else min(wanted - new, wanted + surge - len(alive))):
                self._new_pod(name, key[2], template, version)
            self._note_status(key, workload, wanted, version)

    def _roll(self, workload: str, wanted: int, version: str, strategy: dict) -> None:
        """Tell pods of a former template to end as far as the strategy lets them, and those that are too many."""
        alive = [life for life in self._pods.values() if life.workload == workload and not life.leaving]
        old = [life for life in alive if life.version != version]
        ready = sum(life.ready for life in alive)
        least = 0 if strategy.get("type") == "Recreate" else wanted - strategy["rollingUpdate"]["maxUnavailable"]
        for life in old:
            if not life.ready or ready - 1 >= least:
                ready -= life.ready
                self.api._delete(life.key, False)
        if not old:
            self._shrink(workload, wanted)

    def _shrink(self, workload: str, wanted: int) -> None:
        alive = [life for life in self._pods.values() if life.workload == workload and not life.leaving]
        for life in alive[wanted:]:
            self.api._delete(life.key, False)

    def _new_pod(self, workload: str, namespace: str, template: dict, version: str) -> None:
        name = f"{workload}-{next(self._numbers):04d}"
        key = ("v1", "pods", namespace, name)
        metadata = {"name": name, **deepcopy(template["metadata"])}
        spec = {**deepcopy(template["spec"]), "nodeName": "node"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
        self.api._create(key[:3], pod, False)
        self._pods[name] = _PodLife(key, workload, version, next(self._addresses), _cpu(spec), _is_model(metadata))
        held = sum(life.cores for life in self._pods.values() if life.is_model)
        self.most_cores = max(self.most_cores, held)

    def _note_status(self, key: tuple, workload: dict, wanted: int, version: str) -> None:
        alive = [life for life in self._pods.values() if life.workload == key[3] and not life.leaving]
        status = {"replicas": len(alive), "readyReplicas": sum(life.ready for life in alive)}
        if key[1] == "deployments":
            updated = sum(life.version == version for life in alive)
            status |= {"observedGeneration": workload["metadata"]["generation"], "updatedReplicas": updated}
        else:
            status["state"] = "Available" if status["readyReplicas"] >= wanted else "Creating"
        status |= self.behaviours_status(key[3])
        if workload.get("status") != status:
            self.api._store(key, {**workload, "status": status})

    def behaviours_status(self, workload: str) -> dict:
        """Conditions of a workload whose pods the cluster refuses to make."""
        behaviour = self.behaviours.get(workload, Behaviour())
        if not behaviour.broken.startswith("quota"):
            return {}
        condition = {"type": "ReplicaFailure", "status": "True", "message": behaviour.broken}
        return {"conditions": [condition]}

    # ------------------------------------------------------------------------------------- the life of pods

    def _advance(self) -> None:
        for name, life in list(self._pods.items()):
            pod = self.api.objects.get(life.key)
            if pod is None:
                life.kill()
                del self._pods[name]
            elif pod["metadata"].get("deletionTimestamp"):
                if self._end(life, pod):
                    del self._pods[name]
                    self.api.remove(life.key)
            elif not life.ready or life.process is not None:
                self._begin(life, pod)

    def _begin(self, life: _PodLife, pod: dict) -> None:
        behaviour = self.behaviours.get(life.workload, Behaviour())
        held = sum(other.cores for other in self._pods.values() if other.is_model and other.placed)
        if not life.placed and life.is_model and held + life.cores > self.cores or behaviour.broken == "Unschedulable":
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self._set(life, {"phase": "Pending", "conditions": [{**condition, "message": "1 Insufficient cpu"}]})
            return
        life.placed = True
        if self.folder is not None and life.process is None:
            life.process = self._start(life, pod)
        if behaviour.broken:
            waiting = {"reason": behaviour.broken, "message": "as the test wants"}
            container = {"name": "server", "state": {"waiting": waiting}}
            if behaviour.broken != "silent" and not behaviour.broken.startswith("quota"):
                self._set(life, {"phase": "Pending", "containerStatuses": [container]})
            return
        if life.process is not None:
            life.ready = self._probe(life, pod)
        else:
            life.ready = time.monotonic() - life.born > behaviour.start_seconds
        ready = {"type": "Ready", "status": "True" if life.ready else "False"}
        self._set(life, {"phase": "Running", "podIP": life.address, "conditions": [ready]})

    def _set(self, life: _PodLife, status: dict) -> None:
        with self.api.changed:
            pod = self.api.objects.get(life.key)
            if pod is not None and pod["status"] != status:
                self.api._store(life.key, {**deepcopy(pod), "status": status})

    def _end(self, life: _PodLife, pod: dict) -> bool:
        now = time.monotonic()
        life.leaving, life.ready = True, False
        life.told = life.told or now
        if life.process is None:
            return now - life.told > self.behaviours.get(life.workload, Behaviour()).stop_seconds
        container = pod["spec"]["containers"][0]
        command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        if now - life.told > float(command[1]) and not life.terminated:
            life.process.terminate()
            life.terminated = True
        if now - life.told > pod["spec"].get("terminationGracePeriodSeconds", 30):
            life.process.kill()
        if life.process.poll() is None:
            return False
        life.kill()
        return True

    # ------------------------------------------------------------------------------------- real processes

    def _start(self, life: _PodLife, pod: dict) -> subprocess.Popen:
        assert self.folder is not None
        spec = pod["spec"]
        container = spec["containers"][0]
        volume = next(volume for volume in spec["volumes"] if "configMap" in volume)
        document = self.api.find("configmaps", volume["configMap"]["name"])["data"]
        settings = json.loads(document[Path(container["args"][0]).name])
        life.address = self._service_address(pod["metadata"]["labels"]) or life.address
        settings |= {"host": life.address, "end_with_parent": True}
        text = json.dumps(settings)
        for service in self.api.all("services"):
            name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
            address = self._service_address(service["spec"]["selector"])
            text = text.replace(f"{name}.{namespace}.svc", str(address))
        path = self.folder / f"{pod['metadata']['name']}.json"
        path.write_text(text)
        environment = {each["name"]: each["value"] for each in container["env"] if each["name"] != "HOME"}
        environment["OPD_MODEL_CACHE"] = str(self.folder / "cache" / pod["metadata"]["name"])
        with (self.folder / f"{pod['metadata']['name']}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *container["command"][1:], str(path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    def _service_address(self, labels: dict) -> str | None:
        """The address of the one pod behind a Service, which it keeps when it is replaced."""
        for number, service in enumerate(self.api.all("services")):
            if service["spec"]["selector"].items() <= labels.items():
                return f"{self._net}.0.{number + 1}"
        return None

    def _probe(self, life: _PodLife, pod: dict) -> bool:
        now = time.monotonic()
        if now < life.next_probe:
            return life.ready
        life.next_probe = now + (1.0 if life.ready else 0.2)
        container = pod["spec"]["containers"][0]
        probe = container["readinessProbe"]["httpGet"]
        port = next(each["containerPort"] for each in container["ports"] if each["name"] == probe["port"])
        try:
            return self._http.get(f"http://{life.address}:{port}{probe['path']}", timeout=1).ok
        except requests.RequestException:
            return False

    # ------------------------------------------------------------------------------------- asking pods

    def _proxy(self, pod: dict, port: int, path: str) -> Any:
        if self.folder is not None:
            answer = self._http.get(f"http://{pod['status']['podIP']}:{port}{path}", timeout=2)
            return answer.json()
        return self._queue_status(pod)

    def _queue_status(self, pod: dict) -> dict:
        """What a queue would answer that has seen the state of the cluster."""
        labels = pod["metadata"]["labels"]
        task = labels["opd.io/task"]
        stage = self.api.find("configmaps", f"{labels['app.kubernetes.io/instance']}-{task}-stage")["data"]
        replicas = [
            {"name": each["metadata"]["name"], "variant": stage["variant"], "retired": False}
            for each in self.api.all("pods", opd_io__task=task)
            if each["metadata"]["labels"].get("opd.io/variant") == stage["variant"]
            and not each["metadata"].get("deletionTimestamp")
            and {"type": "Ready", "status": "True"} in each["status"].get("conditions", [])
        ]
        return {"batch_size": int(stage["batch_size"]), "waiting": 0, "replicas": replicas}


@dataclass
class _PodLife:
    key: tuple
    workload: str
    version: str
    address: str
    cores: float
    is_model: bool
    born: float = field(default_factory=time.monotonic)
    told: float = 0.0
    next_probe: float = 0.0
    placed: bool = False
    ready: bool = False
    leaving: bool = False
    terminated: bool = False
    process: subprocess.Popen | None = None

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(5)
            if self.process.stdin is not None:
                self.process.stdin.close()


def _cpu(spec: dict) -> float:
    given = str(spec["containers"][0].get("resources", {}).get("requests", {}).get("cpu", "0"))
    return float(given[:-1]) / 1000 if given.endswith("m") else float(given)


def _is_model(metadata: dict) -> bool:
    return metadata["labels"].get("app.kubernetes.io/component") == "model"


class Prometheus:
    """Answers the queries of the control loop as a Prometheus server does, for a pipeline with a steady load.

    Args:
        pipeline: whose metrics there are.
        load: requests/s.

    Attributes:
        state: ``good``, ``empty``, ``stale``, ``nan``, ``late`` or ``failing``.
    """

    def __init__(self, pipeline: Any, load: float = 5.0) -> None:
        self.pipeline, self.load, self.state = pipeline, load, "good"
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_PrometheusHandler,), {"prometheus": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True, name="prometheus").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.break_connections()

    def answer(self, query: str) -> list[dict]:
        """The series of a query such as ``metric{pipeline="p"}[10000ms]``."""
        metric = re.split(r"[{\[]", query)[0]
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', query))
        seconds = float(re.findall(r"\[(\d+)ms\]", query)[0]) / 1000
        end = time.time() - (60 if self.state == "stale" else 0)
        times = [end - age for age in range(int(seconds), -1, -1)]
        found = [] if self.state == "empty" else self._series(metric)
        return [
            {"metric": labels, "values": [[t, "NaN" if self.state == "nan" else str(value(t))] for t in times]}
            for labels, value in found
            if wanted.items() <= labels.items()
        ]

    def _series(self, metric: str) -> list[tuple[dict, Callable[[float], float]]]:
        labels = {"__name__": metric, "pipeline": self.pipeline.name, "instance": "all"}
        tasks = [{**labels, "task": task.name} for task in self.pipeline.tasks]

        def counter(t: float) -> float:
            return self.load * (t - 1e9)

        def zero(_: float) -> float:
            return 0.0

        def one(_: float) -> float:
            return 1.0

        if metric == "opd_requests_total":
            return [(labels, counter)]
        if metric == "opd_answers_total":
            return [({**labels, "outcome": "completed"}, counter)]
        if metric == "opd_stage_queue_length":
            return [(each, zero) for each in tasks]
        if metric == "opd_stage_replicas":
            first = zip(tasks, self.pipeline.tasks, strict=True)
            return [({**each, "variant": task.variants[0].name}, one) for each, task in first]
        return [({"__name__": "up", "instance": "all"}, one)] if metric == "up" else []


class _PrometheusHandler(_Handler):
    prometheus: Prometheus

    def _do(self) -> None:
        query = parse_qs(urlsplit(self.path).query).get("query", [""])[0]
        if self.prometheus.state == "late":
            time.sleep(5)
        if self.prometheus.state == "failing":
            self.send(500, {"status": "error", "error": "out of order"})
        else:
            result = self.prometheus.answer(query)
            self.send(200, {"status": "success", "data": {"resultType": "matrix", "result": result}})
        self.wfile.flush()

    do_GET = do_POST = _do
