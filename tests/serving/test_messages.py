"""Whole messages through gateway and replicas, as real processes: one model of two tensors, asked twice."""

import asyncio
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from deadlines import PATIENCE, eventually

from opd.serving.client import Client
from opd.serving.contents import payload_request
from opd.serving.processes import ServerProcess, stop_all
from opd.serving.protocol import MAX_MESSAGE_BYTES
from opd.serving.settings import GatewaySettings, GatewayStage, ServerSettings
from opd.serving.tensors import message_of, tensors_of

pytestmark = pytest.mark.processes

BATCH_SIZE = 2


ADAPTERS = {"first": {"rename": {"offset": "shift"}}, "second": {"function": "tensor_models:once_more"}}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """A pipeline that doubles and shifts twice; its first stage renames a tensor, its second calls a function."""
    folder = tmp_path_factory.mktemp("servers")

    def start(name, settings):
        process = ServerProcess(name, settings, folder)
        started.callback(stop_all, [process])
        return process

    with ExitStack() as started:
        replicas = {task: start(task, ServerSettings(kind="tensor_models.Affine", name=task)) for task in ADAPTERS}
        stages = [GatewayStage(task=task, adapter=adapter) for task, adapter in ADAPTERS.items()]
        gateway = start("gateway", GatewaySettings(name="twice", stages=stages, objective=1.0))
        eventually(lambda: all(process.ready() for process in (*replicas.values(), gateway)))
        for task, replica in replicas.items():
            endpoint = {"name": "replica", "variant": "v", "address": replica.grpc_address}
            gateway.http("PUT", f"/stages/{task}", {"batch_size": BATCH_SIZE, "replicas": [endpoint]})
        yield gateway


def ask(gateway, *requests):
    """Answers to requests that are sent together; the error of one that fails is its answer."""

    async def send():
        client = Client(gateway.grpc_address, "twice")
        try:
            calls = [client.infer(request, 0.0, PATIENCE) for request in requests]
            return await asyncio.gather(*calls, return_exceptions=True)
        finally:
            await client.close()

    return asyncio.run(send())


def request_of(*rows, offset, raw=True):
    request = message_of({"x": np.array(rows), "offset": np.full((len(rows), 1), offset)}, raw)
    request.id = f"offset {offset}"
    request.parameters["unit"].string_param = "cm"
    return request


@pytest.mark.parametrize("raw", [True, False])
def test_requests_of_several_rows_and_tensors_share_batches_and_get_their_own_answers(gateway, raw):
    requests = [request_of([1.0, 2.0], [3.0, 4.0], offset=1.0, raw=raw), request_of([5.0, 6.0], offset=-1.0, raw=raw)]
    answers = ask(gateway, *requests)
    first, second = map(tensors_of, answers)
    np.testing.assert_array_equal(first["y"], [[7, 11], [15, 19]])
    np.testing.assert_array_equal(second["y"], [[19, 23]])
    assert first["rows"].tolist() == [3, 3] and second["rows"].tolist() == [3]
    assert first["parameter"].tolist() == [b"cm", b"cm"]
    assert [answer.id for answer in answers] == ["offset 1.0", "offset -1.0"]
    assert {answer.model_name for answer in answers} == {"twice"}
    assert [bool(answer.raw_output_contents) for answer in answers] == [raw, raw]


def test_a_request_selects_outputs_of_the_last_stage(gateway):
    request = request_of([1.0, 2.0], offset=1.0)
    request.outputs.add(name="rows")
    request.outputs.add(name="y")
    (answer,) = ask(gateway, request)
    assert list(tensors_of(answer)) == ["rows", "y"]
    np.testing.assert_array_equal(tensors_of(answer)["y"], [[7, 11]])


def selecting(name):
    request = request_of([1.0], offset=1.0)
    request.outputs.add(name=name)
    return request


def with_shape(*shape):
    request = request_of([1.0], offset=1.0)
    request.inputs[0].shape[:] = shape
    return request


@pytest.mark.parametrize(
    ("request_", "code", "details"),
    [
        (with_shape(3, 1), "INVALID_ARGUMENT", "tensor 'x' has shape [3, 1] and 1 elements; that shape needs 3"),
        (payload_request([bytes(MAX_MESSAGE_BYTES)]), "INVALID_ARGUMENT", "the limit is 16777216; send fewer rows"),
        (selecting("z"), "INVALID_ARGUMENT", "the pipeline has no output 'z'; select among 'y', 'rows', 'parameter'"),
        (
            message_of({"x": [[1.0]]}),
            "INVALID_ARGUMENT",
            "stage 'first', adapter rename: there is no tensor 'offset'",
        ),
        (message_of({"x": [[1.0]], "offset": [[1.0]], "z": [1]}), "INVALID_ARGUMENT", "the model takes x and shift"),
    ],
)
def test_a_wrong_request_gets_an_error_with_its_reason(gateway, request_, code, details):
    (error,) = ask(gateway, request_)
    assert isinstance(error, grpc.aio.AioRpcError)
    assert error.code().name == code and details in error.details()


def test_a_request_by_rest_is_answered_alike(gateway):
    body = {
        "id": "7",
        "parameters": {"unit": "cm"},
        "inputs": [
            {"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [[1.0], [2.0]]},
            {"name": "offset", "shape": [2, 1], "datatype": "FP32", "data": [0.5, 1]},
        ],
    }
    answer = gateway.http("POST", "/v2/models/twice/infer", body)
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert (answer["id"], answer["model_name"]) == ("7", "twice")
    assert outputs["y"]["shape"] == [2, 1] and outputs["y"]["data"] == [6.0, 11.0]
    assert outputs["y"]["datatype"] == "FP32" and outputs["parameter"]["data"] == ["cm", "cm"]
