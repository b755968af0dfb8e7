"""Everything that is wrong with a project, at once, by place."""

import re
import shutil

import joblib
import numpy as np
import pytest
import yaml
from sklearn.linear_model import LogisticRegression
from small_shop import FILE, write_shop

from opd.project.checking import check_project
from opd.project.folder import Project, create
from opd.project.parameters import parameter_problems
from opd.workload.trace_limits import MIN_SECONDS

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A new project without an example."""
    return create(tmp_path_factory.mktemp("template") / "shop").root


@pytest.fixture
def folder(template, tmp_path, monkeypatch):
    """A copy of it, in which one works."""
    copy = tmp_path / "shop"
    shutil.copytree(template, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def shop(folder):
    """A project with a working pipeline."""
    return write_shop(folder)


def change(folder, **changes):
    """Change parameters."""
    path = folder / "params.yaml"
    content = {
        name: value for name, value in {**yaml.safe_load(path.read_text()), **changes}.items() if value is not None
    }
    path.write_text(yaml.safe_dump(content))


def places(found):
    return [problem.place for problem in found.problems]


def texts(found):
    return "\n".join(f"{problem.place}: {problem.text}" for problem in found.problems)


def test_the_untouched_template_lacks_its_models_only(folder):
    found = check_project(folder)
    assert places(found) == ["models"] * 3
    files = "first-small.onnx", "first-large.onnx", "second-small.joblib"
    for problem, file in zip(found.problems, files, strict=True):
        assert f"there is no file or folder {folder}/variants/{file}; write module:Class for a class" in problem.text
    assert found.notes == ["not measured yet; run `opd profile`"]


def test_a_working_project_has_no_problem(shop):
    said = []
    found = check_project(shop, say=said.append)
    assert not found.problems, texts(found)
    assert said == [
        "stored scale/one",
        "stored scale/minus",
        "stored sign/strict",
        "stored sign/plain",
        "serving every variant with a sample",
    ]
    assert check_project(shop, run_models=False, say=said.append).problems == [] and len(said) == 5


MISTAKES = """
name: shop
device: {cores: 4}
limits: {replicas: 2, batch_size: 2}
objective: {latency: {seconds: 1.0}}
samples: samples.json
labels: labels.json
metric: no_such_module:metric
tasks:
  - name: scale
    variants:
      - {name: one, model: "shop_models:Scale", settings: {factor: 1.0}, accuracy: 0.9, cores: 1}
      - {name: unloadable, model: "shop_models:Scale", settings: {factr: 1.0}, accuracy: 0.5, cores: 1}
      - {name: absent, model: variants/none.onnx, accuracy: 0.5, cores: 1}
  - name: sign
    adapter: {rename: {scaled: value}}
    variants:
      - {name: plain, model: "shop_models:Sign", accuracy: 0.7, cores: 1}
      - {name: lonely, model: "shop_models:Sign", settings: {alone: true}, accuracy: 0.8, cores: 1}
      - {name: numeric, model: variants/sign.joblib, accuracy: 0.8, cores: 1}
