"""Several gateways in front of a local pipeline: they divide the replicas, and one of them may be killed under load."""

import os
import signal
from pathlib import Path

import pytest
from deadlines import eventually
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import stages
from tiny_local import FAST, PARAMETERS, SLOW, Load, outcomes, tiny_pipeline

from opd.serving.local import LocalBackend
from opd.serving.local_gateways import LocalGateways
from opd.serving.processes import stop_all
from opd.serving.replicas import ReplicaEndpoint, share_of
from opd.serving.settings import GatewaySettings, GatewayStage

# --- shares ----------------------------------------------------------------------------------------------------------


def endpoints(number):
    return [ReplicaEndpoint(f"r{place}", "v", f"host:{place}") for place in range(number)]


def shares(replicas, gateways):
    """By gateway, its share of each of its replicas."""
    return [
        {int(each.name[1:]): each.share for each in share_of(endpoints(replicas), place, gateways)}
        for place in range(gateways)
    ]


def test_known_shares():
    assert shares(2, 1) == [{0: 1.0, 1: 1.0}]
    assert shares(3, 2) == [{0: 1.0, 1: 0.5}, {1: 0.5, 2: 1.0}]
    assert shares(1, 2) == [{0: 0.5}, {0: 0.5}]
    assert shares(0, 2) == [{}, {}]


@given(st.integers(1, 40), st.integers(1, 9))
def test_every_gateway_has_the_same_part_and_every_replica_is_used_whole(replicas, gateways):
    found = shares(replicas, gateways)
    assert [sum(each.values()) for each in found] == pytest.approx([replicas / gateways] * gateways)
    of_replicas = [sum(each.get(place, 0.0) for each in found) for place in range(replicas)]
    assert of_replicas == pytest.approx([1.0] * replicas)


# --- for real --------------------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_adapters_come_from_the_project_and_not_from_where_one_works(tmp_path, monkeypatch):
    (project := tmp_path / "project").mkdir()
    (project / "params.yaml").touch()
    (project / "only_here.py").write_text("def same(request):\n    return request\n")
    monkeypatch.chdir(tmp_path)
    stage = GatewayStage(task="first", adapter={"function": "only_here:same"})
    gateways = LocalGateways(GatewaySettings(name="tiny", stages=[stage], objective=1.0), Path("."), project=project)
    try:
        eventually(lambda: gateways.reconcile() or gateways.answer or gateways.errors())
        assert not gateways.errors()
    finally:
        stop_all(gateways.servers)


@pytest.fixture(scope="module")
def two(tmp_path_factory, store):
    folder = tmp_path_factory.mktemp("two")
    initial = stages((FAST, 3, 2), (FAST, 1, 2))
    with LocalBackend(tiny_pipeline(), PARAMETERS, initial, folder, store, gateways=2) as backend:
        yield backend


def used(gateway, task):
    """Share of each replica that a gateway uses."""
    replicas = gateway.http("GET", f"/stages/{task}")["replicas"]
    return {each["name"]: each["share"] for each in replicas if not each["retired"]}


@pytest.mark.processes
def test_two_gateways_divide_the_replicas_and_serve_through_a_change(two, tmp_path):
    parts = [used(gateway, "first") for gateway in two.gateways.servers]
    assert sorted(parts[0].values()) == sorted(parts[1].values()) == [0.5, 1.0]
    assert len(parts[0].keys() | parts[1].keys()) == 3 and len(parts[0].keys() & parts[1].keys()) == 1
    assert [list(used(gateway, "second").values()) for gateway in two.gateways.servers] == [[0.5], [0.5]]
    traffic = Load(two, tmp_path, [20] * 6)
    two.apply(stages((SLOW, 2, 2), (FAST, 2, 1)))
    assert outcomes(traffic.records()) == {"completed": 120}
    assert [list(used(gateway, "first").values()) for gateway in two.gateways.servers] == [[1.0], [1.0]]


@pytest.mark.processes
def test_one_of_two_gateways_is_killed_under_load_and_no_request_is_lost(two, tmp_path):
    killed, other = two.gateways.servers
    traffic = Load(two, tmp_path, [20] * 8, retry=True)
    traffic.wait_until_under_way()
    os.kill(killed.pid, signal.SIGKILL)
    assert outcomes(traffic.records()) == {"completed": 160}
    eventually(lambda: two.gateways.answer and all(stage.settled for stage in two.stages))
    assert not used(killed, "first").keys() & used(other, "first").keys()
