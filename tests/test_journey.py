"""A pipeline of one's own from the first command to the last, as its user goes: the installed wheel, a new folder,
offline.

Every step is a fixture that needs the one before, so any test can run alone. Most of the time replicas start.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from deadlines import PATIENCE, eventually, terminating
from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet
from installed_package import HANGING_SECONDS, build_wheel, clean_environment, install, run
from process_family import ended, family

from opd.workload.trace_limits import MIN_SECONDS

pytestmark = [pytest.mark.processes, pytest.mark.slow]

KEPT = {"restore": ("mean", "knn-200"), "recognise": ("bayes",), "accept": ("threshold",)}
"""Variants of the example that the user keeps."""

OWN_MODULE = """
import numpy as np

def named(tensors):
    return {"probabilities": np.asarray(tensors["predict_proba"])}

class TwoEach:
    def __init__(self, pipeline):
        self.tasks = len(pipeline.tasks)

    def decide(self, observation):
        return [(0, 1, 2)] * self.tasks
"""
"""An adapter and a policy of the user."""

POLICIES = ["greedy", "ipa", "myopic-backlog", "agent", "our_code:TwoEach"]

TRAINING = dict(
    updates=1, num_envs=8, rollout_steps=8, epochs=1, minibatch_size=32, width=16, blocks=1, cloning_steps=20,
    validate_every=1, validation_episodes=4, validation_decisions=5,
)  # fmt: skip


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class User:
    """Calls the installed command in a folder."""

    def __init__(self, scripts: Path, folder: Path) -> None:
        self._scripts, self.folder, self.shop = scripts, folder, folder / "shop"
        path = os.pathsep.join([str(scripts), os.environ["PATH"]])  # the environment is active
        self._environment = clean_environment() | {"PATH": path}

    def __call__(self, *words: str | Path, code: int = 0) -> Answer:
        with self.starting(*words) as process:
            out, err = process.communicate(timeout=HANGING_SECONDS)
        answer = Answer(process.returncode, out, err)
        assert answer.code == code, f"opd {words}: exit code {answer.code}\n{out[-3000:]}\n{err[-6000:]}"
        assert "Traceback" not in err
        return answer

    @contextmanager
    def starting(self, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
        """A command that runs, in a process group of its own as in a terminal."""
        process = subprocess.Popen(
            [self._scripts / "opd", *words],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with terminating(process):
            yield process

    def python(self, *words: str | Path) -> str:
        """Output of the interpreter that has the package, called in the project."""
        return run([self._scripts / "python", *words], self.shop, self._environment)

    def change(self, name: str, change: Any) -> None:
        """Edit a YAML file of the project."""
        path = self.shop / name
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module", autouse=True)
def terminal() -> Iterator[None]:
    """Let Ctrl-C reach the commands, as in a terminal: a shell disables it for programs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> User:
    scripts = install(build_wheel(tmp_path_factory.mktemp("source")), tmp_path_factory.mktemp("environment"))
    return User(scripts, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def project(user: User) -> User:
    """The example, with fewer variants, code of the user and short trainings."""
    assert "opd profile shop" in user("init", "shop", "--example", "tabular").out

    def smaller(content: dict[str, Any]) -> None:
        for task in content["tasks"]:
            task["variants"] = [each for each in task["variants"] if each["name"] in KEPT[task["name"]]]
        content["tasks"][-1]["adapter"] = "our_code:named"
        content["limits"] = {"replicas": 2, "batch_size": 2}

    def shorter(content: dict[str, Any]) -> None:
        content |= {"policies": POLICIES, "cycles": 0}
        content["forecast"] = {"epochs": 1, "train_windows": 500}
        content["training"] = TRAINING
        content["simulation"]["interval"] = 2

    (user.shop / "our_code.py").write_text(OWN_MODULE)
    user.change("pipeline.yaml", smaller)
    user.change("params.yaml", shorter)
    rate = 6 + 4 * np.sin(np.arange(MIN_SECONDS) / 900)
    counts = pd.DataFrame({"count": np.random.default_rng(0).poisson(rate)})
    counts.to_csv(user.folder / "load.csv", index=False)
    return user


@pytest.fixture(scope="module")
def checked(project: User) -> tuple[User, Answer]:
    return project, project("check", "shop", "--json")


def test_the_project_is_in_order(checked: tuple[User, Answer]):
    user, answer = checked
    assert answer.json == {"problems": [], "notes": ["not measured yet; run `opd profile`"]}
    where = user.python("-c", "import opd; print(opd.__file__)").strip()
    assert Path(where).parents[1].name == "site-packages" and "environment" in where


def measured(user: User) -> pd.DataFrame:
    """Latencies that have been measured so far."""
    path = user.shop / "profile.csv"
    if not path.is_file():
        return pd.DataFrame()
    table = pd.read_csv(path)
    return table[table["kind"] == "measured"].drop(columns=["startup_seconds", "memory_mb"])


class Profiling(NamedTuple):
    user: User
    before: pd.DataFrame
    answer: Answer


@pytest.fixture(scope="module")
def profiled(checked: tuple[User, Answer]) -> Profiling:
    """Profiled in two runs: Ctrl-C ends the first one when one variant has been measured."""
    user, _ = checked
    with user.starting("profile", "shop", "--json") as process:
        eventually(lambda: process.poll() is not None or len(measured(user)) >= 2, HANGING_SECONDS, 0.1)
        processes = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, ""), err
    assert "Traceback" not in err and err.endswith("interrupted; run the command again to go on\n")
    eventually(lambda: all(map(ended, processes)))
    before = measured(user)
    return Profiling(user, before, user("profile", "shop", "--json"))


