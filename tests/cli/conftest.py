"""Fixtures of the command line's tests, which need optional extras of the package."""

import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cli_shell import Shell

NEEDED = ("mlserver", "kubernetes")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator["Shell"]:
    """The command line on an empty namespace of an emulated cluster."""
    from cli_shell import Shell

    monkeypatch.setattr("opd.cluster.status.POLL_SECONDS", 0.02)
    monkeypatch.setattr("opd.cluster.deletion.POLL_SECONDS", 0.02)
    monkeypatch.setattr("opd.cluster.starts.POLL_SECONDS", 0.02)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    made = Shell(tmp_path, capsys)
    yield made
    made.close()
    for number, handler in handlers.items():  # `opd run` replaces them
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of a briefly trained forecaster."""
    from cli_shell import ROOT

    from opd.host.documents import read_document
    from opd.workload.forecast import ForecastParameters
    from opd.workload.forecast_training import train_forecaster
    from opd.workload.trace import load_trace

    file = tmp_path_factory.mktemp("forecaster") / "forecaster.npz"
    trace = load_trace("synthetic", damping=read_document(ROOT / "params.yaml")["damping"])
    train_forecaster(trace, ForecastParameters(epochs=1, train_windows=1500)).save(file)
    return file
