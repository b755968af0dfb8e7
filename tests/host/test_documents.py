"""Documents from people: only plain data is read, and errors say what to correct and where."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from deadlines import within
from pydantic import Field, field_validator

from opd.host.documents import (
    MAX_BYTES,
    MAX_DEPTH,
    DocumentError,
    DocumentModel,
    as_model,
    parse_document,
    read_as,
    read_document,
    read_json,
)
from opd.host.errors import MAX_PROBLEMS

# --- plain data ------------------------------------------------------------------------------------------------------

LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol]"] + [f"a{n}: &a{n} [{', '.join(f'*a{n - 1}' for _ in range(9))}]" for n in range(1, 10)]
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "line 1: anchors and aliases"),
        ("all: &x {spec: {}}", "anchors and aliases"),
        ("all: *nowhere", "anchors and aliases|alias"),
        ("all: {<<: &base {spec: {}}}", "anchors and aliases"),
        ("[" * (MAX_DEPTH + 1), f"deeper than {MAX_DEPTH}"),
        ("[" * 30000, f"deeper than {MAX_DEPTH}"),
        ("{a: " * 10000, f"deeper than {MAX_DEPTH}"),
        ("- " * 30000, f"deeper than {MAX_DEPTH}"),
        ("#" * (MAX_BYTES + 1), f"larger than {MAX_BYTES}"),
        ("all: !!python/object/apply:os.system [echo]", "tags such as"),
        ("all: !!binary aGVsbG8=", "tags such as"),
        ("all: {}\n---\nall: {}", "only one document"),
        ("all: {}\nall: {spec: {}}", "'all' appears twice"),
        ("all: {spec: {priority: 1, priority: 2}}", "'priority' appears twice"),
        ("all: {spec: ", "document.yaml: "),
        ("? {a: b}\n: c", "unhashable"),
        ("all: {spec: {priority: " + "9" * 5000 + "}}", "4300 digits"),
        ("all: {spec: {hostname: 2026-13-45}}", "month"),
    ],
)
def test_documents_with_more_than_plain_data_are_refused_quickly(text, message):
    with within(), pytest.raises(DocumentError, match=message):
        parse_document(text.encode(), "document.yaml")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00", b"all: \x07"])
def test_content_that_is_not_text_is_refused(content):
    with pytest.raises(DocumentError, match="document.yaml: "):
        parse_document(content, "document.yaml")


def test_a_document_of_many_keys_is_read_quickly():
    content = b"{" + b", ".join(b"%x: 1" % number for number in range(7000)) + b"}"
    assert len(content) < MAX_BYTES
    with within():
        assert len(parse_document(content, "document.yaml")) == 7000


def test_a_file_beyond_the_limit_is_refused(tmp_path):
    path = tmp_path / "document.yaml"
    path.write_bytes(b"#" * (10 * MAX_BYTES))
    with pytest.raises(DocumentError, match=f"larger than {MAX_BYTES}"):
        read_document(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_document(tmp_path)


# --- data of a model -------------------------------------------------------------------------------------------------


class Wheel(DocumentModel):
    size: Annotated[float, Field(gt=0.0)]
    """inches"""
    spokes: int = 32


class Bicycle(DocumentModel):
    name: str = Field(min_length=1)
    """what its owner calls it"""
    gears: list[int] = Field(min_length=1, examples=["[11, 13, 15]"])
    wheels: dict[str, Wheel]
    spare: Wheel | None = None
    electric: bool = False

    @classmethod
    def conflicts(cls, content):
        wheels = content.get("wheels")
        if content.get("spare") is not None and not wheels:
            yield ("spare",), "there is a {spare}, but no wheels; add some"
        if isinstance(wheels, dict) and len(wheels) > 2:
            yield ("wheels", "middle"), f"{len(wheels)} wheels are too many for a bicycle"

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name.isupper():
            raise ValueError(f"name {name!r} is all capitals; do not shout")
        return name


RIGHT = """
name: blue
gears: [11, 13]
wheels:
  front: {size: 28}
  back: {size: 28.0, spokes: 36}
