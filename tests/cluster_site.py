"""Sites for the suite of a real cluster: the user's cluster, or an emulated one whose pods are real processes."""

import base64
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import yaml
from deadlines import eventually
from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet
from emulator.prometheus import Prometheus
from emulator.service import pump
from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.stream import portforward
from serving_models import push_variant

from opd import cli
from opd.cluster.api import Cluster
from opd.cluster.connection import credentials
from opd.cluster.names import GATEWAY, selector
from opd.cluster.pods import is_ready
from opd.cluster.resources import POD
from opd.live.generator import start_load
from opd.profiling.pipelines import load_pipeline

TESTS = Path(__file__).parent
GRPC_PORT = 8081
WAIT_SECONDS = 300
IMAGE = "opd.invalid/set-by-the-overlay:0"


class Forward:
    """A local port that the API server forwards to a gateway; needs neither ingress nor DNS."""

    def __init__(self, kubeconfig, cluster, pipeline):
        self._kubeconfig, self._cluster, self._pipeline = kubeconfig, cluster, pipeline
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.accepted = 0
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True, name="forward").start()

    def close(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._carry, args=(connection,), daemon=True).start()

    def _carry(self, connection):
        with connection:
            pods, _ = self._cluster.list(POD, selector(self._pipeline, GATEWAY))
            pod = next(pod["metadata"]["name"] for pod in pods if is_ready(pod))
            api = CoreV1Api(ApiClient(credentials(self._kubeconfig)))  # opening a stream changes its client
            call = api.connect_get_namespaced_pod_portforward
            forward = portforward(call, pod, self._cluster.namespace, ports=str(GRPC_PORT))
            remote = forward.socket(GRPC_PORT)
            back = threading.Thread(target=pump, args=(remote, connection), daemon=True)
            back.start()
            pump(connection, remote)
            back.join(5)
            forward.close()


class Site:
    """A namespace of a cluster, and everything needed to run a pipeline there.

    Args:
        folder: folder for files.
        kubeconfig: kubeconfig of the cluster.
        namespace: namespace of all objects.
        overlay: overlay file.
        pipeline: name, folder or file.
        store: URL of the model store as pods see it.
        payloads: payloads of requests.
        restart: command or function that restarts the API server, None if there is none.
        prometheus: URL of Prometheus, empty if there is none.
        flavour: flavour of the workloads.
    """

    def __init__(self, folder, kubeconfig, namespace, overlay, pipeline, store, payloads, restart, prometheus, flavour):
        self.folder, self.kubeconfig, self.restart, self.prometheus = folder, kubeconfig, restart, prometheus
        self.chosen = pipeline
        self.pipeline = load_pipeline(pipeline)
        self.cluster = Cluster(namespace, lambda: credentials(kubeconfig))
        self.settings = [f"--image={IMAGE}", f"--store={store}", f"--overlay={overlay}", f"--flavour={flavour}"]
        self._payloads, self._runs = folder / "payloads.parquet", 0
        pd.DataFrame({"payload": payloads}).to_parquet(self._payloads)
        self._forward = Forward(kubeconfig, self.cluster, self.pipeline.name)
        self.address = self._forward.address

    def close(self):
        self._forward.close()

    def opd(self, command, *options):
        """Run a command in this process and return its exit code."""
        settings = self.settings if command == "deploy" else []
        wait = [f"--wait={WAIT_SECONDS}"] if command in ("deploy", "delete") else []
        place = [self.chosen, f"--namespace={self.cluster.namespace}"]
        return cli.main([command, *place, f"--kubeconfig={self.kubeconfig}", *settings, *wait, *options])

    def control(self, *options):
        """Run ``opd run``, which handles the signals of its process, in another process and return its exit code."""
        place = [self.chosen, f"--namespace={self.cluster.namespace}"]
        command = [sys.executable, "-m", "opd", "run", *place, f"--kubeconfig={self.kubeconfig}"]
        return subprocess.run([*command, *self.settings, *options], timeout=WAIT_SECONDS, cwd=TESTS.parent).returncode

    def configure(self, configuration):
        """Bring the deployed pipeline to a configuration and return the exit code."""
        chosen = zip(self.pipeline.tasks, self.pipeline.selected(configuration), strict=True)
        stages = [f"--stage={t.name}={variant.name}:{s.replicas}:{s.batch_size}" for t, (variant, s) in chosen]
        return self.opd("deploy", *stages)

    @contextmanager
    def traffic(self, rate=5, seconds=600):
        """Send requests during a block, and shortly before and after; yields a list that gets their records."""
        self._runs += 1
        before = self._forward.accepted
        output = self.folder / f"requests-{self._runs}.parquet"
        address, name = self.address, self.pipeline.name
        running = start_load(address, name, [rate] * seconds, self._payloads, self._runs, output)
        found = []
        try:
            eventually(lambda: self._forward.accepted > before)  # the generator starts slowly on a busy machine
            time.sleep(1)
            yield found
            time.sleep(2)
        finally:
            running.interrupt()
            found.append(running.finish(WAIT_SECONDS))

    def pods(self):
        """Names of all pods, with the number of their restarts."""
        pods, _ = self.cluster.list(POD, selector(self.pipeline.name))
        statuses = {pod["metadata"]["name"]: pod["status"].get("containerStatuses") or [] for pod in pods}
        return {name: sum(each.get("restartCount", 0) for each in found) for name, found in statuses.items()}


