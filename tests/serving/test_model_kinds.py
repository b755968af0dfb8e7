"""Models of every kind, served by a replica as users serve them: a model file, the store, a process, gRPC."""

from __future__ import annotations

import asyncio

import grpc
import joblib
import numpy as np
import pytest
from deadlines import PATIENCE
from serving_models import write_network

from opd.serving.client import Client
from opd.serving.packing import store_variant
from opd.serving.processes import StartError, model_process, running
from opd.serving.store import ModelStore
from opd.serving.tensors import message_of, tensors_of

pytestmark = [pytest.mark.processes, pytest.mark.slow]

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(60, 4)).astype(np.float32)
LABELS = (ROWS.sum(axis=1) > 0).astype(int)


@pytest.fixture
def serve(tmp_path):
    """Stores a model, starts a replica of it, and returns its answers to some requests."""

    def ask(model, *requests, cores=1, **arguments):
        store_variant(ModelStore(str(tmp_path / "store")), "task", "small", model, tmp_path, **arguments)
        process = model_process("replica", "tiny", "task", "small", str(tmp_path / "store"), tmp_path, cores)
        with running(process, PATIENCE):
            return asyncio.run(call(process.grpc_address, requests))

    return ask


async def call(address, requests):
    client = Client(address, "task")
    try:
        return [await client.infer(request, 0.0, PATIENCE) for request in requests]
    finally:
        await client.close()


def test_scikit_learn_models_with_text(serve, tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good fine", "bad poor", "fine", "poor"]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, ["yes", "no", "yes", "no"])
    joblib.dump(model, tmp_path / "model.joblib")
    chosen = message_of({"text": texts})
    chosen.outputs.add(name="predict_proba")
    label, probability = serve("model.joblib", message_of({"text": texts}), chosen, settings={"content_type": "str"})
    assert tensors_of(label)["predict"].ravel().tolist() == [b"yes", b"no", b"yes", b"no"]
    np.testing.assert_allclose(tensors_of(probability)["predict_proba"], model.predict_proba(texts))


def test_xgboost_models(serve, tmp_path):
    import xgboost

    model = xgboost.XGBClassifier(n_estimators=5).fit(ROWS, LABELS)
    model.save_model(tmp_path / "model.ubj")
    (answer,) = serve("model.ubj", message_of({"x": ROWS}), cores=2)
    assert tensors_of(answer)["predict"].ravel().tolist() == model.predict(ROWS).tolist()


def test_lightgbm_models(serve, tmp_path):
    import lightgbm

    model = lightgbm.LGBMRegressor(n_estimators=5, verbose=-1).fit(ROWS, LABELS)
    model.booster_.save_model(tmp_path / "model.txt")
    (answer,) = serve("model.txt", message_of({"x": ROWS}))
    np.testing.assert_allclose(tensors_of(answer)["predict"].ravel(), model.predict(ROWS))


def test_onnx_models_of_two_inputs_and_two_outputs(serve, tmp_path):
    write_network(tmp_path / "net.onnx")
    x, count = np.ones((2, 3), np.float32), np.array([[10], [20]], np.int32)
    (answer,) = serve("net.onnx", message_of({"x": x, "count": count}), cores=2)
    found = tensors_of(answer)
    np.testing.assert_array_equal(found["total"], x + count)
    np.testing.assert_array_equal(found["double"], 2 * count)


def test_a_class_whose_requests_fail_says_why_and_serves_on(serve, tmp_path):
    (tmp_path / "shop_models.py").write_text(
        "import os\n"
        "from opd.serving.models import PayloadError\n"
        "class Root:\n"
        "    def __init__(self, folder, scale): self.scale = scale\n"
        "    def __call__(self, inputs):\n"
        "        if (inputs['x'] < 0).any(): raise PayloadError('x has negative values')\n"
        "        if (inputs['x'] == 0).any(): os.nonsense\n"
        "        return {'root': self.scale * inputs['x'] ** 0.5, 'threads': [os.environ['OMP_NUM_THREADS']] * 2}\n"
    )

    async def failures(address):
        codes = []
        for value in (-1.0, 0.0):
            try:
                await call(address, [message_of({"x": [[value], [value]]})])
            except grpc.aio.AioRpcError as error:
                codes.append((error.code(), error.details()))
        return codes, await call(address, [message_of({"x": [[4.0], [9.0]]})])

    store_variant(ModelStore(str(tmp_path / "s")), "task", "root", "shop_models:Root", tmp_path, settings={"scale": 10})
    process = model_process("replica", "tiny", "task", "root", str(tmp_path / "s"), tmp_path, cores=3)
    with running(process, PATIENCE):
        (refused, failed), (answer,) = asyncio.run(failures(process.grpc_address))
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "x has negative values")
    assert failed == (
        grpc.StatusCode.INTERNAL,
        "task failed: AttributeError: module 'os' has no attribute 'nonsense'",
    )
    assert tensors_of(answer)["root"].tolist() == [[20], [30]]
    assert tensors_of(answer)["threads"].tolist() == [b"3", b"3"]


def test_a_replica_whose_model_does_not_load_ends_and_says_why(serve, tmp_path):
    (tmp_path / "model.joblib").write_bytes(b"no pickle")
    with pytest.raises(StartError, match="task in .* cannot be loaded: "):
        serve("model.joblib")
