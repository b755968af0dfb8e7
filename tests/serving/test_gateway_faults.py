"""A gateway, a real process, in front of replicas that hang, answer garbage or are far too slow for the load."""

import asyncio
import re
from contextlib import ExitStack

import numpy as np
import pytest
from deadlines import PATIENCE, eventually

from opd.live.load import offer
from opd.serving.contents import payload_request
from opd.serving.processes import ServerProcess, direct_session, stop_all
from opd.serving.settings import GatewaySettings, GatewayStage, ServerSettings, StageSettings

pytestmark = pytest.mark.processes

MAX_QUEUE = 20
SECONDS = 0.05
"""Of a batch: a replica carries 20 requests/s."""

LIMITS = StageSettings(max_queue=MAX_QUEUE, drop_after=PATIENCE)


class Pipeline:
    """One stage behind a gateway, with the replicas that a test chooses."""

    def __init__(self, gateway, replicas):
        self.gateway, self.replicas = gateway, replicas

    def use(self, *names, batch_size=1):
        endpoints = [{"name": name, "variant": "v", "address": self.replicas[name].grpc_address} for name in names]
        return self.gateway.http("PUT", "/stages/only", {"batch_size": batch_size, "replicas": endpoints})

    def load(self, counts):
        """Records of requests that are sent open-loop."""
        sent = offer(self.gateway.grpc_address, "pipe", np.array(counts), [payload_request([b"a"])], 0, 2 * PATIENCE)
        return asyncio.run(sent)

    def longest_queue(self):
        text = direct_session().get(f"http://{self.gateway.metrics_address}/metrics", timeout=PATIENCE).text
        return float(re.search(r"opd_stage_queue_length\{.*\} (\S+)", text)[1])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("servers")
    kinds = {"good": "Upper", "other": "Upper", "garbage": "Garbage", "hanging": "Hanging"}
    with ExitStack() as started:
        replicas = {name: ServerProcess(name, replica_settings(kind), folder) for name, kind in kinds.items()}
        settings = GatewaySettings(name="pipe", stages=[GatewayStage(task="only")], queue=LIMITS, objective=1.0)
        gateway = ServerProcess("gateway", settings, folder)
        started.callback(stop_all, [gateway, *replicas.values()])
        eventually(lambda: all(process.ready() for process in (gateway, *replicas.values())))
        yield Pipeline(gateway, replicas)


def replica_settings(kind):
    return ServerSettings(kind=f"gateway_models.{kind}", name="only", parameters={"seconds": SECONDS})


def outcomes(records):
    return records["outcome"].value_counts().to_dict()


def test_a_replica_that_answers_garbage_costs_no_request(pipeline):
    pipeline.use("good", "garbage", batch_size=2)
    records = pipeline.load([10] * 3)
    assert outcomes(records) == {"completed": 30} and set(records["answer"]) == {"A"}


def test_when_every_replica_answers_garbage_the_caller_is_told_the_reason(pipeline):
    pipeline.use("garbage")
    records = pipeline.load([1])
    assert records["code"].tolist() == ["INTERNAL"]
    assert "stage 'only': model 'only' gave a malformed answer: the message has no tensor" in records["detail"][0]


def test_a_replica_that_hangs_costs_no_request(pipeline):
    pipeline.use("good", "hanging")
    records = pipeline.load([5] * 4)
    assert outcomes(records) == {"completed": 20} and set(records["answer"]) == {"A"}


def test_ten_times_too_much_load_is_rejected_at_the_door_and_the_pipeline_recovers(pipeline):
    pipeline.use("good")
    records = pipeline.load([200] * 2)
    counts = outcomes(records)
    assert set(counts) == {"completed", "rejected"} and counts["rejected"] > counts["completed"]
    rejected = records[records["outcome"] == "rejected"]
    assert set(rejected["code"]) == {"RESOURCE_EXHAUSTED"}
    assert rejected["detail"].str.contains(f"{MAX_QUEUE} requests wait, the limit is {MAX_QUEUE}; send less").all()
    assert pipeline.longest_queue() == 0.0  # what was accepted is served
    pipeline.use("good", "other")
    assert outcomes(pipeline.load([10] * 2)) == {"completed": 20}
