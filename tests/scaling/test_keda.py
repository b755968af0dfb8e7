"""The scaler for KEDA, called over gRPC with the messages of KEDA's published file."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from deadlines import PATIENCE, eventually, terminating
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from opd.profiling.pipelines import load_pipeline
from opd.scaling import keda_messages
from opd.scaling.decider import ReplicaDecider
from opd.scaling.keda import serve
from opd.serving.monitoring.prometheus import PrometheusServer
from opd.solvers.replicas import ReplicaPlan
from opd.workload.forecast import RecentMaximum

FILES = descriptor_pb2.FileDescriptorSet.FromString((Path(__file__).parent / "keda" / "externalscaler.pb").read_bytes())
(PUBLISHED,) = FILES.file
KEDA = message_factory.GetMessages(FILES.file, pool=descriptor_pool.DescriptorPool())

PLAN = ReplicaPlan(("detect", "classify"), np.array([0.0, 10.0, 20.0]), np.array([[1, 1], [1, 2], [2, 4]]))


class Keda:
    """A client as KEDA is one."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")

    def ask(self, method: str, task: str):
        """Call a method of the published service for the ScaledObject of a task."""
        (described,) = [each for each in PUBLISHED.service[0].method if each.name == method]
        reference = KEDA["externalscaler.ScaledObjectRef"](name="shop", namespace="edge", scalerMetadata={"task": task})
        kind, answer = KEDA[described.input_type[1:]], KEDA[described.output_type[1:]]
        request = reference if kind is type(reference) else kind(scaledObjectRef=reference, metricName="s0-replicas")
        path = f"/{PUBLISHED.package}.{PUBLISHED.service[0].name}/{method}"
        call = self._channel.unary_unary(
            path, request_serializer=kind.SerializeToString, response_deserializer=answer.FromString
        )
        return call(request, timeout=PATIENCE, wait_for_ready=True)

    def replicas(self, task: str) -> float:
        (value,) = self.ask("GetMetrics", task).metricValues
        assert value.metricValue == value.metricValueFloat
        return value.metricValueFloat

    def close(self) -> None:
        self._channel.close()


class Load:
    """Requests of the last seconds, and a clock; both are set by hand."""

    def __init__(self) -> None:
        self.now, self.reads, self.rate = 0.0, 0, 0.0
        self.error = ""

    def history(self) -> np.ndarray:
        self.reads += 1
        if self.error:
            raise ConnectionError(self.error)
        return np.full(120, self.rate)


@pytest.fixture
def load() -> Load:
    return Load()


@pytest.fixture
def client(load: Load) -> Iterator[Keda]:
    decider = ReplicaDecider(PLAN, load.history, RecentMaximum().predict, 10.0, lambda: load.now)
    server, port = serve(decider, "127.0.0.1", 0)
    asking = Keda(port)
    yield asking
    asking.close()
    server.stop(grace=0).wait(PATIENCE)


def test_the_messages_are_those_of_the_published_file():
    ours = {each.name: each for each in keda_messages._described().message_type}
    theirs = {each.name: each for each in PUBLISHED.message_type}
    assert ours.keys() == theirs.keys()
    for name, message in ours.items():
        assert message.nested_type == theirs[name].nested_type or [
            [(f.name, f.number, f.type) for f in entry.field] for entry in message.nested_type
        ] == [[(f.name, f.number, f.type) for f in entry.field] for entry in theirs[name].nested_type]
        found, expected = (
            [(f.name, f.number, f.type, f.label, f.type_name) for f in each.field] for each in (message, theirs[name])
        )
        assert found == expected


def test_the_answer_divided_by_the_target_is_the_number_of_replicas(client: Keda, load: Load):
    assert client.ask("IsActive", "detect").result
    (spec,) = client.ask("GetMetricSpec", "detect").metricSpecs
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == ("opd-replicas", 1, 1.0)
    load.rate = 20.0
    assert (client.replicas("detect"), client.replicas("classify")) == (2, 4)


def test_all_stages_get_the_same_decision_until_the_interval_is_over(client: Keda, load: Load):
    load.rate = 7.0
    assert client.replicas("detect") == 1
    load.rate, load.now = 20.0, 9.9
    assert client.replicas("classify") == 2 and load.reads == 1
    load.now = 10.0
    assert (client.replicas("classify"), client.replicas("detect"), load.reads) == (4, 2, 2)


@pytest.mark.parametrize("method", ["IsActive", "GetMetricSpec", "GetMetrics"])
def test_an_unknown_task_is_refused_with_those_there_are(client: Keda, method: str):
    with pytest.raises(grpc.RpcError) as refused:
        client.ask(method, "sort")
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "edge/shop" in refused.value.details() and "one of detect, classify" in refused.value.details()


def test_without_a_load_there_is_an_error_until_there_is_one_again(client: Keda, load: Load):
    load.error = "Prometheus is away"
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as failed:
            client.replicas("detect")
        assert failed.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "no decision: ConnectionError: Prometheus is away" in failed.value.details()
    load.error, load.rate = "", 20.0
    assert client.replicas("detect") == 2


def test_a_port_in_use_is_told(client: Keda, load: Load):
    decider = ReplicaDecider(PLAN, load.history, RecentMaximum().predict, 10.0, lambda: load.now)
    server, port = serve(decider, "127.0.0.1", 0)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port} .*choose another --port"):
        serve(decider, "127.0.0.1", port)
    server.stop(grace=0).wait(PATIENCE)


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt-get install prometheus")
def test_the_command_scales_a_shipped_pipeline_by_a_query_of_prometheus(tmp_path: Path):
    """A constant load of 30 requests/s, as Prometheus computes it, for the video pipeline with its first variants."""
    pipeline, prometheus = load_pipeline("video"), PrometheusServer(tmp_path / "prometheus")
    try:
        assert prometheus.rates("vector(30)", 120).tolist() == [30.0] * 120
        stages = [f"--stage={task.name}={task.variants[0].name}:1" for task in pipeline.tasks]
        command = [sys.executable, "-m", "opd", "keda", "video", "--query=vector(30)", *stages]
        command += [f"--prometheus={prometheus.url}", "--host=127.0.0.1", "--port=0"]
        with (tmp_path / "log").open("w") as log:
            process = subprocess.Popen(command, stderr=log)
        with terminating(process):
            (port,) = eventually(lambda: re.findall(r"on 127\.0\.0\.1:(\d+)\n", (tmp_path / "log").read_text()))
            client = Keda(int(port))
            replicas = {task.name: client.replicas(task.name) for task in pipeline.tasks}
            client.close()
    finally:
        prometheus.close()
    assert replicas == {task.name: math.ceil(30.0 / task.variants[0].throughput(1)) for task in pipeline.tasks}