"""
"""``numeric`` is given two tensors where it takes one, ``lonely`` takes no batch."""


def test_mistakes_in_every_part_are_found_together(shop):
    write_shop(shop, MISTAKES)
    joblib.dump(LogisticRegression().fit(np.array([[-1.0], [1.0]]), [0, 1]), shop / "variants" / "sign.joblib")
    (shop / "labels.json").write_text('{"sign": ["yes"], "sing": []}')
    (shop / "profile.csv").write_text(
        "task,variant,cores,batch_size,latency_mean,kind,startup_seconds\nscale,one,1,1,-2,measured,1\n"
    )
    counts = ["count", *["5"] * MIN_SECONDS]
    counts[7] = "-1"
    (shop / "mine.csv").write_text("\n".join(counts))
    change(
        shop, trace="mine.csv", sed=1, seeds=0, simulation={"intervall": 3}, training={"updates": 0, "update": 1},
        forecast={"epochs": 0}, agents={"agent": 3}, policies=["greedy", "mioypc", "no_such_module:Mine"],
    )  # fmt: skip
    found = check_project(shop)
    assert "Traceback" not in texts(found)
    expected = [
        ("params.yaml", "parameter seeds is 0, but must be a list"),
        ("params.yaml", "no notebook has a parameter 'sed'; correct or delete it"),
        ("params.yaml, simulation", "intervall is not a known key; known are interval, "),
        ("params.yaml, forecast", "epochs must be at least 1, not 0"),
        ("params.yaml, training", "updates must be at least 1, not 0"),
        ("params.yaml, training", "update is not a known key"),
        ("params.yaml, agents.agent", "it is 3; write a mapping of kind, weights and training"),
        ("params.yaml, policies", "'mioypc' is not one of random, greedy,"),
        ("params.yaml, policies", "'no_such_module:Mine' cannot be imported: No module named 'no_such_module'"),
        ("trace", "line 8: count '-1' is negative"),
        ("labels", "'sing' is no task; the pipeline has scale, sign"),
        ("labels", "labels of 'sign': 1 entries; write a list with one label for each of 4 samples"),
        ("metric", "metric 'no_such_module:metric' cannot be imported"),
        ("models", "there is no file or folder"),
        ("models", "task 'scale': variant 'unloadable', given no request: unloadable ended before it was ready"),
        ("models", "task 'sign': variant 'lonely', given 2 times the answer of variant 'one'"),
        (
            "models",
            "task 'sign': variant 'numeric', given the answer of variant 'one' ('value' FP32 [1, 1], 'rest' BYTES [1])",
        ),
        ("profile.csv", "latency_mean"),
    ]
    missing = [
        (place, text) for place, text in expected if not any(p == place and text in t for p, t in found.problems)
    ]
    assert not missing, texts(found)
    assert sorted(places(found)) == sorted(place for place, _ in expected), texts(found)


def test_a_wrong_pipeline_file_does_not_hide_what_else_is_wrong(shop):
    file = FILE
    for old, new in (("y: 0.9,", "y: 90,"), ("seconds: 1.0", "seconds: 500ms"), ("name: plain", "name: strict")):
        file = file.replace(old, new)
    write_shop(shop, file)
    change(shop, damping="8", trace="none.csv")
    found = check_project(shop)
    assert places(found) == ["pipeline.yaml"] * 3 + ["params.yaml", "trace"], texts(found)
    for words in ("write 0.9", "500ms", "is taken by an earlier entry", "damping"):
        assert words in texts(found)


@pytest.mark.parametrize(
    "content, words", [("{", "not appear to be JSON"), ('{"cells": [], "nbformat": 4}', "metadata")]
)
def test_files_that_are_no_notebooks_are_named(folder, content, words):
    (folder / "notebooks" / "03_ppo_training.ipynb").write_text(content)
    found = check_project(folder, run_models=False)
    assert places(found) == ["notebooks"] + ["models"] * 3
    assert "03_ppo_training.ipynb is no notebook" in texts(found) and words in texts(found)


def test_missing_notebooks_are_named(folder):
    (folder / "notebooks" / "03_ppo_training.ipynb").unlink()
    change(folder, sed=1)  # it may be a parameter of the missing one
    found = check_project(folder, run_models=False)
    assert places(found) == ["notebooks"] + ["models"] * 3
    assert "there is no 03_ppo_training.ipynb; copy it from a new project" in texts(found)


@pytest.mark.parametrize(
    "adapter, run_models, words",
    [
        ("adapters_of_shop:none", False, "cannot be imported: .*no attribute 'none'"),
        ("broken_of_shop:f", True, "cannot be imported: SyntaxError"),
        ("adapters_of_shop:raises", True, "KeyError: 'y'"),
        ("adapters_of_shop:number", True, "the function returned int, not a dict of arrays"),
    ],
)
def test_adapters_of_the_user_are_tried_and_fail_once(shop, adapter, run_models, words):
    (shop / "adapters_of_shop.py").write_text(
        "def raises(tensors):\n    return tensors['y']\n\ndef number(tensors):\n    return 3\n"
    )
    (shop / "broken_of_shop.py").write_text("def (")
    write_shop(shop, FILE.replace("{pick: [scaled], rename: {scaled: value}}", adapter))
    found = check_project(shop, run_models=run_models)
    assert len(found.problems) == 1 and "task 'sign'" in texts(found), texts(found)
    assert re.search(words, texts(found)), texts(found)


def test_an_adapter_beside_the_pipeline_file_works(shop):
    (shop / "helpers_of_shop.py").write_text("def value(tensors):\n    return {'value': tensors['scaled']}\n")
    write_shop(shop, FILE.replace("{pick: [scaled], rename: {scaled: value}}", "helpers_of_shop:value"))
    found = check_project(shop)
    assert not found.problems, texts(found)


WEIRD = [
    None,
    True,
    -1,
    2.5,
    1e300,
    float("nan"),
    "",
    "500ms",
    "\0",
    "a:b",
    [],
    [None],
    [[]],
    {},
    {"": ""},
    {1: {2: 3}},
]


@pytest.mark.parametrize("value", WEIRD, ids=repr)
def test_no_value_of_a_parameter_ends_the_check(folder, value):
    names = list(yaml.safe_load((folder / "params.yaml").read_text()))
    (folder / "params.yaml").write_text(yaml.safe_dump(dict.fromkeys(names, value)))
    found = check_project(folder, run_models=False)
    assert len(found.problems) > 3  # those of the models, and others
    nested = {"agents": {"a": {"weights": value, "training": value}, "b": value}, "training": {"updates": value}}
    assert all(isinstance(text, str) for _, text in parameter_problems(Project.at(folder), nested))


@pytest.mark.parametrize(
    "text, words", [("- 1", "must map names to values"), ("a: [", "not valid YAML"), ("", "must map")]
)
def test_parameters_that_are_no_mapping(folder, text, words):
    (folder / "params.yaml").write_text(text)
    found = check_project(folder, run_models=False)
    assert places(found) == ["params.yaml"] + ["models"] * 3 and words in texts(found)