"""


def written(tmp_path: Path, old: str = "", new: str = "") -> Path:
    assert old in RIGHT
    path = tmp_path / "bicycle.yaml"
    path.write_text(RIGHT.replace(old, new, 1))
    return path


def test_a_document_is_read_as_its_model(tmp_path):
    bicycle = read_as(Bicycle, written(tmp_path))
    assert bicycle.wheels == {"front": Wheel(size=28.0), "back": Wheel(size=28.0, spokes=36)}
    assert bicycle == as_model(Bicycle, read_document(written(tmp_path)), "bicycle")
    with pytest.raises(ValueError, match="frozen"):
        bicycle.name = "red"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("name: blue", "", "name (line 3) is missing (what its owner calls it)"),
        ("name: blue", "name: 5", "name (line 2) must be text, in quotes where YAML reads something else, not 5"),
        ("name: blue", "name:", "name (line 2) must be text, in quotes where YAML reads something else, not nothing"),
        ("name: blue", "name: BLUE", "name (line 2): name 'BLUE' is all capitals; do not shout"),
        ("name: blue", "name: blue\nbell: 1", "bell (line 3) is not a known key; known are name, gears, wheels, spare"),
        ("[11, 13]", "[]", "gears (line 3) needs at least 1 entry (such as [11, 13, 15])"),
        ("[11, 13]", "[11, 1.5]", "gears[1] (line 3) must be a whole number, not 1.5"),
        ("[11, 13]", "[11, true]", "gears[1] (line 3) must be a whole number, not true"),
        ("[11, 13]", "11", "gears (line 3) must be a list, not 11 (such as [11, 13, 15])"),
        ("[11, 13]", "{a: 11}", "gears (line 3) must be a list, not a mapping"),
        ("{size: 28}", "28", "wheels.front (line 5) must be a mapping of size, spokes, not 28"),
        ("{size: 28}", "{}", "wheels.front.size (line 5) is missing (inches)"),
        ("{size: 28}", "{size: -1}", "wheels.front.size (line 5) must be greater than 0, not -1 (inches)"),
        ("{size: 28}", "{size: .nan}", "wheels.front.size (line 5) must be a finite number, not nan"),
        ("{size: 28}", "{size: '28'}", "wheels.front.size (line 5) must be a number, not '28'"),
        (
            "{size: 28}",
            "{size: 28, tyre: wide}",
            "wheels.front.tyre (line 5) is not a known key; known are siz",
        ),
        ("name: blue", "name: blue\nspare: {size: 0}", "spare.size (line 3) must be greater than 0, not 0 (inches)"),
        ("name: blue", "name: blue\nelectric: 1", "electric (line 3) must be true or false, not 1"),
        ("  front:", "  1:", "wheels[1] (line 5) must be text"),
    ],
)
def test_the_error_for_a_wrong_document_names_place_value_limit_and_remedy(old, new, message, tmp_path):
    path = written(tmp_path, old, new)
    with pytest.raises(DocumentError) as error:
        read_as(Bicycle, path)
    assert str(error.value).startswith(f"{path}: {message}"), error.value


def test_all_problems_are_reported_at_once(tmp_path):
    path = written(tmp_path)
    path.write_text("gears: [1.5]\nwheels: {front: {size: 28, spokes: many}}\nbell: loud\n")
    with pytest.raises(DocumentError) as error:
        read_as(Bicycle, path)
    first, *problems = str(error.value).splitlines()
    assert first == f"{path} has 4 problems:"
    assert [problem.split()[1] for problem in problems] == ["name", "gears[0]", "wheels.front.spokes", "bell"]
    assert [problem.split("line ")[1][0] for problem in problems] == ["1", "1", "2", "3"]


def test_conflicts_between_keys_are_reported_with_the_problems_of_single_keys(tmp_path):
    path = written(tmp_path)
    path.write_text("name: 5\nwheels: {}\nspare: {size: 0}\ngears: [1]\n")
    with pytest.raises(DocumentError) as error:
        read_as(Bicycle, path)
    assert str(error.value).splitlines() == [
        f"{path} has 3 problems:",
        "- name (line 1) must be text, in quotes where YAML reads something else, not 5 (what its owner calls it)",
        "- spare.size (line 3) must be greater than 0, not 0 (inches)",
        "- spare (line 3): there is a {spare}, but no wheels; add some",
    ]
    path.write_text(RIGHT + "  middle: {size: 28}\n")
    with pytest.raises(DocumentError) as error:
        read_as(Bicycle, path)
    assert str(error.value) == f"{path}: wheels.middle (line 7): 3 wheels are too many for a bicycle"


@pytest.mark.parametrize("content", [None, [], "text", 5])
def test_a_document_that_is_not_a_mapping_is_refused(content):
    with pytest.raises(DocumentError, match="bicycle: the document must be a mapping of name, gears, wheels, spare"):
        as_model(Bicycle, content, "bicycle")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'"\xff"'])
def test_what_is_not_json_is_refused_with_the_remedy(tmp_path, content):
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(DocumentError, match="answers.json is not JSON: .*; export it again"):
        read_json(path, "export it again")


def test_errors_stay_short_for_long_documents(tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(f"name: {'x' * 10_000}\ngears: {['a'] * 5000}\n? {'k' * 20_000}\n: 1\n")
    with (
        pytest.raises(DocumentError, match=f"has 5002 problems(.|\n)*and {5002 - MAX_PROBLEMS} more") as error,
        within(),
    ):
        read_as(Bicycle, path)
    assert len(str(error.value)) < 10_000
    with pytest.raises(DocumentError, match="name must be text") as error:
        as_model(Bicycle, {"name": ["x" * 1000], "gears": [1], "wheels": {}, "k" * 5000: 1}, "long")
    assert len(str(error.value)) < 500
