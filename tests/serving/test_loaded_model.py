"""Models of every kind in this process; the same classes run in replicas (test_model_kinds.py)."""

from __future__ import annotations

import asyncio

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from serving_models import push_variant, write_network

from opd.serving.loaded_model import LoadedModel, ModelError
from opd.serving.packing import store_variant
from opd.serving.protocol import MalformedRequestError, ServingError
from opd.serving.store import ModelStore, write_manifest
from opd.serving.tensors import message_of, tensors_of


@pytest.fixture
def load(tmp_path):
    """Loads a model of a pipeline file."""
    opened = []

    def load_model(model, **arguments):
        store = ModelStore(str(tmp_path / "store"))
        store_variant(store, "task", "small", model, tmp_path, **arguments)
        opened.append(LoadedModel(store.pull("task", "small"), "task"))
        return opened[-1]

    yield load_model
    for model in opened:
        model.close()


@pytest.fixture
def network(load, tmp_path):
    write_network(tmp_path / "net.onnx")
    return load("net.onnx")


X, COUNT = np.array([[1, 2, 3], [4, 5, 6]], np.float32), np.array([[10], [20]], np.int32)


# ONNX


@pytest.mark.parametrize("raw", [True, False])
def test_named_tensors_go_in_and_come_out(network, raw):
    request = message_of({"count": COUNT, "x": X}, raw=raw)
    request.id = "17"
    answer = network(request)
    found = tensors_of(answer)
    assert list(found) == ["total", "double"] and answer.id == "17" and answer.model_name == "task"
    np.testing.assert_array_equal(found["total"], X + COUNT)
    np.testing.assert_array_equal(found["double"], 2 * COUNT)
    assert found["total"].dtype == np.float32 and found["double"].dtype == np.int32
    assert bool(answer.raw_output_contents) == raw


def test_outputs_can_be_selected(network):
    request = message_of({"x": X, "count": COUNT})
    request.outputs.add(name="double")
    assert list(tensors_of(network(request))) == ["double"]
    request.outputs.add(name="triple")
    with pytest.raises(MalformedRequestError, match="no output 'triple'; it has 'total', 'double'"):
        network(request)


def test_numbers_are_converted_where_nothing_is_lost(network):
    found = tensors_of(network(message_of({"x": X.astype(int), "count": COUNT.astype(np.int64)})))
    np.testing.assert_array_equal(found["total"], X + COUNT)


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        ({"x": X}, "the request has the tensors 'x'; the model takes 'x' FP32 .-1, 3., 'count' INT32 .-1, 1."),
        ({"x": X, "count": COUNT, "z": X}, "the tensors 'x', 'count', 'z'; .* rename or pick them by an adapter"),
        ({"x": X[:, :2], "count": COUNT}, "tensor 'x' has shape .2, 2., but the model takes .-1, 3."),
        ({"x": X[:, :, None], "count": COUNT}, "tensor 'x' has shape .2, 3, 1., but"),
        ({"x": X, "count": COUNT / 2}, "tensor 'count' is of type FP64, but the model takes INT32"),
        ({"x": X, "count": COUNT.astype(np.int64) + 2**40}, "tensor 'count' has the value 1099511627786, which does"),
        (
            {"x": X.astype(float) + 1e300, "count": COUNT},
            "tensor 'x' has the value 1e.300, which does not fit the model's type FP32",
        ),
        ({"x": [["a"] * 3] * 2, "count": COUNT}, "tensor 'x' is of type BYTES, but the model takes FP32"),
        ({"x": X, "count": COUNT[:1]}, "tensor 'count' has 1 rows and tensor 'x' has 2"),
    ],
)
def test_tensors_that_do_not_fit_are_named(network, tensors, problem):
    with pytest.raises(MalformedRequestError, match=problem):
        network(message_of(tensors))
    assert network(message_of({"x": X, "count": COUNT})).outputs


def test_a_fixed_first_axis_is_named_as_what_prevents_batches(load, tmp_path):
    write_network(tmp_path / "net.onnx", rows=1)
    model = load("net.onnx")
    assert model(message_of({"x": X[:1], "count": COUNT[:1]})).outputs
    with pytest.raises(MalformedRequestError, match="tensor 'x' .* export it with a dynamic first axis"):
        model(message_of({"x": X, "count": COUNT}))


