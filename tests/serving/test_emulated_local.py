"""A pipeline of emulated replicas on this machine: served, reconfigured, and with replicas that fail."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
from deadlines import PATIENCE, eventually
from small_pipelines import stages

from opd.live.generator import start_load
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.serving.emulation.names import emulated_pipeline
from opd.serving.emulation.requests import emulated_samples
from opd.serving.local import LocalBackend

pytestmark = pytest.mark.processes

FAST, SLOW = 0, 1
INITIAL = stages((FAST, 2, 1), (FAST, 1, 1))


def pipeline_of_many() -> Pipeline:
    variants = (Variant("fast", 0.5, 1, {1: 0.02, 4: 0.05}, 0.2), Variant("slow", 0.7, 1, {1: 0.1, 4: 0.3}, 0.4))
    tasks = (Task("first", variants, {"pick": ["not-there"]}), Task("second", variants))
    return Pipeline("many", tasks, 64, 20, 4, service_level=ServiceLevel(1.0))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    parameters = SimulationParameters(interval=2, service_noise=0.1, drop_after=PATIENCE)
    folder = tmp_path_factory.mktemp("emulated")
    with LocalBackend(emulated_pipeline(pipeline_of_many()), parameters, INITIAL, folder, "no-store") as backend:
        yield backend


@pytest.fixture
def backend(running):
    running.apply(INITIAL)
    return running


def load(backend, tmp_path, counts):
    samples, output = emulated_samples(tmp_path), tmp_path / "requests.parquet"
    return start_load(backend.address, "many-emulated", np.array(counts), samples, 0, output, timeout=PATIENCE)


def replicas_of(backend, position):
    return [each.process for each in backend.stages[position].replicas if not each.draining]


def test_many_replicas_are_one_process_and_answer_every_request(backend, tmp_path):
    backend.apply(stages((SLOW, 20, 1), (FAST, 20, 2)))
    assert len({replica.pid for replica in replicas_of(backend, 0) + replicas_of(backend, 1)}) == 1
    assert len({replica.grpc_address for replica in replicas_of(backend, 0)}) == 20
    assert psutil.Process(backend.emulation.process.pid).children() == []
    records = load(backend, tmp_path, [20] * 3).finish(PATIENCE)
    assert records["outcome"].value_counts().to_dict() == {"completed": 60}
    texts = {number: set(rows["answer"]) for number, rows in records.groupby("payload")}
    assert all(answers == {f"emulated request {number}"} for number, answers in texts.items())
    assert (records["finished"] - records["sent"]).min() > 0.05  # 0.12 s in the mean


def test_its_metrics_say_that_it_is_emulated(backend, tmp_path):
    load(backend, tmp_path, [5]).finish(PATIENCE)
    address = backend.emulation.process.metrics_address
    text = backend.emulation.process  # the process itself is asked below, as a scraper does
    import requests

    metrics = requests.get(f"http://{address}/metrics", timeout=10).text
    assert 'opd_emulated_late_seconds_count{pipeline="many-emulated",task="first",variant="fast"}' in metrics
    assert text.settings.name == "emulated"
    assert list(backend.emulation.states().values())[0]["emulated"]


def test_a_change_of_variant_loses_nothing(backend, tmp_path):
    traffic = load(backend, tmp_path, [10] * 6)
    backend.apply(stages((SLOW, 3, 2), (FAST, 2, 4)))
    backend.apply(stages((FAST, 1, 1), (SLOW, 3, 1)))
    records = traffic.finish(PATIENCE)
    assert records["outcome"].value_counts().to_dict() == {"completed": 60}


def test_a_replica_that_crashes_is_replaced_and_its_requests_are_answered(backend, tmp_path):
    traffic = load(backend, tmp_path, [10] * 6)
    lost = replicas_of(backend, 0)[0]
    lost.fail("crash")
    eventually(lambda: lost.name not in backend.emulation.states())
    eventually(lambda: backend.stages[0].settled and len(replicas_of(backend, 0)) == 2)
    assert lost.ended() and "emulated replica" in lost.failure_reason()
    assert traffic.finish(PATIENCE)["outcome"].value_counts().to_dict() == {"completed": 60}


def test_garbage_fails_its_requests_and_no_others(backend, tmp_path):
    replica = replicas_of(backend, 1)[0]
    replica.fail("garbage")
    records = load(backend, tmp_path, [5]).finish(PATIENCE)
    assert set(records["outcome"]) == {"failed"} and records["detail"].str.contains("malformed answer").all()
    replica.fail("none")
    assert set(load(backend, tmp_path, [5]).finish(PATIENCE)["outcome"]) == {"completed"}


def test_when_their_process_is_killed_all_replicas_are_started_again(backend, tmp_path):
    old = backend.emulation.process.pid
    psutil.Process(old).kill()
    eventually(lambda: backend.emulation.process.pid != old)
    eventually(lambda: all(stage.settled for stage in backend.stages))
    assert set(load(backend, tmp_path, [5]).finish(PATIENCE)["outcome"]) == {"completed"}
