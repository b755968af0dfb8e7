"""A gateway in this process with replicas that are not: its walk, and its HTTP endpoint."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from opd.serving.contents import payload_request
from opd.serving.gateway.http_service import GatewayHttp
from opd.serving.gateway.walk import Gateway
from opd.serving.protocol import QueueFullError, ServingError, TooOldError
from opd.serving.replicas import ReplicaEndpoint
from opd.serving.settings import GatewaySettings, GatewayStage, StageSettings
from opd.serving.tensors import answer_of, tensors_of

HELLO = {"inputs": [{"name": "payload", "shape": [1], "datatype": "BYTES", "data": ["hello"]}], "id": "7"}


class Appending:
    """A replica that appends the name of its task to every text; fails on "bug"."""

    def __init__(self, address, model):
        self.model = model

    async def infer(self, request, age, timeout):
        texts = tensors_of(request)["payload"]
        return answer_of({"payload": [b"%s %s" % (text, self.model.encode()) for text in texts], "rows": [[0.5]]})

    async def close(self):
        pass


def gateway(replicas=1, **limits):
    stages = [GatewayStage(task="a", adapter={"pick": ["payload"]}), GatewayStage(task="b")]
    made = Gateway(GatewaySettings(name="p", stages=stages, queue=StageSettings(**limits), objective=1.0), Appending)
    for task in made.tasks:
        made.configure(task, 1, [ReplicaEndpoint(f"r{place}", "v", "h:1") for place in range(replicas)])
    return made


def infer(**arguments):
    async def ask():
        return await gateway(**arguments).infer(payload_request([b"hello"]))

    return asyncio.run(ask())


def test_a_request_visits_the_stages_in_order():
    answer = infer()
    assert payloads_of_first(answer) == [b"hello a b"] and answer.model_name == "p"


def payloads_of_first(answer):
    return tensors_of(answer)["payload"].tolist()


def test_the_error_of_a_stage_names_it_and_keeps_its_class():
    with pytest.raises(TooOldError, match="^stage 'a': waited longer than 0 s in the pipeline"):
        infer(replicas=0, drop_after=0.0)


def test_a_full_queue_names_its_stage_once():
    async def ask_two():
        full = gateway(replicas=0, max_queue=1, drop_after=0.1)
        calls = (full.infer(payload_request([b"hello"])) for _ in range(2))
        return await asyncio.gather(*calls, return_exceptions=True)

    waited, refused = asyncio.run(ask_two())
    assert isinstance(waited, TooOldError) and isinstance(refused, QueueFullError)
    assert str(refused).startswith("stage 'a': 1 requests wait, the limit is 1")


def test_two_stages_cannot_share_a_task():
    settings = GatewaySettings(name="p", stages=[GatewayStage(task="a")] * 2, objective=1.0)
    with pytest.raises(ValueError, match="two stages of 'p' have task 'a'"):
        Gateway(settings)


# --- HTTP ------------------------------------------------------------------------------------------------------------


def call(method, path, body=None, follows="", ready=True, data=None):
    """Status and document of an answer."""

    async def ask():
        made = gateway()
        made.ready = ready
        async with TestClient(TestServer(GatewayHttp(made, follows).application())) as client:
            answer = await client.request(method, path, json=body, data=data)
            return answer.status, await answer.json()

    return asyncio.run(ask())


def test_a_request_in_json_is_answered_in_json():
    status, answer = call("POST", "/v2/models/p/infer", HELLO)
    assert status == 200 and (answer["id"], answer["model_name"]) == ("7", "p")
    payload, rows = answer["outputs"]
    assert payload == {"name": "payload", "shape": [1], "datatype": "BYTES", "parameters": {}, "data": ["hello a b"]}
    assert rows["data"] == [0.5] and rows["datatype"] == "FP64"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("POST", "/v2/models/q/infer", HELLO, 404, "no model 'q' here; this gateway serves 'p'"),
        ("POST", "/v2/models/p/infer", {"inputs": []}, 400, "inputs"),
        ("POST", "/v2/models/p/infer", {"inputs": [{**HELLO["inputs"][0], "shape": [2]}]}, 400, "do not fit shape"),
        ("POST", "/v2/models/p/infer", {"inputs": [{**HELLO["inputs"][0], "name": "x"}]}, 400, "no tensor 'payload'"),
        ("GET", "/stages/c", None, 404, "there is no stage 'c'; the stages are a, b"),
        ("PUT", "/stages/a", {"batch_size": 0, "replicas": []}, 400, "batch_size"),
        ("GET", "/nowhere", None, 404, "Not Found"),
    ],
)
def test_errors_are_told_in_json(method, path, body, status, words):
    found, answer = call(method, path, body)
    assert found == status and words in answer["error"]


def test_what_nobody_expected_is_told_as_well(monkeypatch):
    monkeypatch.setattr(Gateway, "status", lambda self, task: 1 / 0)
    assert call("GET", "/stages/a") == (500, {"error": "the server failed: division by zero"})


def test_what_is_no_json_is_refused():
    status, answer = call("POST", "/v2/models/p/infer", data=b"{")
    assert status == 400 and "the request is not JSON" in answer["error"]


def test_health_and_readiness():
    assert call("GET", "/v2/health/live") == (200, {"live": True})
    assert call("GET", "/v2/models/p/ready") == (200, {"name": "p", "ready": True})
    assert call("GET", "/v2/models/p/ready", ready=False)[0] == call("GET", "/v2/health/ready", ready=False)[0] == 503


def test_a_stage_is_configured_unless_the_gateway_follows_something_else():
    desired = {"batch_size": 4, "replicas": [{"name": "r", "variant": "w", "address": "h:2", "share": 0.5}]}
    status, stage = call("PUT", "/stages/a", desired)
    assert (status, stage["batch_size"]) == (200, 4)
    assert stage["replicas"] == [{**desired["replicas"][0], "serving": 0, "retired": False, "failed": False}]
    status, answer = call("PUT", "/stages/a", desired, follows="the ConfigMap")
    assert status == 409 and answer["error"] == "this gateway follows the ConfigMap; change that instead"


def test_output_that_is_no_text_cannot_be_told_in_json():
    from opd.serving.json_requests import answer_document

    with pytest.raises(ServingError, match="output 'y' is not text, which JSON cannot hold; ask by gRPC"):
        answer_document(answer_of({"y": [b"\xff"]}))
    assert answer_document(answer_of({"y": [float("nan"), 1.0]}))["outputs"][0]["data"] == [None, 1.0]
