"""The model store on a folder, in memory, and on object storage by the S3 protocol."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from deadlines import PATIENCE
from full_disk import full_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from opd.host.documents import DocumentError
from opd.serving.manifest import MANIFEST
from opd.serving.store import (
    CACHE_VARIABLE,
    STORE_URL_VARIABLE,
    CorruptVariantError,
    ModelStore,
    StoreError,
    write_manifest,
)

RUNTIME = "opd.serving.python_model.PythonModel"


@pytest.fixture
def variant(tmp_path: Path) -> Path:
    folder = tmp_path / "variant"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(bytes(range(256)) * 1000)
    (folder / "characters.txt").write_text("a\nb\n")
    (folder / "tokens" / "de").mkdir(parents=True)
    (folder / "tokens" / "de" / "words.txt").write_text("eins\n")
    write_manifest(folder, RUNTIME, {"extra": {"size": [64, 32]}})
    return folder


@pytest.fixture(scope="module")
def s3_options() -> Iterator[dict]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    options = dict(key="key", secret="secret", endpoint_url=endpoint, client_kwargs={"region_name": "eu-west-1"})
    try:
        yield options
    finally:
        server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request, tmp_path: Path) -> ModelStore:
    name = uuid.uuid4().hex
    if request.param == "folder":
        return ModelStore(str(tmp_path / "store"), tmp_path / "cache")
    if request.param == "memory":
        return ModelStore(f"memory://{name}/store", tmp_path / "cache")
    options = request.getfixturevalue("s3_options")
    fsspec.filesystem("s3", **options).mkdir(name)
    return ModelStore(f"s3://{name}/store", tmp_path / "cache", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def damage(store: ModelStore, task: str, variant: str, name: str) -> None:
    store._files.pipe_file(f"{store._root}/{task}/{variant}/{name}", b"damaged")


def test_what_is_pushed_is_pulled(store: ModelStore, variant: Path):
    assert store.variants() == {}
    store.push(variant, "detection", "small")
    store.push(variant, "detection", "large")
    store.push(variant, "recognition", "small")
    assert contents(store.pull("detection", "small")) == contents(variant)
    assert store.variants() == {"detection": ["large", "small"], "recognition": ["small"]}


def test_what_is_there_already_is_not_written_again(store: ModelStore, variant: Path):
    assert store.push(variant, "detection", "small")
    assert not store.push(variant, "detection", "small")
    (variant / "characters.txt").write_text("c\n")
    write_manifest(variant, RUNTIME, {})
    assert store.push(variant, "detection", "small")
    store._files.rm(f"{store._root}/detection/small/tokens/de/words.txt")
    assert store.push(variant, "detection", "small")
    assert contents(store.pull("detection", "small")) == contents(variant)


NAMES = st.from_regex(r"[a-zA-Z0-9_é-][a-zA-Z0-9._ -]{0,8}", fullmatch=True)


@settings(max_examples=30)  # each writes files
@given(st.dictionaries(st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=20), max_size=6))
def test_any_files_in_any_subfolders_come_back(files: dict[str, bytes]):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "variant")
        for name, content in files.items():
            path = folder / name
            if name == MANIFEST or any(other.startswith(f"{name}/") or name.startswith(f"{other}/") for other in files):
                continue  # a file cannot be a folder as well
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        folder.mkdir(exist_ok=True)
        write_manifest(folder, RUNTIME, {})
        for url in (f"{scratch}/store", f"memory://{uuid.uuid4().hex}"):
            store = ModelStore(url, Path(scratch, "cache"))
            store.push(folder, "task", "small")
            assert contents(store.pull("task", "small")) == contents(folder)


def test_the_error_for_a_missing_variant_lists_the_others(store: ModelStore, variant: Path):
    with pytest.raises(KeyError, match="no variant 'small' of task 'detection'.*it has no variant"):
        store.pull("detection", "small")
    store.push(variant, "detection", "large")
    with pytest.raises(KeyError, match="no variant 'small' of task 'detection'.*detection: large"):
        store.pull("detection", "small")


def test_a_damaged_file_in_the_store_is_named(store: ModelStore, variant: Path):
    store.push(variant, "detection", "small")
    damage(store, "detection", "small", "characters.txt")
    with pytest.raises(CorruptVariantError, match="characters.txt should have the SHA-256"):
        store.pull("detection", "small")


def test_a_file_missing_in_the_store_is_named(store: ModelStore, variant: Path):
    store.push(variant, "detection", "small")
    store._files.rm(f"{store._root}/detection/small/model.onnx")
    with pytest.raises(CorruptVariantError, match="model.onnx should have .* but has no file"):
        store.pull("detection", "small")


def test_pushing_replaces_a_variant_with_all_its_files(store: ModelStore, variant: Path):
    store.push(variant, "detection", "small")
    before = store.pull("detection", "small")
    (variant / "characters.txt").unlink()
    write_manifest(variant, RUNTIME, {"extra": {"size": [32, 32]}})
    store.push(variant, "detection", "small")
    assert contents(store.pull("detection", "small")) == contents(variant)
    assert store._is_local or (before / "characters.txt").is_file()


def test_a_damaged_variant_is_not_pushed(store: ModelStore, variant: Path):
    (variant / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(CorruptVariantError, match=r"model\.onnx"):
        store.push(variant, "detection", "small")
    assert store.variants() == {}


@pytest.mark.parametrize("room", [0, 100], ids=["for no file", "not for the manifest"])
def test_a_push_onto_a_full_disk_leaves_no_variant_and_a_later_one_succeeds(tmp_path: Path, room: int):
    (variant := tmp_path / "variant").mkdir()
    (variant / "characters.txt").write_text("a\nb\n")
    write_manifest(variant, RUNTIME, {})
    store = ModelStore(str(tmp_path / "store"))
    with full_disk(room), pytest.raises(StoreError, match=f"model store {tmp_path}/store cannot.*File too large"):
        store.push(variant, "detection", "small")
    assert store.variants() == {}
    with pytest.raises(KeyError, match="no variant 'small' of task 'detection'"):
        store.pull("detection", "small")
    assert store.push(variant, "detection", "small")
    assert contents(store.pull("detection", "small")) == contents(variant)


@pytest.mark.parametrize("store", ["memory", "s3"], indirect=True)
@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_a_damaged_or_incomplete_cache_is_pulled_again(store: ModelStore, variant: Path, name: str):
    store.push(variant, "detection", "small")
    folder = store.pull("detection", "small")
    (folder / name).write_bytes(b"damaged")
    assert contents(store.pull("detection", "small")) == contents(variant)
    (folder / name).unlink()
    assert contents(store.pull("detection", "small")) == contents(variant)


@pytest.mark.parametrize("store", ["memory", "s3"], indirect=True)
def test_a_cached_variant_is_not_copied_again(store: ModelStore, variant: Path):
    store.push(variant, "detection", "small")
    folder = store.pull("detection", "small")
    store._files.rm(f"{store._root}/detection/small/model.onnx")
    assert store.pull("detection", "small") == folder


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_leftovers_of_a_killed_replica_are_removed_but_a_running_pull_is_not(store: ModelStore, variant: Path):
    store.push(variant, "detection", "small")
    cache = store.pull("detection", "small").parent
    left, running = cache / ".pull-left", cache / ".pull-running"
    for folder in (left, running):
        (folder / "copy").mkdir(parents=True)
    os.utime(left, (0, 0))
    (variant / "characters.txt").write_text("c\n")
    write_manifest(variant, RUNTIME, {})
    store.push(variant, "detection", "small")
    store.pull("detection", "small")
    assert running.is_dir() and not left.exists()


@pytest.mark.parametrize("store", ["s3"], indirect=True)  # fsspec's memory files are not safe between threads
def test_concurrent_pulls_get_the_same_complete_variant(store: ModelStore, variant: Path):
    store.push(variant, "detection", "small")
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: store.pull("detection", "small"), range(24), timeout=PATIENCE))
    (folder,) = folders
    assert contents(folder) == contents(variant)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a*", "s3://a", "a\n"])
def test_names_are_plain(name: str, variant: Path, tmp_path: Path):
    store = ModelStore(str(tmp_path / "store"))
    for task, other in ((name, "small"), ("detection", name)):
        with pytest.raises(ValueError, match="is not a valid name"):
            store.push(variant, task, other)
        with pytest.raises(ValueError, match="is not a valid name"):
            store.pull(task, other)


@pytest.mark.parametrize("name", ["../characters.txt", "/etc/passwd", "a/../../b", "a//b", "./a", "C:\\\\a", "tokens/"])
def test_a_manifest_cannot_write_outside_its_folder(name: str, variant: Path, tmp_path: Path):
    manifest = variant / MANIFEST
    manifest.write_text(manifest.read_text().replace("characters.txt", name))
    store = ModelStore(f"memory://{uuid.uuid4().hex}", tmp_path / "cache")
    store._files.put(str(variant), f"{store._root}/detection/small", recursive=True)
    with pytest.raises(ValueError, match="is not a valid name"):
        store.pull("detection", "small")


def test_a_link_out_of_the_folder_is_refused(variant: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("a\nb\n")
    (variant / "characters.txt").unlink()
    (variant / "characters.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(CorruptVariantError, match="characters.txt is a link out of the folder"):
        ModelStore(str(tmp_path / "store")).push(variant, "detection", "small")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not JSON"),
        ("[]", "must be a mapping"),
        ('{"class": "a:B", "settings": {}, "files": {}}', "runtime is missing"),
        ('{"runtime": "a.B", "files": {"a": "no hash"}}', "files.a"),
    ],
)
def test_a_broken_manifest_is_named(content: str, problem: str, variant: Path, tmp_path: Path):
    (variant / MANIFEST).write_text(content)
    with pytest.raises(DocumentError, match=f"(?s){MANIFEST}.*{re.escape(problem)}"):
        ModelStore(str(tmp_path / "store")).push(variant, "detection", "small")


def test_a_folder_is_used_in_place(variant: Path, tmp_path: Path):
    store = ModelStore(str(tmp_path / "store"), tmp_path / "cache")
    store.push(variant, "detection", "small")
    assert store.pull("detection", "small") == tmp_path / "store" / "detection" / "small"
    assert not (tmp_path / "cache").exists()


def test_url_and_cache_come_from_the_environment(variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(STORE_URL_VARIABLE, "memory://environment")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    ModelStore().push(variant, "detection", "small")
    assert (tmp_path / "cache") in ModelStore("memory://environment").pull("detection", "small").parents


def test_a_store_that_does_not_answer_is_named(tmp_path: Path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        options = dict(key="k", secret="s", config_kwargs={"connect_timeout": 1, "retries": {"max_attempts": 1}})
        store = ModelStore("s3://bucket/store", tmp_path, endpoint_url=endpoint, **options)
        with pytest.raises(StoreError, match="s3://bucket/store cannot be used.*endpoint"):
            store.variants()


def test_an_unknown_protocol_is_named():
    with pytest.raises(StoreError, match="carrier-pigeon://store cannot be used"):
        ModelStore("carrier-pigeon://store")
