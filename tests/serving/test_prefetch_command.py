"""Models in the cache of a node before replicas pull them."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import fsspec
import pytest
from deadlines import PATIENCE
from serving_models import push_variant

from opd.serving.manifest import MANIFEST
from opd.serving.prefetch import prefetch
from opd.serving.store import CACHE_VARIABLE, CorruptVariantError, ModelStore, write_manifest


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a store in memory with two variants, and an empty cache in the environment."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4().hex}"
    for variant in ("small", "large"):
        folder = tmp_path / variant
        folder.mkdir()
        (folder / "weights").write_text(variant)
        write_manifest(folder, "serving_models.Upper", {})
        ModelStore(url).push(folder, "detect", variant)
    return url


def test_a_replica_downloads_nothing_that_was_prefetched(remote):
    assert prefetch(remote, ["detect/small"]) == 0
    memory = fsspec.filesystem("memory")
    weights = [path for path in memory.find(f"/{remote.removeprefix('memory://')}") if path.endswith("/weights")]
    assert len(weights) == 2
    for path in weights:
        memory.rm(path)
    assert (ModelStore(remote).pull("detect", "small") / "weights").read_text() == "small"
    with pytest.raises(CorruptVariantError):
        ModelStore(remote).pull("detect", "large")


def test_a_variant_that_is_missing_does_not_keep_the_others_from_being_pulled(remote, tmp_path, caplog):
    assert prefetch(remote, ["detect/none", "detect/small"]) == 1
    assert "detect/none was not pulled: no variant 'none' of task 'detect'" in caplog.text
    assert list((tmp_path / "cache").glob(f"detect/small/*/{MANIFEST}"))


@pytest.mark.parametrize(("variant", "code"), [("small", 0), ("none", 1)])
def test_the_exit_code_says_whether_all_are_there(tmp_path, variant, code):
    (tmp_path / "store").mkdir()
    push_variant(tmp_path / "store", "detect", "small")
    command = [sys.executable, "-m", "opd.serving.prefetch", str(tmp_path / "store"), f"detect/{variant}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == code, ended.stderr
    assert f"detect/{variant}" in ended.stderr
