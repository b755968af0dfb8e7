"""Pods of the emulated cluster: their state, and the real processes that may stand for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import requests
from deadlines import terminating

from emulator.api_server import ApiServer


@dataclass
class Behaviour:
    """How the pods of a workload fare.

    Attributes:
        start_seconds: until they are ready.
        stop_seconds: until they have ended.
        broken: why they never become ready: a reason a container waits, ``Unschedulable``, ``ended`` or ``silent``.
        stamped: seconds that the stamps of a pod tell, which nothing takes: until a node has it, until its container
            runs without a pull of the image, and until it is ready; a real process takes longer until then.
    """

    start_seconds: float = 0.1
    stop_seconds: float = 0.1
    broken: str = ""
    stamped: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass
class PodLife:
    """What the kubelet knows of a pod; times are monotonic seconds."""

    key: tuple
    workload: str
    version: str
    address: str
    cores: float
    is_model: bool
    born: float = field(default_factory=time.monotonic)
    told: float = 0.0
    pulled: float = 0.0
    loaded: float = 0.0
    next_probe: float = 0.0
    placed: bool = False
    ready: bool = False
    leaving: bool = False
    terminated: bool = False
    process: subprocess.Popen | None = None
    log_begin: int = 0
    restarts: int = 0
    last_end: dict = field(default_factory=dict)
    waits_until: float = 0.0

    @property
    def backs_off(self) -> bool:
        """Whether the container waits until it may be started again."""
        return time.monotonic() < self.waits_until

    def kill(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            with terminating(self.process, 0):
                pass


def running_status(pod: dict, life: PodLife, phases: tuple[float, float, float], skew: float) -> dict:
    """The status of a pod whose container has been started, with the stamps of API server and node.

    Args:
        pod: its creation is the first stamp.
        life: seconds of the pull, whether it is ready, and what a real process took for that.
        phases: ``Behaviour.stamped``.
        skew: seconds by which the clock of the node is ahead.
    """
    scheduling, image, loading = phases
    scheduled = datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) + timedelta(seconds=scheduling)
    taken = scheduled + timedelta(seconds=skew)
    started = taken + timedelta(seconds=image + life.pulled)
    became = started + timedelta(seconds=loading + life.loaded if life.ready else 0.0)
    stamp = "{:%Y-%m-%dT%H:%M:%SZ}".format
    state: dict[str, Any] = {"running": {"startedAt": stamp(started)}}
    if life.backs_off:
        state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}
    last = {"lastState": {"terminated": life.last_end}} if life.last_end else {}
    return {
        "phase": "Running",
        "podIP": life.address,
        "startTime": stamp(taken),
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(scheduled)},
            {"type": "Ready", "status": "True" if life.ready else "False", "lastTransitionTime": stamp(became)},
        ],
        "containerStatuses": [
            {"name": each["name"], "ready": life.ready, "restartCount": life.restarts, "state": state, **last}
            for each in pod["spec"]["containers"]
        ],
    }


def requested_cpu(spec: dict) -> float:
    """Cores that the first container requests."""
    given = str(spec["containers"][0].get("resources", {}).get("requests", {}).get("cpu", "0"))
    return float(given[:-1]) / 1000 if given.endswith("m") else float(given)


def images_of(pod: dict) -> set[str]:
    """Images of all containers of a pod."""
    return {each["image"] for kind in ("containers", "initContainers") for each in pod["spec"].get(kind, ())}


def is_model(metadata: dict) -> bool:
    """Return whether a pod with this metadata is a replica."""
    return metadata["labels"].get("app.kubernetes.io/component") == "model"


def is_ready(pod: dict) -> bool:
    """Return whether the probe of a pod has succeeded."""
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


OURS = ("HOME", "POD_NAME")
"""Variables whose values in a real pod would be wrong or unknown here."""


MESSAGE_BYTES, MESSAGE_LINES = 2048, 80
"""Of the log of a failed container, which a cluster keeps as its message."""

BACKOFF_SECONDS = 1.0
"""Pause before a container that has failed twice is started again; that of a cluster begins with ten seconds."""


class PodProcesses:
    """Servers as the containers of pods, on addresses of the loopback interface.

    Args:
        api: where ConfigMaps are.
        folder: of settings, logs and caches.
    """

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self._api, self._folder = api, folder
        self._http = requests.Session()
        self._http.trust_env = False

    def start(self, life: PodLife, pod: dict) -> subprocess.Popen:
        """Start the server of a pod with the settings of its ConfigMap."""
        spec = pod["spec"]
        container = spec["containers"][0]
        volume = next(volume for volume in spec["volumes"] if "configMap" in volume)
        document = self._api.find("configmaps", volume["configMap"]["name"])["data"]
        settings = json.loads(document[Path(container["args"][0]).name])
        settings |= {"host": life.address, "end_with_parent": True}
        path = self._folder / f"{pod['metadata']['name']}.json"
        path.write_text(json.dumps(settings))
        environment = {each["name"]: each["value"] for each in container["env"] if each["name"] not in OURS}
        environment["POD_NAME"] = pod["metadata"]["name"]
        environment["OPD_MODEL_CACHE"] = str(self._folder / "cache" / pod["metadata"]["name"])
        with (self._folder / f"{pod['metadata']['name']}.log").open("ab") as log:
            life.log_begin = log.tell()
            return subprocess.Popen(
                [sys.executable, *container["command"][1:], str(path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment},
            )

    def last_end(self, life: PodLife, pod: dict) -> dict:
        """How a container has ended; of one that failed the last lines of its log, as far as a cluster keeps them."""
        assert life.process is not None
        code = life.process.returncode
        ended = {"exitCode": code if code >= 0 else 128 - code, "reason": "Error" if code else "Completed"}
        policy = pod["spec"]["containers"][0].get("terminationMessagePolicy")
        if code and policy == "FallbackToLogsOnError":
            log = (self._folder / f"{pod['metadata']['name']}.log").read_bytes()[life.log_begin :]
            lines = log[-MESSAGE_BYTES:].decode(errors="replace").splitlines()
            ended["message"] = "\n".join(lines[-MESSAGE_LINES:])
        return ended

    def probe(self, life: PodLife, pod: dict) -> bool:
        """Answer of the readiness probe, asked every second once ready, every 0.2 s before."""
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

    def get(self, pod: dict, port: int, path: str) -> Any:
        """The answer of a pod to a GET."""
        return self._http.get(f"http://{pod['status']['podIP']}:{port}{path}", timeout=2).json()
