"""Thousands of wrong pipeline files and profiles: each is read, or refused by an error that names a place."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pipeline_folders import PROFILE, SHOP, write_pipeline

from opd.host.documents import DocumentError, as_model
from opd.profiling.pipeline_file import PipelineFile, read_pipeline_file
from opd.profiling.profiles import load_profile

pytestmark = pytest.mark.slow

TREES, TEXTS, TABLES = 6000, 600, 600
"""Mutations of the parsed file, which is quick, of its text, and of the profile."""

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2.9, 83, 1e300, -0.0, 10**400, float("nan"), float("inf"), "", " ", "500ms", "0.5",
    "../../etc", "a/b", "x" * 5000, "naïve", "名", "\u202e", "\0", "a\nb", "a:b", ":", "store", "!!int 3", [], {}, [[]],
    [{}], {"name": 1}, {1: 2}, {None: None}, {"": ""}, [None], ["a", "a"], {"value": {"value": 1}}, {"seconds": [1]},
]  # fmt: skip

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
VALUES.append(DEEP)


def places(node: Any, at: tuple = ()) -> list[tuple]:
    """Paths of everything below a node."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, child in children for place in [(*at, key), *places(child, (*at, key))]]


def parent_of(tree: Any, place: tuple) -> Any:
    for key in place[:-1]:
        tree = tree[key]
    return tree


def drop(tree: Any, place: tuple, draw: random.Random) -> None:
    del parent_of(tree, place)[place[-1]]


def replace(tree: Any, place: tuple, draw: random.Random) -> None:
    parent_of(tree, place)[place[-1]] = copy.deepcopy(draw.choice(VALUES))


def duplicate(tree: Any, place: tuple, draw: random.Random) -> None:
    parent = parent_of(tree, place)
    if isinstance(parent, list):
        parent.append(copy.deepcopy(parent[place[-1]]))
    else:
        parent[f"{place[-1]}2"] = copy.deepcopy(parent[place[-1]])


def rename(tree: Any, place: tuple, draw: random.Random) -> None:
    parent = parent_of(tree, place)
    if isinstance(parent, dict):
        parent[draw.choice(["nmae", "", 1, None, 2.5, "model", "tasks", "x" * 300])] = parent.pop(place[-1])


def swap(tree: Any, place: tuple, draw: random.Random) -> None:
    other = draw.choice(places(tree))
    if place != other[: len(place)] and other != place[: len(other)]:  # neither holds the other
        one, two = parent_of(tree, place), parent_of(tree, other)
        one[place[-1]], two[other[-1]] = two[other[-1]], one[place[-1]]


CHANGES: list[Callable[[Any, tuple, random.Random], None]] = [drop, replace, replace, replace, duplicate, rename, swap]


def check_error(error: DocumentError, source: str) -> None:
    """An error is short, names the source, and has a place and a reason in every line."""
    first, *rest = str(error).split("\n- ")
    assert first.startswith(source) and len(str(error)) < 20_000
    for problem in rest or [first.removeprefix(source).removeprefix(": ")]:
        assert re.match(r"(and \d+ more|[\w.\[\]'-]+|the document|line \d+)", problem), error
        assert "Traceback" not in problem and "pydantic" not in problem


def test_no_change_of_a_parsed_file_ends_in_another_error():
    original, draw, refused = yaml.safe_load(SHOP), random.Random(0), 0
    for number in range(TREES):
        tree = copy.deepcopy(original)
        for _ in range(draw.choice([1, 1, 2, 4])):
            found = places(tree)
            if found:
                draw.choice(CHANGES)(tree, draw.choice(found), draw)
        try:
            as_model(PipelineFile, tree, "pipeline.yaml")
        except DocumentError as error:
            refused += 1
            check_error(error, "pipeline.yaml")
        except Exception as error:
            pytest.fail(f"mutation {number} ended in {error!r}: {tree}")
    assert TREES / 2 < refused < TREES


SIGNS = ["\t", "{", "]", "&a", "*a", "!!x ", "'", '"', "#", ": ", "- ", "\0", "\u2028", "|", ","]


def mutated(text: str, draw: random.Random) -> bytes:
    """A text with lines or characters dropped, repeated, swapped or inserted."""
    lines = text.split("\n")
    for _ in range(draw.choice([1, 2, 5])):
        one, two = draw.randrange(len(lines)), draw.randrange(len(lines))
        match draw.randrange(6):
            case 0:
                lines.insert(two, lines[one])
            case 1:
                lines[one], lines[two] = lines[two], lines[one]
            case 2:
                lines[one] = lines[one][draw.randrange(len(lines[one]) + 1) :]
            case 3:
                lines[one] = " " * draw.randrange(5) + lines[one]
            case 4:
                at = draw.randrange(len(lines[one]) + 1)
                sign = draw.choice(
                    ["\t", "{", "]", "&a", "*a", "!!x ", "'", '"', "#", ": ", "- ", "\0", "\u2028", "|", ","]
                )
                lines[one] = lines[one][:at] + sign + lines[one][at:]
            case 5:
                lines[one] = draw.choice(["", "---", "...", "- " * 50, "é" * 9, "9" * 5000, "<<: {}", "? :"])
    content = "\n".join(lines).encode()
    return content if draw.random() < 0.95 else content[: draw.randrange(len(content))] + b"\xff"


def test_no_change_of_the_text_of_a_file_ends_in_another_error(tmp_path: Path):
    folder, draw, refused = write_pipeline(tmp_path), random.Random(1), 0
    for number in range(TEXTS):
        content = mutated(SHOP, draw)
        (folder / "pipeline.yaml").write_bytes(content)
        try:
            read_pipeline_file(folder)
        except DocumentError as error:
            refused += 1
            assert str(error).startswith(str(folder / "pipeline.yaml"))
            assert "line " in str(error) or "position" in str(error) or "the document" in str(error), content
        except Exception as error:
            pytest.fail(f"mutation {number} ended in {error!r}: {content!r}")
    assert TEXTS / 3 < refused < TEXTS


def test_no_change_of_a_profile_ends_in_another_error(tmp_path: Path):
    path, draw, refused = tmp_path / "profile.csv", random.Random(2), 0
    for number in range(TABLES):
        content = mutated(PROFILE, draw)
        path.write_bytes(content)
        try:
            load_profile(path)
        except DocumentError as error:
            refused += 1
            assert "line " in str(error) or "not a CSV file" in str(error), error
        except Exception as error:
            pytest.fail(f"mutation {number} ended in {error!r}: {content!r}")
    assert TABLES / 3 < refused < TABLES