def test_an_interrupted_profile_goes_on_where_it_ended(profiled: Profiling):
    after = measured(profiled.user)
    cells = len(after)
    assert cells == 2 * sum(map(len, KEPT.values())) > len(profiled.before) >= 2
    assert len(profiled.before.merge(after)) == len(profiled.before)  # to the last digit
    assert len([row for row in profiled.answer.json if row["kind"] == "measured"]) == cells


def test_recommendations_follow_the_profile(profiled: Profiling):
    answer = profiled.user("recommend", "shop", "--load", "2", "--json").json
    assert answer["reached"] and answer["load"] == 2
    best = answer["configurations"][0]
    assert best["keeps_level"] and len(best["stages"]) == 3 and not best["assumed"]
    refused = profiled.user("recommend", "shop", "--load", "100000", "--json", code=1).json
    assert not refused["reached"] and refused["limits"]


@pytest.fixture(scope="module")
def evaluated(profiled: Profiling) -> tuple[User, Answer, Answer]:
    user = profiled.user
    trained = user("train", "shop", "--trace", "load.csv", "--json")
    return user, trained, user("evaluate", "shop", "--trace", "load.csv", "--json")


def test_training_and_evaluation_cover_every_policy(evaluated: tuple[User, Answer, Answer]):
    user, trained, answer = evaluated
    assert "damping is now 1 (before: 8): the counts of load.csv are taken as they are" in trained.err
    assert "damping is now" not in answer.err
    assert [each["policy"] for each in trained.json["tuned"]] == ["agent"]
    assert (user.shop / "models" / "agents" / "tabular" / "agent-0.npz").is_file()
    labels = [name.rpartition(":")[2] for name in POLICIES]
    assert sorted(row["policy"] for row in answer.json) == sorted(labels)
    assert all(0.0 < row["mean_accuracy"] < 1.0 and "qos" not in row for row in answer.json)
    page = re.sub(r"data:[^\"]*", "", (user.shop / "reports" / "index.html").read_text())  # figures hold any letters
    assert all(label in page for label in labels) and "mean accuracy" in page and "QoS" not in page
    assert yaml.safe_load((user.shop / "params.yaml").read_text())["trace"] == str(user.folder / "load.csv")


def test_afterwards_dvc_has_nothing_to_do(evaluated: tuple[User, Answer, Answer]):
    user = evaluated[0]
    assert json.loads(user.python("-m", "dvc", "status", "--json")) == {}
    made = {path: path.stat().st_mtime_ns for path in user.shop.glob("reports/**/*") if path.is_file()}
    user.python("-m", "dvc", "repro")
    assert made == {path: path.stat().st_mtime_ns for path in user.shop.glob("reports/**/*") if path.is_file()}


def outcomes(record: Path) -> list[str]:
    """What became of the decisions in a record, so far."""
    lines = record.read_text().split("\n")[:-1] if record.is_file() else []  # the last one may be in the writing
    return [json.loads(line)["outcome"] for line in lines]


def test_a_served_pipeline_loses_nothing_and_ends_completely(evaluated: tuple[User, Answer, Answer]):
    user = evaluated[0]
    address = user.shop / ".cache" / "serving" / "address.json"
    assert "start `opd serve shop`" in user("load", "shop", code=2).err
    record = user.folder / "decisions.jsonl"
    with user.starting("serve", "shop", "--policy", "our_code:TwoEach", "--record", record) as process:
        eventually(lambda: process.poll() is not None or address.is_file())
        sent = user("load", "shop", "--rate", "5", "--seconds", "10", "--json").json
        eventually(lambda: process.poll() is not None or "applied" in outcomes(record))
        processes = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (sent["offered"], sent["completed"], sent["failures"]["requests"]) == (50, 50, 0)
    assert process.returncode == 0, out + err
    assert "Traceback" not in err and "every process has ended" in out
    assert "fallback" not in out  # the user's policy decided
    # Itself, a gateway and a replica a stage; where Prometheus is installed, that and its supervisor as well.
    assert len(processes) >= 1 + 1 + len(KEPT) and all(map(ended, processes))
    assert not address.is_file()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[ApiServer, Path]]:
    api = ApiServer()
    kubelet = Kubelet(api)
    yield api, kubeconfig(api, tmp_path)
    kubelet.close()
    api.stop()


def test_the_same_folder_runs_on_a_cluster(profiled: Profiling, cluster: tuple[ApiServer, Path], tmp_path: Path):
    user, (api, config) = profiled.user, cluster
    store = tmp_path / "store"
    store.mkdir()
    (user.shop / "cluster.yaml").write_text(yaml.safe_dump({"image": "registry.example/opd:1", "store": str(store)}))
    place = ["shop", "--namespace", "space", "--kubeconfig", config]
    preview = user("deploy", *place, "--dry-run")
    assert f"would be copied into {store}" in preview.err and "tabular-gateway" in preview.out
    assert not any(store.iterdir()) and not api.all("deployments")
    deployed = user("deploy", *place)
    assert "the gateway calls our_code:named; the image must have" in deployed.err
    assert "stored restore/knn-200" in deployed.err and "pipeline tabular serves" in deployed.out
    assert {path.parent.name for path in store.glob("*/*/manifest.json")} == {
        v for names in KEPT.values() for v in names
    }
    assert "stored" not in user("deploy", *place).err  # nothing is copied twice
    assert "tabular in namespace space: serves" in user("status", *place).out
    user("delete", *place)
    user("status", *place, code=3)
