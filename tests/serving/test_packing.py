"""Models of a pipeline file, put into the model store."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd.serving.manifest import read_manifest
from opd.serving.model_kinds import KINDS
from opd.serving.packing import PackingError, store_variant
from opd.serving.store import ModelStore


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    for name in (
        "small.onnx",
        "forest.joblib",
        "trees.json",
        "leaves.txt",
        "boost.bst",
        "flow/MLmodel",
        "bert/config.json",
    ):
        path = folder / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "store"))


def stored(store: ModelStore):
    folder = store.pull("task", "small")
    return folder, read_manifest(folder)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("small.onnx", "onnx"),
        ("forest.joblib", "sklearn"),
        ("trees.json", "xgboost"),
        ("leaves.txt", "lightgbm"),
        ("flow", "mlflow"),
        ("bert", "huggingface"),
    ],
)
def test_the_runtime_is_inferred_and_the_model_copied(model, kind, project, store):
    assert store_variant(store, "task", "small", f"models/{model}", project)
    folder, manifest = stored(store)
    assert manifest.runtime == KINDS[kind].runtime
    assert manifest.settings == {"uri": model}
    copied = (
        next(path for path in (folder / model).rglob("*") if path.is_file()) if "." not in model else folder / model
    )
    assert copied.read_text() in (model, f"{model}/{copied.name}")
    assert not store_variant(store, "task", "small", f"models/{model}", project)


def test_settings_go_to_the_server_or_to_the_runtime(project, store):
    settings = {"predict_fn": "predict_proba", "content_type": "str"}
    store_variant(store, "task", "small", "models/forest.joblib", project, settings=settings)
    _, manifest = stored(store)
    assert manifest.settings == {
        "uri": "forest.joblib",
        "content_type": "str",
        "extra": {"predict_fn": "predict_proba"},
    }


def test_changed_settings_or_files_are_stored_again(project, store):
    place = (store, "task", "small", "models/boost.bst", project)
    assert store_variant(*place, runtime="xgboost")
    assert store_variant(*place, runtime="lightgbm")
    assert store_variant(*place, runtime="lightgbm", settings={"content_type": "np"})
    (project / "models/boost.bst").write_text("other")
    assert store_variant(*place, runtime="lightgbm", settings={"content_type": "np"})
    assert not store_variant(*place, runtime="lightgbm", settings={"content_type": "np"})


def test_modules_beside_the_pipeline_file_go_with_a_class(project, store):
    (project / "shop_models.py").write_text("")
    (project / "parts").mkdir()
    (project / "parts" / "__init__.py").write_text("")
    (project / "parts" / "deep.py").write_text("")
    assert store_variant(store, "task", "small", "parts.deep:Model", project, settings={"size": 3, "version": 2})
    _, manifest = stored(store)
    assert manifest.settings == {"extra": {"class": "parts.deep:Model", "size": 3, "version": 2}}
    assert set(manifest.files) == {"code/shop_models.py", "code/parts/__init__.py", "code/parts/deep.py"}


def test_an_installed_class_needs_no_modules(project, store):
    (project / "other.py").write_text("")
    store_variant(store, "task", "small", "elsewhere.models:Model", project)
    assert stored(store)[1].files == {}


def test_a_class_may_have_files(project, store):
    (project / "models" / "bert" / ".git").mkdir()
    (project / "models" / "bert" / ".git" / "HEAD").write_text("")
    settings = {"class": "elsewhere:Model"}
    store_variant(store, "task", "small", "models/bert", project, runtime="python", settings=settings)
    _, manifest = stored(store)
    assert manifest.settings == {"uri": "bert", "extra": settings}
    assert set(manifest.files) == {"bert/config.json"}


def test_weights_of_a_large_network_go_with_it(project, store):
    (project / "models" / "small.onnx.data").write_text("weights")
    store_variant(store, "task", "small", "models/small.onnx", project)
    folder, _ = stored(store)
    assert (folder / "small.onnx.data").read_text() == "weights"


def test_a_folder_with_one_model_is_that_model(project, store):
    (project / "models" / "net").mkdir()
    (project / "models" / "net" / "net.onnx").write_text("")
    (project / "models" / "net" / "labels.csv").write_text("")
    store_variant(store, "task", "small", "models/net", project)
    _, manifest = stored(store)
    assert manifest.settings == {"uri": "net/net.onnx"}


@pytest.mark.parametrize(
    ("model", "arguments", "problem"),
    [
        ("models/none.onnx", {}, "there is no file or folder .*none.onnx; write module:Class for a class"),
        ("models/boost.bst", {}, "its name does not tell; set runtime to one of onnx, sklearn"),
        ("models", {}, "it may be onnx or sklearn or xgboost or lightgbm; set runtime"),
        ("models/small.onnx", {"runtime": "onyx"}, "runtime 'onyx' is not known; use onnx, "),
        ("models/bert", {"runtime": "python"}, "it has files but no class"),
        ("models/empty", {"runtime": "mlflow"}, "has no files"),
        ("models/linked", {"runtime": "mlflow"}, "secret is a link out of the folder"),
        ("models/a[b].onnx", {}, r"a\[b\].onnx.*is not a valid name"),
    ],
)
def test_what_cannot_be_stored_is_named(model, arguments, problem, project, store):
    (project / "models" / "empty").mkdir()
    (project / "models" / "a[b].onnx").write_text("")
    (project / "models" / "linked").mkdir()
    (project / "models" / "linked" / "secret").symlink_to(project / "models" / "small.onnx")
    with pytest.raises(PackingError, match=rf"(?s)model '{model.replace('[', '.')[:8]}.*of task 'task': .*{problem}"):
        store_variant(store, "task", "small", model, project, **arguments)
    assert store.variants() == {}


def test_a_model_that_should_be_stored_already_is_looked_up(project, store):
    with pytest.raises(KeyError, match="no variant 'small' of task 'task'"):
        store_variant(store, "task", "small", "store", project)
    store_variant(store, "task", "small", "models/small.onnx", project)
    assert not store_variant(store, "task", "small", "store", project)
