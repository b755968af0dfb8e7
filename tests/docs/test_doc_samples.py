"""The samples of the documentation: Python runs, files are read by what reads them, and doctests give what they say."""

from __future__ import annotations

import ast
import asyncio
import doctest
import importlib
import inspect
import pickle
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from code_blocks import code_blocks
from deadlines import PATIENCE
from pipeline_folders import PROFILE, SHOP, write_pipeline
from pydantic import TypeAdapter
from small_shop import FILE, write_shop

from opd.control.user_policy import load_user_policy
from opd.host.paths import package_path
from opd.measurement import idle_observation
from opd.objective import Weights
from opd.pipeline import as_configuration, check_feasible
from opd.profiling.pipeline_file import ObjectiveSection, VariantSection
from opd.profiling.pipelines import load_pipeline
from opd.project.storing import store_models
from opd.serving.emulation.replica import EmulatedReplica
from opd.serving.emulation.settings import ReplicaSettings
from opd.serving.models import build_object
from opd.serving.processes import hold_port
from opd.serving.samples import read_samples

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

RUN = {
    "README.md": 1,
    "docs/live.md": 1,
    "docs/models.md": 2,
    "docs/other-planes.md": 1,
    "docs/policies.md": 1,
    "docs/requests.md": 1,
    "docs/service-levels.md": 1,
}
"""Samples of Python on each page that the tests below run."""


def samples(page: str | Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return code_blocks(text, language)


def run(page: str, number: int = 0) -> dict[str, Any]:
    """Run a sample, as a file in the working directory, and return its names."""
    code = samples(page, "python")[number]
    names: dict[str, Any] = {"__name__": "sample", "__file__": str(Path("sample.py").resolve())}
    exec(compile(code, page, "exec"), names)
    return names


def test_every_sample_of_python_is_run_below():
    found = {page.relative_to(ROOT).as_posix(): len(samples(page, "python")) for page in PAGES}
    assert {page: number for page, number in found.items() if number} == RUN


# Python


def test_the_environment_of_the_readme_makes_a_step():
    names = run("README.md")
    assert names["state"] in names["environment"].observation_space and np.isfinite(names["reward"])


def test_a_configuration_is_recommended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    shutil.copytree(package_path("examples", "video"), tmp_path / "shop")
    monkeypatch.chdir(tmp_path)
    answer = run("docs/service-levels.md")["answer"]
    told = capsys.readouterr().out
    assert str(answer.as_table()) in told and all(limit.text in told for limit in answer.limits)


def test_the_policy_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_policies.py").write_text(samples("docs/policies.md", "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    video = load_pipeline("video")
    policy = load_user_policy("my_policies:TwoOfTheSmallest", video, Weights())
    decided = as_configuration(np.array(policy.decide(idle_observation(video))))
    check_feasible(video, decided)
    assert {stage.replicas for stage in decided} == {1}


def test_the_class_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sampled_models.py").write_text(samples("docs/models.md", "python")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = build_object(tmp_path, {"class": "sampled_models:Detector", "size": 320})
    assert set(model({"image": np.zeros((2, 3))})) == {"boxes"}


@pytest.mark.slow
@pytest.mark.processes
def test_accuracy_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_shop(tmp_path / "shop", FILE)
    (folder / "params.yaml").write_text("pipeline: pipeline.yaml\n", encoding="utf-8")
    monkeypatch.chdir(folder)
    store_models(folder / "pipeline.yaml", print)
    table = run("docs/models.md", 1)["table"]
    assert len(table) == 4 and table["measured"].between(0, 1).all()


def test_the_policy_for_ray_serve_is_made_and_can_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names = {"first": "detect", "second": "classify"}
    text, profile = SHOP, PROFILE
    for old, new in names.items():
        text, profile = text.replace(f"name: {old}", f"name: {new}"), profile.replace(f"{old},", f"{new},")
    text = text.replace("{name: small, arch", "{name: tiny, arch")
    write_pipeline(tmp_path / "shop", text, profile.replace("classify,small", "classify,tiny"))
    policy = run("docs/other-planes.md")["policy"]
    assert pickle.loads(pickle.dumps(policy))({}) == ({}, {})


@contextmanager
def served(model: str) -> Iterator[str]:
    """A replica that answers whatever it is asked, in a thread; gives its address."""
    up, done = threading.Event(), threading.Event()
    known = dict(pipeline="sampled", task=model, variant="small", latency={1: 0.01, 2: 0.01})
    settings = ReplicaSettings(**known, grpc_port=hold_port(done))

    async def serve() -> None:
        replica = EmulatedReplica(settings, "127.0.0.1")
        await replica.start()
        up.set()
        await asyncio.to_thread(done.wait, PATIENCE)
        await replica.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert up.wait(PATIENCE)
        yield f"127.0.0.1:{settings.grpc_port}"
    finally:
        done.set()
        thread.join(PATIENCE)


def test_the_client_gets_an_answer(capsys):
    (code,) = samples("docs/requests.md", "python")
    with served("shop") as address:
        assert "127.0.0.1:8081" in code
        exec(compile(code.replace("127.0.0.1:8081", address), "docs/requests.md", "exec"), {"__name__": "sample"})
    assert "array(" in capsys.readouterr().out


def test_the_profiler_takes_what_it_is_given():
    """Running it would measure for many minutes: its names exist, and its calls fit them."""
    tree = ast.parse(samples("docs/live.md", "python")[0])
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    names: dict[str, Any] = {}
    exec(compile(ast.Module(imports, []), "docs/live.md", "exec"), names)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert len(calls) == 3
    for call in calls:
        assert isinstance(call.func, ast.Name)
        keywords = {word.arg: word.value for word in call.keywords if word.arg}
        inspect.signature(names[call.func.id]).bind(*call.args, **keywords)


# Files


def test_parts_of_pipeline_files_are_valid():
    (objective,) = (yaml.safe_load(text) for text in samples("docs/service-levels.md", "yaml"))
    (variants,) = (yaml.safe_load(text) for text in samples("docs/models.md", "yaml"))
    assert TypeAdapter(ObjectiveSection).validate_python(objective["objective"]).latency.seconds == 0.5
    assert len(TypeAdapter(list[VariantSection]).validate_python(variants["variants"])) == 3


def test_the_requests_are_samples(tmp_path: Path):
    (text,) = samples("docs/requests.md", "json")
    (tmp_path / "requests.json").write_text(text, encoding="utf-8")
    (request,) = read_samples(tmp_path / "requests.json")
    assert [tensor.name for tensor in request.inputs] == ["age", "city"]


# Doctests


def having_prompts(paths: list[Path]) -> list[Path]:
    """Files with doctests, below the root."""
    return [p.relative_to(ROOT) for p in paths if re.search(r"^ *>>> ", p.read_text(encoding="utf-8"), re.MULTILINE)]


@pytest.mark.parametrize("page", having_prompts(PAGES), ids=str)
def test_pages_show_what_comes_out(page: Path):
    test = doctest.DocTestParser().get_doctest("\n".join(samples(page, "pycon")), {}, str(page), str(page), 0)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("path", having_prompts(sorted((ROOT / "opd").rglob("*.py"))), ids=str)
def test_docstrings_show_what_comes_out(path: Path):
    result = doctest.testmod(importlib.import_module(".".join(path.with_suffix("").parts)))
    assert result.attempted and result.failed == 0
