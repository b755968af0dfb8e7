"""The command line for a tiny pipeline on an emulated cluster."""

from __future__ import annotations

from pathlib import Path

from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet

from opd import cli
from opd.cluster.manifests.workloads import replicas_of

ROOT = Path(__file__).parents[1]

PIPELINE = """
name: tiny
device: {cores: 6}
limits: {replicas: 3, batch_size: 4}
objective: {latency: {seconds: 1.0}}
tasks:
  - name: first
    variants:
      - {name: small, model: store, accuracy: 0.5, cores: 1}
      - {name: large, model: store, accuracy: 0.6, cores: 2}
  - name: second
    variants:
      - {name: small, model: store, accuracy: 0.5, cores: 1}
"""

PROFILED = ("first,small,1", "first,large,2", "first,stage,2", "second,small,1", "third,small,1")
"""Task, variant and cores of everything that these tests deploy."""


def profile() -> str:
    """The profile: every call takes 50 ms, every start 2 s."""
    rows = [f"{variant},{size},0.05,measured,2" for variant in PROFILED for size in (1, 2, 4)]
    return "\n".join(["task,variant,cores,batch_size,latency_mean,kind,startup_seconds", *rows])


class Shell:
    """Calls the command line for one pipeline, namespace and cluster.

    Args:
        folder: for files.
        capsys: captures the output of each call, which is in ``out`` and ``err`` then.
    """

    def __init__(self, folder, capsys):
        self.api, self.folder, self._capsys = ApiServer(), folder, capsys
        self.kubelet = Kubelet(self.api)
        self.config = kubeconfig(self.api, folder)
        self.file = self.write("tiny.yaml", PIPELINE)
        self.write("profile.csv", profile())

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def __call__(self, command, *options, pipeline=None, namespace="space"):
        place = [f"--namespace={namespace}"] if namespace is not None else []
        given = [command, str(pipeline or self.file), f"--kubeconfig={self.config}", *place, *options]
        code = cli.main(given)
        self.out, self.err = self._capsys.readouterr()
        return code

    def deploy(self, *options, **place):
        return self("deploy", "--image=opd:1", "--store=/models", "--wait=10", *options, **place)

    def stage(self, task):
        return self.api.find("configmaps", f"tiny-{task}-stage")["data"]

    def writes(self):
        return [(method, target) for method, target, _ in self.api.requests if method != "GET"]

    def names(self, plural):
        return {each["metadata"]["name"] for each in self.api.all(plural)}

    def models(self):
        """Replicas that the workloads of variants specify, in either flavour."""
        kinds = ("deployments", "seldondeployments")
        found = [each for kind in kinds for each in self.api.all(kind, app_kubernetes_io__component="model")]
        return {each["metadata"]["name"]: replicas_of(each) for each in found if replicas_of(each)}

    def give_the_lease_to_another(self):
        spec = {"holderIdentity": "other", "leaseDurationSeconds": 60, "renewTime": "2030-01-01T00:00:00.000000Z"}
        self.api.edit("leases", "tiny-controller", lambda lease: lease.update(spec=spec))

    def close(self):
        self.kubelet.close()
        self.api.stop()
