"""Fixtures of the serving plane's tests, which need optional extras of the package."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

NEEDED = ("mlserver", "prometheus_api_client")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def models_importable():
    """Replicas, which are other processes, find the tests' models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """URL of a model store with the variants of the tiny pipeline."""
    from tiny_local import fill_store

    folder = tmp_path_factory.mktemp("store")
    fill_store(folder)
    return str(folder)


@pytest.fixture(scope="module")
def running(tmp_path_factory, store):
    """A live pipeline, which all tests of a module share."""
    from tiny_local import INITIAL, PARAMETERS, tiny_pipeline

    from opd.serving.local import LocalBackend

    folder = tmp_path_factory.mktemp("live")
    with LocalBackend(tiny_pipeline(), PARAMETERS, INITIAL, folder, store, max_queue=40, standbys=1) as backend:
        yield backend


@pytest.fixture
def backend(running):
    """The running pipeline, back in its first configuration, also where an earlier test ended with an error."""
    from deadlines import eventually
    from tiny_local import INITIAL

    running.apply(INITIAL)
    eventually(lambda: all(stage.settled for stage in running.stages))  # after an error it is restored later
    return running


@pytest.fixture
def no_new_processes():
    """Waits at the end of the test until every process that it started has ended."""
    import psutil
    from deadlines import eventually

    before = set(psutil.Process().children(recursive=True))
    yield
    eventually(lambda: set(psutil.Process().children(recursive=True)) <= before)
