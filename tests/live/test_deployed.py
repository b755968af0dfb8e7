"""Live evaluation on an emulated cluster; its pods are real servers with tiny models."""

import numpy as np
import pandas as pd
import pytest
from cluster_site import IMAGE, emulated_site

from opd import cli
from opd.cluster.errors import LedByAnotherError
from opd.cluster.names import selector
from opd.cluster.overlay import read_overlay
from opd.cluster.resources import POD
from opd.cluster.settings import ClusterSettings
from opd.live import deployed as evaluation
from opd.live.configurations import SchedulePolicy, configurations_from
from opd.live.fidelity import replay
from opd.live.runs import LiveSite, run_live, summarise_run
from opd.live.traffic import Traffic
from opd.measurement import SimulationParameters
from opd.objective import Weights
from opd.serving.monitoring.scraper import Scraper
from opd.serving.monitoring.source import MonitoringError

pytestmark = [pytest.mark.processes, pytest.mark.slow]

INTERVAL = 4
SLOWER, MORE = configurations_from([[[1, 1, 2], [0, 1, 1]], [[1, 2, 1], [0, 1, 1]]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with emulated_site(tmp_path_factory.mktemp("site")) as emulated:
        assert emulated.opd("deploy") == cli.DONE
        yield emulated


@pytest.fixture
def monitor(site):
    scraper = Scraper()
    pods, _ = site.cluster.list(POD, selector(site.pipeline.name))
    scraper.set_targets({pod["metadata"]["name"]: f"{pod['status']['podIP']}:8082" for pod in pods})
    yield scraper
    scraper.close()


@pytest.fixture
def deployed(site, monitor, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", site.kubeconfig)
    overlay = read_overlay(site.folder / "overlay.yaml")
    settings = ClusterSettings(namespace="space", image=IMAGE, store=str(site.folder / "store"), overlay=overlay)
    return lambda: evaluation.DeployedPipeline(site.pipeline, settings, monitor, INTERVAL, site.address)


def test_reconfiguring_the_deployed_pipeline_under_load_loses_no_request(site, deployed, tmp_path):
    payloads = tmp_path / "payloads.parquet"
    pd.DataFrame({"payload": [b"hello"]}).to_parquet(payloads)
    traffic = Traffic(np.full(6 + 3 * INTERVAL, 5), 6, payloads, 0)
    with deployed() as backend:
        initial = backend.configuration
        policy = SchedulePolicy([SLOWER, MORE, initial], 3)
        run = run_live(backend, policy, lambda history: history.max(), Weights(), INTERVAL, traffic, tmp_path)
    summary = summarise_run(run)
    assert summary["refused"] == []
    assert [step.configuration for step in run.steps] == [SLOWER, MORE, initial]
    assert summary["requests"]["completed"] == summary["requests"]["offered"] == 5 * len(traffic.counts)
    assert set(run.records["answer"]) == {"HELLO"}
    table = replay({"profiled": site.pipeline}, SimulationParameters(interval=INTERVAL), run, [0])
    assert np.isfinite(table[["profiled", "measured"]]).all(axis=1).any()


def test_only_one_evaluation_at_a_time_controls_the_pipeline(deployed, monkeypatch):
    monkeypatch.setattr(evaluation, "LEAD_SECONDS", 1.0)
    with (
        deployed(),
        pytest.raises(LedByAnotherError, match="another controller holds the Lease 'tiny-controller'"),
    ):
        deployed().__enter__()
    with deployed() as again:
        assert again.configuration == again.pipeline.smallest_configuration()


def pod_with(restarts, state, last=None, **metadata):
    container = {"name": "server", "restartCount": restarts, "state": {state[0]: state[1]}, "lastState": last or {}}
    return {"p": {"metadata": {"name": "p", **metadata}, "status": {"containerStatuses": [container]}}}


def test_every_end_of_a_server_is_reported_once_with_its_reason(caplog):
    ended = {"exitCode": 1, "message": "Traceback ...\nMemoryError: cannot allocate"}
    running, waiting = ("running", {}), ("waiting", {"reason": "CrashLoopBackOff"})
    last = {"terminated": ended}
    evaluation.warn_of_ends(
        [
            pod_with(3, running, last),  # what ended before is not news
            pod_with(3, ("terminated", ended), last),
            pod_with(3, waiting, last),
            pod_with(4, running, last),
            pod_with(5, running, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            pod_with(5, ("terminated", {"exitCode": 0}), last, deletionTimestamp="now"),
        ]
    )
    assert [record.getMessage() for record in caplog.records] == [
        "a server ended: pod 'p': its last run ended with exit code 1: MemoryError: cannot allocate",
        "a server ended: pod 'p': its last run ended with exit code 137: OOMKilled",
    ]


def test_a_cluster_without_prometheus_url_is_refused(site, tmp_path, monkeypatch):
    monkeypatch.delenv("OPD_PROMETHEUS_URL", raising=False)
    live_site = LiveSite("kubernetes", tmp_path, cluster_settings="settings.yaml", gateway_address=site.address)
    with pytest.raises(MonitoringError, match="set OPD_PROMETHEUS_URL"):
        live_site.open_backend(site.pipeline, SimulationParameters(), SLOWER)
