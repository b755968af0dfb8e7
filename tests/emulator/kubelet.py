"""The rest of an emulated cluster: makes the pods of workloads, lets them become ready or break, and ends them again.

With a ``folder`` the pods are real server processes on addresses of the loopback interface.
"""

from __future__ import annotations

import json
import os
import threading
import time
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from emulator.api_server import ApiServer
from emulator.pods import (
    BACKOFF_SECONDS,
    Behaviour,
    PodLife,
    PodProcesses,
    images_of,
    is_model,
    is_ready,
    requested_cpu,
    running_status,
)


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
        pull_seconds: that the stamps tell of a pull, which nothing takes: of an image that no ready pod has had.
        skew: seconds by which the clock of the node is ahead of that of the API server.
        evicted: names of pods that are ended at once because memory ran out; they stay in the list, as failed.
        unseen: names of pods on a node that the cluster has lost sight of: they may serve on, but count as not ready.
    """

    api: ApiServer
    folder: Path | None = None
    cores: float = 1e9
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    most_cores: float = 0.0
    slow_collection: float = 0.0
    pull_seconds: float = 0.0
    skew: float = 0.0
    evicted: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._pods: dict[str, PodLife] = {}
        # One network for each test process, as several run at once.
        net = f"127.{20 + os.getpid() % 200}"
        self._addresses = (f"{net}.{a}.{b}" for a in count(1) for b in range(1, 250))
        self._numbers = count()
        self._gone_since: dict[str, float] = {}
        self._images: set[str] = set()
        self._closing = threading.Event()
        self._processes = PodProcesses(self.api, self.folder) if self.folder else None
        self.api.proxy = self._processes.get if self._processes else lambda pod, _, path: self._stage_status(pod, path)
        self._thread = threading.Thread(target=self._run, daemon=True, name="kubelet")
        self._thread.start()

    def close(self) -> None:
        """End every pod."""
        self._closing.set()
        self._thread.join(5)
        for life in self._pods.values():
            life.kill()

    def behave(self, workload: str, **behaviour: Any) -> None:
        """Set how the pods of a workload fare from now on."""
        self.behaviours[workload] = Behaviour(**behaviour)

    def pid(self, name: str) -> int:
        """The process of a pod; 0 before it is started."""
        process = self._pods[name].process
        return process.pid if process else 0

    def _run(self) -> None:
        while not self._closing.wait(0.02):
            with self.api.changed:
                self._control()
            self._advance()

    # ------------------------------------------------------------------------------------- workloads to pods

    def _control(self) -> None:
        workloads, now = {}, time.monotonic()
        for key, workload in list(self.api.objects.items()):
            if key[1] in ("deployments", "seldondeployments", "daemonsets"):
                workloads[key[3]] = (key, workload)
        for name in {life.workload for life in self._pods.values()}:
            self._gone_since[name] = now if name in workloads else self._gone_since.get(name, now)
            if name not in workloads and now - self._gone_since[name] >= self.slow_collection:
                self._shrink(name, 0)
        for name, (key, workload) in workloads.items():
            spec = workload["spec"]
            predictor = spec["predictors"][0] if key[1] == "seldondeployments" else None
            wanted = spec.get("replicas", 1)  # there is one node
            template = predictor["componentSpecs"][0] if predictor else spec["template"]
            version = json.dumps(template, sort_keys=True)
            surge = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
            strategy = spec.get("strategy") or ({"type": "Recreate"} if key[1] == "daemonsets" else surge)
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
                self.api.delete(life.key)
        if not old:
            self._shrink(workload, wanted)

    def _shrink(self, workload: str, wanted: int) -> None:
        alive = [life for life in self._pods.values() if life.workload == workload and not life.leaving]
        for life in alive[wanted:]:
            self.api.delete(life.key)

    def _new_pod(self, workload: str, namespace: str, template: dict, version: str) -> None:
        name = f"{workload}-{next(self._numbers):04d}"
        key = ("v1", "pods", namespace, name)
        metadata = {"name": name, **deepcopy(template["metadata"])}
        spec = {**deepcopy(template["spec"]), "nodeName": "node"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}
        self.api.create(key[:3], pod)
        cores, address = requested_cpu(spec), next(self._addresses)
        self._pods[name] = PodLife(key, workload, version, address, cores, is_model(metadata))
        held = sum(life.cores for life in self._pods.values() if life.is_model)
        self.most_cores = max(self.most_cores, held)

    def _note_status(self, key: tuple, workload: dict, wanted: int, version: str) -> None:
        alive = [life for life in self._pods.values() if life.workload == key[3] and not life.leaving]
        status = {"replicas": len(alive), "readyReplicas": sum(life.ready for life in alive)}
        updated = sum(life.version == version for life in alive)
        if key[1] == "daemonsets":
            generation, ready = workload["metadata"]["generation"], status["readyReplicas"]
            status = {"observedGeneration": generation, "desiredNumberScheduled": wanted}
            status |= {"updatedNumberScheduled": updated, "numberReady": ready}
        elif key[1] == "deployments":
            status |= {"observedGeneration": workload["metadata"]["generation"], "updatedReplicas": updated}
        else:
            serves = 0 < status["readyReplicas"] >= wanted  # without replicas it stays in the other state
            status["state"] = "Available" if serves else "Creating"
        status |= self.behaviours_status(key[3])
        if workload.get("status") != status:
            self.api.store(key, {**workload, "status": status})

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
            elif name in self.evicted:
                del self._pods[name]
                life.kill()
                status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
                self._set(life, {**status, "conditions": [{"type": "Ready", "status": "False"}]})
            elif not life.ready or life.process is not None or name in self.unseen:
                self._begin(life, pod)

    def _begin(self, life: PodLife, pod: dict) -> None:
        if pod["metadata"]["name"] in self.unseen:
            life.ready = False
            self._set(life, {**pod["status"], "conditions": [{"type": "Ready", "status": "False"}]})
            return
        behaviour = self.behaviours.get(life.workload, Behaviour())
        held = sum(other.cores for other in self._pods.values() if other.is_model and other.placed)
        if not life.placed and life.is_model and held + life.cores > self.cores or behaviour.broken == "Unschedulable":
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
            self._set(life, {"phase": "Pending", "conditions": [{**condition, "message": "1 Insufficient cpu"}]})
            return
        if not life.placed:
            life.pulled = self.pull_seconds * len(images_of(pod) - self._images)
        life.placed = True
        if self._processes is not None and not self._runs(life, pod):
            return
        if behaviour.broken:
            waiting = {"reason": behaviour.broken, "message": "as the test wants"}
            container = {"name": "server", "state": {"waiting": waiting}}
            if behaviour.broken == "ended":
                words = "Traceback (most recent call last):\n  ...\nValueError: the weights are damaged"
                container["state"] = {"terminated": {"exitCode": 1, "reason": "Error", "message": words}}
            if behaviour.broken != "silent" and not behaviour.broken.startswith("quota"):
                self._set(life, {"phase": "Pending", "containerStatuses": [container]})
            return
        if self._processes is not None:
            life.ready = self._processes.probe(life, pod)
            life.loaded = life.loaded or (time.monotonic() - life.born if life.ready else 0.0)
        else:
            life.ready = time.monotonic() - life.born > behaviour.start_seconds
        if life.ready:
            self._images |= images_of(pod)
        self._set_running(life, pod)

    def _runs(self, life: PodLife, pod: dict) -> bool:
        """Start the server of a pod, and again when it has ended: the first time at once, then after a pause."""
        assert self._processes is not None
        if life.process is not None and life.process.poll() is not None:
            life.last_end = self._processes.last_end(life, pod)
            life.restarts, life.waits_until = life.restarts + 1, time.monotonic()
            life.waits_until += BACKOFF_SECONDS if life.restarts > 1 else 0.0
            life.kill()
            life.process, life.ready = None, False
            self._set_running(life, pod)
        if life.process is not None:
            return True
        if not life.backs_off:
            life.process = self._processes.start(life, pod)
        return life.process is not None

    def _set_running(self, life: PodLife, pod: dict) -> None:
        phases = self.behaviours.get(life.workload, Behaviour()).stamped
        self._set(life, running_status(pod, life, phases, self.skew))

    def _set(self, life: PodLife, status: dict) -> None:
        with self.api.changed:
            pod = self.api.objects.get(life.key)
            if pod is not None and pod["status"] != status:
                self.api.store(life.key, {**deepcopy(pod), "status": status})

    def _end(self, life: PodLife, pod: dict) -> bool:
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

    # ------------------------------------------------------------------------------------- asking pods

    def _stage_status(self, pod: dict, path: str) -> dict:
        """What a gateway would answer that has seen the state of the cluster."""
        labels, task = pod["metadata"]["labels"], path.removeprefix("/stages/")
        stage = self.api.find("configmaps", f"{labels['app.kubernetes.io/instance']}-{task}-stage")["data"]
        replicas = [
            {"name": each["metadata"]["name"], "variant": stage["variant"], "retired": False}
            for each in self.api.all("pods", opd_io__task=task)
            if each["metadata"]["labels"].get("opd.io/variant") == stage["variant"]
            and not each["metadata"].get("deletionTimestamp")
            and is_ready(each)
        ]
        return {"batch_size": int(stage["batch_size"]), "waiting": 0, "replicas": replicas}
