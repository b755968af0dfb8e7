"""A pipeline of two tasks on an emulated cluster: an empty namespace, or one where it is deployed already."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from deadlines import PATIENCE, eventually
from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet
from emulator.prometheus import Prometheus
from small_pipelines import stages

from opd.cluster.api import Cluster
from opd.cluster.backend import ChangeTimes, KubernetesBackend
from opd.cluster.connection import RetryPolicy, credentials
from opd.cluster.deletion import delete_pipeline
from opd.cluster.lease import LeaseTimes
from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.names import DEPLOY_MANAGER
from opd.cluster.owned_objects import apply_objects
from opd.cluster.pods import is_ready
from opd.cluster.resources import ObjectChange
from opd.cluster.settings import ClusterSettings
from opd.cluster.status import wait_until_serving
from opd.control.policies import Policy
from opd.measurement import Observation
from opd.pipeline import Configuration, Pipeline, ServiceLevel, Task, Variant
from opd.serving.monitoring.prometheus import PrometheusUrl

QUICK = RetryPolicy(connect_seconds=0.5, read_seconds=1.0, attempts=4, first_pause=0.02, longest_pause=1.0)
SHORT_CALLS = RetryPolicy(connect_seconds=0.5, read_seconds=0.5, attempts=3, first_pause=0.02, longest_pause=1.0)
TIMES = ChangeTimes(poll_seconds=0.02, unschedulable_seconds=0.5, switch_seconds=2.0)
OFTEN = LeaseTimes(duration=30.0, renewal=20.0, retry=0.1)
"""Renewed often, and not lost by a machine that stands still for a second."""
SMALL, LARGE, THIRD = 0, 1, 2


def tiny_pipeline(capacity: int = 6) -> Pipeline:
    """Two tasks with the same three variants, of 1, 2 and 2 cores."""
    profile = dict.fromkeys((1, 2, 4), 0.05)
    variants = tuple(Variant(name, 0.5, cores, profile, 2.0) for name, cores in (("small", 1), ("large", 2), ("x", 2)))
    tasks = (Task("first", variants), Task("second", variants))
    return Pipeline("tiny", tasks, capacity=capacity, max_replicas=3, max_batch_size=4, service_level=ServiceLevel(1.0))


INITIAL = stages((SMALL, 1, 1), (SMALL, 1, 1))
WANTED = stages((LARGE, 1, 2), (SMALL, 1, 1))


def settings(**changes: Any) -> ClusterSettings:
    """Settings that are valid, with these changes."""
    return ClusterSettings(
        **{"namespace": "space", "image": "opd:1", "store": "/models", "apply_seconds": 4 * PATIENCE, **changes}
    )


def node(name: str = "n", cpu: str = "4", ready: str = "True", labels: Any = None, **spec: Any) -> dict:
    """A node without pods."""
    status = {"allocatable": {"cpu": cpu}, "conditions": [{"type": "Ready", "status": ready}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec, "status": status}


def config_map(name: str = "settings", **data: str) -> dict:
    """A ConfigMap with a label of its name."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"of": name}}, "data": data}


class FixedPolicy(Policy):
    """Always decides the same."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration

    def decide(self, observation: Observation) -> Configuration:
        return self.configuration


def lease_spec(api: ApiServer) -> dict:
    """The specification of the controllers' Lease."""
    return dict(api.find("leases", "tiny-controller")["spec"])


class TinyCluster:
    """A namespace of an emulated cluster, empty at first; its context ends everything."""

    def __init__(self, folder: Path, capacity: int = 6) -> None:
        self.pipeline = tiny_pipeline(capacity)
        self.api = ApiServer()
        self.kubelet = Kubelet(self.api)
        self.config = kubeconfig(self.api, folder)
        self.cluster = Cluster("space", lambda: credentials(str(self.config)), QUICK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kubelet.close()
        self.api.stop()

    def manifests(self, configuration: Configuration = INITIAL, **changes: Any) -> list[dict]:
        """Of all objects, for settings with these changes."""
        return pipeline_objects(self.pipeline, configuration, settings(**changes))

    def deploy(self, configuration: Configuration = INITIAL, **changes: Any) -> set[str]:
        """What became of the objects."""
        found = list(apply_objects(self.cluster, self.manifests(configuration, **changes)))
        wait_until_serving(self.cluster, "tiny", PATIENCE)
        return {each.outcome for each in found}

    def delete(self, seconds: float = PATIENCE) -> list[ObjectChange]:
        """What was deleted."""
        return list(delete_pipeline(self.cluster, "tiny", seconds))

    def names(self, plural: str) -> set[str]:
        """Of all objects of a kind."""
        return {each["metadata"]["name"] for each in self.api.all(plural)}

    def ready_replicas(self, task: str) -> list[dict]:
        """Pods of replicas that are ready."""
        found = self.api.all("pods", opd_io__task=task, app_kubernetes_io__component="model")
        return [pod for pod in found if is_ready(pod)]


class TinyDeployment(TinyCluster):
    """A deployed pipeline and its Prometheus."""

    def __init__(self, folder: Path, flavour: str = "deployment", capacity: int = 6) -> None:
        super().__init__(folder, capacity)
        self.settings = settings(flavour=flavour)
        self.prometheus = Prometheus(self.pipeline)
        self.announced: list[tuple[str, str]] = []
        for manifest in pipeline_objects(self.pipeline, INITIAL, self.settings):
            self.api.put(manifest, DEPLOY_MANAGER)
        eventually(lambda: self.pods("first") == self.pods("second") == {"small": 1})
        eventually(self.gateway_ready)

    def __exit__(self, *raised: Any) -> None:
        self.prometheus.close()
        super().__exit__(*raised)

    def backend(self, kind: type[KubernetesBackend] = KubernetesBackend, **changes: Any) -> KubernetesBackend:
        """A backend of the deployed pipeline, with other arguments than usual."""
        arguments = {"times": TIMES, "announce": lambda *words: self.announced.append(words), **changes}
        chosen = arguments.pop("settings", self.settings)
        monitor = PrometheusUrl(self.prometheus.url)
        return kind(self.cluster, self.pipeline, chosen, monitor, 0.2, **arguments)

    def pods(self, task: str) -> dict[str, int]:
        """Number of ready replicas by variant."""
        names = [pod["metadata"]["labels"]["opd.io/variant"] for pod in self.ready_replicas(task)]
        return {name: names.count(name) for name in names}

    def gateway_ready(self) -> bool:
        """Return whether a gateway serves."""
        return any(map(is_ready, self.api.all("pods", app_kubernetes_io__component="gateway")))

    def state(self, task: str) -> dict[str, str]:
        """What a stage's ConfigMap holds."""
        return dict(self.api.find("configmaps", f"tiny-{task}-stage")["data"])

    def workloads(self) -> set[str]:
        """Names of the workloads that are to have replicas."""
        kind = "seldondeployments" if self.settings.flavour == "seldon" else "deployments"
        found = self.api.all(kind, app_kubernetes_io__component="model")
        return {each["metadata"]["name"] for each in found if replicas_of(each)}