def test_text_goes_through_a_network(load, tmp_path):
    tensors = [helper.make_tensor_value_info(name, TensorProto.STRING, ["rows"]) for name in ("word", "same")]
    graph = helper.make_graph([helper.make_node("Identity", ["word"], ["same"])], "test", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "n.onnx")
    model = load("n.onnx")
    assert tensors_of(model(message_of({"word": ["grün", "x"]})))["same"].tolist() == ["grün".encode(), b"x"]
    with pytest.raises(MalformedRequestError, match="tensor 'word' is not text in UTF-8"):
        model(message_of({"word": [b"\xff"]}))
    with pytest.raises(MalformedRequestError, match="tensor 'word' is of type INT64, but the model takes BYTES"):
        model(message_of({"word": [1]}))


def test_a_network_has_no_settings(load, tmp_path):
    write_network(tmp_path / "net.onnx")
    with pytest.raises(ModelError, match="ONNX models have no setting 'threads'"):
        load("net.onnx", settings={"threads": 2})


# Classes


def test_a_class_gets_arrays_and_its_folder(load, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "words.txt").write_text("hello")
    (tmp_path / "shop_words.py").write_text(
        "class Words:\n"
        "    def __init__(self, folder, factor):\n"
        "        self.word, self.factor = (folder / 'words.txt').read_text(), factor\n"
        "    def __call__(self, inputs):\n"
        "        return {'said': [self.word] * len(inputs['x']), 'more': self.factor * inputs['x']}\n"
    )
    model = load("files", runtime="python", settings={"class": "shop_words:Words", "factor": 3})
    found = tensors_of(model(message_of({"x": X})))
    assert found["said"].tolist() == [b"hello", b"hello"]
    np.testing.assert_array_equal(found["more"], 3 * X)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("raise", "task failed: KeyError: 'no such word'"),
        ("exit", "task failed: SystemExit: 3"),
        ("nothing", "Misbehaving returned None; return a dict of arrays by name"),
        ("list", "tensor 'answer' has an element of type object"),
        ("complex", "tensor 'answer' has elements of type complex128"),
    ],
)
def test_a_class_that_misbehaves_fails_the_request_and_serves_on(tmp_path, text, problem):
    push_variant(tmp_path, "task", "small", "Misbehaving")
    model = LoadedModel(ModelStore(str(tmp_path)).pull("task", "small"), "task")
    with pytest.raises(ServingError, match=problem):
        model(message_of({"payload": [text]}))
    assert tensors_of(model(message_of({"payload": ["fine"]})))["answer"].tolist() == [[1, 1]]
    model.close()


# What does not load


@pytest.mark.parametrize(
    ("model", "arguments", "problem"),
    [
        ("nowhere:Model", {}, "class 'nowhere:Model' cannot be imported: No module named 'nowhere'"),
        ("json:Model", {}, "class 'json:Model' cannot be imported: .* no attribute 'Model'"),
        ("serving_models:Broken", {}, "cannot be loaded: ValueError: the weights are damaged"),
        ("serving_models:Upper", {}, "cannot be loaded: TypeError: .*'seconds'"),
        ("bad.onnx", {}, "cannot be loaded: InvalidProtobuf: "),
        ("bad.onnx", {"runtime": "sklearn"}, "cannot be loaded: "),
        ("bad.onnx", {"runtime": "mlflow"}, "No module named 'mlserver_mlflow'; install it with: pip .*'opd.mlflow.'"),
    ],
)
def test_what_cannot_be_loaded_is_named(load, tmp_path, model, arguments, problem):
    (tmp_path / "bad.onnx").write_text("no network")
    with pytest.raises(ModelError, match=problem):
        load(model, **arguments)


@pytest.mark.parametrize(
    ("runtime", "problem"),
    [
        ("json.JSONDecoder", "runtime json.JSONDecoder is not a subclass of mlserver.MLModel"),
        ("nowhere.Model", "runtime 'nowhere.Model' cannot be imported: No module named 'nowhere'$"),
    ],
)
def test_a_manifest_that_names_no_runtime_is_refused(tmp_path, runtime, problem):
    write_manifest(tmp_path, runtime, {})
    with pytest.raises(ModelError, match=problem):
        LoadedModel(tmp_path, "task")


def test_a_model_is_loaded_and_called_within_a_running_event_loop(load):
    async def inside():
        model = load("serving_models:Upper", settings={"seconds": 0})
        request = message_of({"payload": ["a"]})
        return await asyncio.wrap_future(model.submit(request)), model(request)

    for answer in asyncio.run(inside()):
        assert tensors_of(answer)["payload"].tolist() == [b"A"]
