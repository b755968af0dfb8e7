"""The programs in ``examples/``: short, listed, and every one of them runs from an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from deadlines import PATIENCE

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
LONGEST = 40

pytestmark = pytest.mark.processes


def output_of(name: str, folder: Path, *arguments: str) -> str:
    command = [sys.executable, EXAMPLES / name, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def test_programs_are_numbered_short_and_in_the_table():
    numbers = [int(path.name[:2]) for path in PROGRAMS]
    assert numbers == list(range(1, len(PROGRAMS) + 1))
    assert [path.name for path in PROGRAMS if len(path.read_text().splitlines()) > LONGEST] == []
    listed = re.findall(r"^\| \[`(\S+)`\]\((\S+)\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert listed == [(path.name, path.name) for path in PROGRAMS]


def test_every_program_is_run_by_a_test_here():
    assert set(re.findall(r'output_of\("(\S+)"', Path(__file__).read_text())) == {path.name for path in PROGRAMS}


def test_simulate(tmp_path):
    rows = re.findall(r" (-?\d+\.\d+) +(-?\d+\.\d+) +(\d+\.\d) +(\d+)$", output_of("01_simulate.py", tmp_path), re.M)
    assert [float(cores) for _, _, cores, _ in rows] == [2.0, 4.0, 8.0]
    dropped = [int(dropped) for *_, dropped in rows]
    assert dropped[0] > 0 == dropped[1] == dropped[2], "one replica each is too little, two are enough"


def test_decide(tmp_path):
    printed = output_of("02_decide.py", tmp_path)
    rewards = dict(re.findall(r"^(\w+) +reward +(-?\d+\.\d+)", printed, re.M))
    assert list(rewards) == ["greedy", "ipa", "myopic"]
    assert float(rewards["myopic"]) > float(rewards["greedy"])


@pytest.mark.slow
def test_decide_with_policies_that_are_named(tmp_path):
    assert re.findall(r"^(\w+) +reward", output_of("02_decide.py", tmp_path, "agent", "lookahead"), re.M) == [
        "agent",
        "lookahead",
    ]


def test_own_policy(tmp_path):
    *own, last = (line for line in output_of("03_own_policy.py", tmp_path).splitlines() if line.startswith("forecast"))
    assert len(own) == 4 and own[-1] == "forecast 12 requests/s: replicas [3, 3]"
    assert last.endswith("(policy Thrifty: RuntimeError: I never saw such a load)")


@pytest.mark.slow
@needs("stable_baselines3")
def test_own_environment(tmp_path):
    untrained, trained = map(
        float, re.findall(r"reward +(\S+) a decision", output_of("04_own_environment.py", tmp_path))
    )
    assert trained > untrained


@pytest.mark.slow
@needs("mlserver", "matplotlib")
def test_serve(tmp_path):
    """How many requests are answered depends on the machine; that all are sent and some answered does not."""
    printed = output_of("05_serve.py", tmp_path)
    assert "video-emulated at 127.0.0.1:" in printed
    offered, completed = map(int, re.search(r"'offered': (\d+), 'completed': (\d+)", printed).groups())
    assert offered == 150 and completed > 0


@pytest.mark.slow
@needs("mlserver", "matplotlib")
def test_watch(tmp_path):
    printed = output_of("06_watch.py", tmp_path)
    assert re.match(r"look at http://127.0.0.1:\d+/ while it runs\n", printed)
    assert len(re.findall(r"requests/s: \d+ x [\w-]+, \d+ x opus-mt, \d+ x [\w-]+$", printed, re.M)) == 10
