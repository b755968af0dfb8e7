"""A project folder of a user, with a policy in a file of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

POLICIES = """
from numbers_of_the_project import SMALLEST


class Nothing:
    def decide(self, observation):
        return SMALLEST


class Pipelined(Nothing):
    def __init__(self, pipeline):
        self.pipeline = pipeline


class Complete(Nothing):
    def __init__(self, objective, pipeline, threshold=0.5):
        self.pipeline, self.objective, self.threshold = pipeline, objective, threshold


class Anything(Nothing):
    def __init__(self, **given):
        self.given = given


class Demanding(Nothing):
    def __init__(self, pipeline, trace):
        pass


class Broken(Nothing):
    def __init__(self):
        raise KeyError("weights")


class Leaving(Nothing):
    def __init__(self):
        raise SystemExit(1)


class Confused:
    def decide(self, observation):
        return None


class Undecided:
    pass


class Outer:
    class Inner(Nothing):
        pass


number = 3
"""
"""Policies for two tasks."""

MODULES = {
    "policies_of_the_project": POLICIES,
    "numbers_of_the_project": "SMALLEST = [[0, 1, 1], [0, 1, 1]]",
    "unfinished_of_the_project": "def (",
}


@contextmanager
def user_project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make ``folder`` a project and a folder inside it the working directory; in the end its modules are forgotten."""
    folder.mkdir(exist_ok=True)
    (folder / "params.yaml").touch()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    inside = folder / "inside"
    inside.mkdir()
    with monkeypatch.context() as patch:
        patch.chdir(inside)
        patch.setattr(sys, "path", [*sys.path])
        yield folder
    for name in MODULES:
        sys.modules.pop(name, None)
