"""Archives: what is written comes back, a failed write leaves the older file, and nothing else is read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opd.host.archive import HEADER, ArchiveError, load_archive, save_archive, written_whole

FORMAT = "test 1"
METADATA = {"name": "Zoë", "numbers": [1, 0.1, None], "nested": {"deep": True}}
ARRAYS = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "empty": np.zeros((0, 4)), "count": np.array(7)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "some.npz"
    save_archive(path, FORMAT, METADATA, ARRAYS)
    return path


def test_an_archive_comes_back_as_it_was_written(saved):
    metadata, arrays = load_archive(saved, FORMAT)
    assert metadata == METADATA
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(
    ("metadata", "arrays", "error"),
    [({"lambda": lambda: None}, ARRAYS, TypeError), (METADATA, {"objects": np.array([None])}, ValueError)],
)
def test_a_save_that_fails_leaves_the_older_file(saved, metadata, arrays, error):
    older = saved.read_bytes()
    with pytest.raises(error):
        save_archive(saved, FORMAT, metadata, arrays)
    assert saved.read_bytes() == older


def test_a_file_is_replaced_only_once_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("older")
    with pytest.raises(RuntimeError, match="power cut"), written_whole(path) as unfinished:
        unfinished.write_text("new")
        raise RuntimeError("power cut")
    assert path.read_text() == "older"
    assert list(tmp_path.iterdir()) == [path]
    with written_whole(path) as unfinished:
        unfinished.write_text("new")
    assert path.read_text() == "new"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ArchiveError, match=r"there is no file .*none\.npz"):
        load_archive(tmp_path / "none.npz", FORMAT)


def test_another_format_is_named(saved):
    with pytest.raises(ArchiveError, match=r"some\.npz has format 'test 1', not 'test 2'"):
        load_archive(saved, "test 2")


@pytest.mark.parametrize("content", [b"", b"no archive", bytes(1000), b"PK\x03\x04" + bytes(100)])
def test_a_file_that_is_no_archive_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"some\.npz is damaged, or not an archive of format 'test 1'"):
        load_archive(saved, FORMAT)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ArchiveError, match="is damaged"):
        load_archive(saved, FORMAT)


@pytest.mark.parametrize("header", ["no json", "[1, 2]", '"test 1"', json.dumps({"format": FORMAT})])
def test_an_archive_of_something_else_is_refused(saved, header):
    np.savez(saved, **{HEADER: np.array(header)})
    with pytest.raises(ArchiveError, match="is damaged, or not an archive"):
        load_archive(saved, FORMAT)


def test_arrays_without_a_header_are_refused(saved):
    np.savez(saved, **ARRAYS)
    with pytest.raises(ArchiveError, match=HEADER):
        load_archive(saved, FORMAT)


def test_a_file_that_holds_code_is_refused_unread(saved):
    class Trap:
        def __reduce__(self):
            return Path.unlink, (saved,)

    header = np.array(json.dumps({"format": FORMAT, "metadata": {}}))
    np.savez(saved, **{HEADER: header}, trap=np.array([Trap()], dtype=object))
    with pytest.raises(ArchiveError, match="is damaged, or not an archive"):
        load_archive(saved, FORMAT)
    assert saved.is_file()


def test_damage_is_noticed_or_harmless(saved):
    content = bytearray(saved.read_bytes())
    refused = 0
    table_of_contents = content.index(b"PK\x01\x02")
    for position in np.random.default_rng(0).integers(table_of_contents, size=300):
        damaged = content.copy()
        damaged[position] ^= 0xFF
        saved.write_bytes(damaged)
        try:
            metadata, arrays = load_archive(saved, FORMAT)
        except ArchiveError:
            refused += 1
            continue
        assert metadata == METADATA
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(arrays[name], array)
    assert refused > 200
