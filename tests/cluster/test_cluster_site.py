"""The emulated site serves the pipeline that it is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster_site import emulated_site, write_pipeline

from opd import cli


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch):
    for name in ("PIPELINE_FILE", "STORE", "PAYLOAD", "FLAVOUR"):
        monkeypatch.delenv(f"OPD_CLUSTER_{name}", raising=False)


def stored(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.glob("*/*") if path.is_dir()}


def test_without_a_file_the_pipeline_is_tiny(tmp_path):
    with emulated_site(tmp_path) as site:
        assert site.pipeline.name == "tiny"
        assert stored(tmp_path / "store") == {
            f"{task}/{name}" for task in ("first", "second") for name in ("fast", "slow")
        }


def test_the_given_file_is_the_pipeline_that_is_deployed(tmp_path, monkeypatch):
    file = write_pipeline(tmp_path, "shop", "only")
    monkeypatch.setenv("OPD_CLUSTER_PIPELINE_FILE", str(file))
    with emulated_site(tmp_path) as site:
        assert site.pipeline.name == "shop"
        assert stored(tmp_path / "store") == {"only/fast", "only/slow"}
        assert site.opd("deploy", "--dry-run") == cli.DONE
        assert site.opd("status") == cli.NOT_DEPLOYED


def test_the_given_store_is_used_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("OPD_CLUSTER_STORE", "s3://models/store")
    with emulated_site(tmp_path):
        assert not (tmp_path / "store").exists()