# --- the user's cluster -----------------------------------------------------------------------------------------------


def missing():
    """Unset environment variables that a real cluster needs."""
    needed = ["OPD_CLUSTER_NAMESPACE", "OPD_CLUSTER_OVERLAY"]
    found = [name for name in needed if not os.environ.get(name)]
    if not any(os.environ.get(name) for name in ("OPD_CLUSTER_KUBECONFIG", "KUBECONFIG")):
        found.append("OPD_CLUSTER_KUBECONFIG (or KUBECONFIG)")
    return found


def user_site(folder):
    """Site described by environment variables."""
    given = os.environ.get
    pipeline = given("OPD_CLUSTER_PIPELINE_FILE", "ocr")
    return Site(
        folder,
        given("OPD_CLUSTER_KUBECONFIG") or given("KUBECONFIG"),
        given("OPD_CLUSTER_NAMESPACE"),
        given("OPD_CLUSTER_OVERLAY"),
        pipeline,
        given("OPD_CLUSTER_STORE", "/models"),
        payloads(pipeline),
        given("OPD_CLUSTER_RESTART_COMMAND"),
        given("OPD_CLUSTER_PROMETHEUS", ""),
        given("OPD_CLUSTER_FLAVOUR", "deployment"),
    )


def payloads(pipeline):
    """Payload of a file, or pages for the OCR pipeline, or a text."""
    if path := os.environ.get("OPD_CLUSTER_PAYLOAD"):
        return [Path(path).read_bytes()]
    if pipeline == "ocr":
        from opd.examples.ocr.pages import render_pages

        return [page.payload for page in render_pages(5, 0)]
    return [b"hello"]


# --- the emulated one -------------------------------------------------------------------------------------------------


class ForwardingApiServer(ApiServer):
    """API server that also forwards ports of pods over a web socket."""

    def handle(self, method, target, headers, body, answer):
        match = re.match(r"/api/v1/namespaces/[^/]+/pods/([^/]+)/portforward\?ports=(\d+)$", target)
        if match is None or headers.get("Upgrade", "").lower() != "websocket":
            return super().handle(method, target, headers, body, answer)
        address = self.find("pods", match[1])["status"]["podIP"]
        with socket.create_connection((address, int(match[2])), timeout=5) as remote:
            remote.settimeout(None)
            self._greet(headers, answer)
            for channel in (0, 1):
                self._send(answer, bytes([channel]) + int(match[2]).to_bytes(2, "little"))
            back = threading.Thread(target=self._return, args=(remote, answer), daemon=True)
            back.start()
            with suppress(OSError):
                while frame := self._receive(answer):
                    if frame[0] == 0:
                        remote.sendall(frame[1:])
                remote.shutdown(socket.SHUT_RDWR)
            back.join(5)
        answer.close_connection = True
        return None

    @staticmethod
    def _greet(headers, answer):
        key = headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        answer.send_response(101)
        answer.send_header("Upgrade", "websocket")
        answer.send_header("Connection", "Upgrade")
        answer.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        answer.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        answer.end_headers()
        answer.wfile.flush()

    def _return(self, remote, answer):
        with suppress(OSError, ValueError):
            while piece := remote.recv(65536):
                self._send(answer, b"\0" + piece)
            answer.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _send(answer, content):
        size = len(content)
        short = size.to_bytes(1, "big") if size < 126 else None
        answer.wfile.write(b"\x82" + (short or b"\x7f" + size.to_bytes(8, "big")) + content)
        answer.wfile.flush()

    @staticmethod
    def _receive(answer):
        """Return the next data frame, None at the end."""
        while head := answer.rfile.read(2):
            size = head[1] & 127
            if size > 125:
                size = int.from_bytes(answer.rfile.read(2 if size == 126 else 8), "big")
            mask = answer.rfile.read(4)
            content = bytes(byte ^ mask[place % 4] for place, byte in enumerate(answer.rfile.read(size)))
            if head[0] & 15 == 8:
                return None
            if head[0] & 15 == 2:
                return content
        return None


