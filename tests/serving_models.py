"""Tiny models for tests of the serving plane: replicas are real processes, without megabytes of weights."""

import tempfile
import time
from pathlib import Path

import numpy as np

from opd.serving.model_kinds import KINDS
from opd.serving.models import PayloadError
from opd.serving.store import ModelStore, write_manifest


class Upper:
    """Answers a text in capitals after ``seconds`` a batch; refuses ``bad``."""

    def __init__(self, folder, seconds):
        self.seconds = seconds

    def __call__(self, inputs):
        time.sleep(self.seconds)
        payloads = inputs["payload"]
        for place, payload in enumerate(payloads):
            if payload == b"bad":
                raise PayloadError(f"element {place} is {payload!r}, which is not a text to answer")
        return {"payload": np.array([payload.upper() for payload in payloads], dtype=object)}


class Broken:
    """A variant that does not load."""

    def __init__(self, folder):
        raise ValueError("the weights are damaged")


class Misbehaving:
    """Does with a request what its text says."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, inputs):
        match inputs["payload"][0]:
            case b"raise":
                raise KeyError("no such word")
            case b"exit":
                raise SystemExit(3)
            case b"nothing":
                return None
            case b"list":
                return {"answer": [object()]}
            case b"complex":
                return {"answer": np.array([1j])}
        return {"answer": np.ones((len(inputs["payload"]), 2), np.float32), "files": [str(self.folder)]}


def push_variant(store, task, variant, model="Upper", **settings):
    """Put a variant of one of these models into the store at a URL."""
    with tempfile.TemporaryDirectory() as folder:
        extra = {"class": f"serving_models:{model}", **settings}
        write_manifest(Path(folder), KINDS["python"].runtime, {"extra": extra})
        ModelStore(str(store)).push(Path(folder), task, variant)


def write_network(path: Path, rows: str | int = "rows") -> None:
    """Two inputs, x (FP32, 3 columns) and count (INT32); two outputs, total = x + count and double = 2 count."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["count"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "real"], ["total"]),
        helper.make_node("Add", ["count", "count"], ["double"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3]),
        helper.make_tensor_value_info("count", TensorProto.INT32, [rows, 1]),
    ]
    outputs = [
        helper.make_tensor_value_info("total", TensorProto.FLOAT, [rows, 3]),
        helper.make_tensor_value_info("double", TensorProto.INT32, [rows, 1]),
    ]
    graph = helper.make_graph(nodes, "test", inputs, outputs)
    path.parent.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
