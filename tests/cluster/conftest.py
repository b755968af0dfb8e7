"""Fixtures of the cluster's tests, which need optional extras of the package."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from emulator.api_server import ApiServer
    from tiny_cluster import TinyCluster, TinyDeployment

NEEDED = ("mlserver", "kubernetes", "kubernetes_validate")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture
def server() -> Iterator["ApiServer"]:
    """An emulated API server of Kubernetes."""
    from emulator.api_server import ApiServer

    api = ApiServer()
    yield api
    api.stop()


@pytest.fixture
def space(tmp_path: Path) -> Iterator["TinyCluster"]:
    """An empty namespace of an emulated cluster."""
    from tiny_cluster import TinyCluster

    with TinyCluster(tmp_path) as tiny:
        yield tiny


@pytest.fixture
def world(tmp_path: Path) -> Iterator["TinyDeployment"]:
    """A pipeline that is deployed on an emulated cluster."""
    from tiny_cluster import TinyDeployment

    with TinyDeployment(tmp_path) as tiny:
        yield tiny