TINY = """
name: {}
device: {{cores: 6}}
limits: {{replicas: 3, batch_size: 4}}
objective: {{latency: {{seconds: 1.0}}}}
tasks:
"""
TASK = """
  - name: {}
    variants:
      - {{name: fast, model: store, accuracy: 0.5, cores: 1}}
      - {{name: slow, model: store, accuracy: 0.6, cores: 1}}
"""
PROFILE = """task,variant,cores,batch_size,latency_mean,kind,startup_seconds
{0},fast,1,1,0.01,assumed,2
{0},fast,1,2,0.015,assumed,2
{0},fast,1,4,0.02,assumed,2
{0},slow,1,1,0.03,assumed,2
{0},slow,1,2,0.035,assumed,2
{0},slow,1,4,0.04,assumed,2
"""


def write_pipeline(folder, name, *tasks):
    """Write a pipeline file with two variants of every task, and its profile, into a folder."""
    header, rows = PROFILE.split("\n", 1)
    (folder / "profile.csv").write_text(header + "\n" + "".join(map(rows.format, tasks)))
    file = folder / f"{name}.yaml"
    file.write_text(TINY.format(name) + "".join(map(TASK.format, tasks)))
    return file


def _store_of_upper_case(store, pipeline):
    """Model store of a pipeline whose variants take as long as their profiles say."""
    store.mkdir()
    for task in pipeline.tasks:
        for variant in task.variants:
            push_variant(store, task.name, variant.name, seconds=variant.service_time(1))
    return str(store)


@contextmanager
def emulated_site(folder):
    """Emulated cluster in this process, whose pods are real servers.

    They serve the pipeline of OPD_CLUSTER_PIPELINE_FILE with the models of OPD_CLUSTER_STORE; by default a tiny
    pipeline, with models that make text upper case in the time of the profile.
    """
    pipeline = os.environ.get("OPD_CLUSTER_PIPELINE_FILE") or str(write_pipeline(folder, "tiny", "first", "second"))
    described = load_pipeline(Path(pipeline))
    api = ForwardingApiServer()
    config, pods = kubeconfig(api, folder), folder / "pods"
    pods.mkdir()
    store = os.environ.get("OPD_CLUSTER_STORE") or _store_of_upper_case(folder / "store", described)
    environment = {"KUBECONFIG": str(config), "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    server = {"name": "server", "env": [{"name": name, "value": value} for name, value in environment.items()]}
    overlay = folder / "overlay.yaml"
    overlay.write_text(yaml.safe_dump({"all": {"spec": {"containers": [server]}}}))
    kubelet, prometheus = Kubelet(api, pods), Prometheus(described, load=20.0)

    def restart():
        api.stop()
        time.sleep(2)
        api.start()

    site = Site(
        folder,
        str(config),
        "space",
        overlay,
        pipeline,
        store,
        payloads(pipeline),
        restart,
        prometheus.url,
        os.environ.get("OPD_CLUSTER_FLAVOUR", "deployment"),
    )
    try:
        yield site
    finally:
        site.close()
        kubelet.close()
        prometheus.close()
        api.stop()
