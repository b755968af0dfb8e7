"""The Lease of controllers: known answers on clocks of their own, then a Lease in an emulated cluster."""

import re
import time

import pytest
from deadlines import PATIENCE, eventually, within
from emulator.api_server import kubeconfig
from tiny_cluster import OFTEN, QUICK, lease_spec, settings, tiny_pipeline

from opd.cluster.api import Cluster
from opd.cluster.connection import RetryPolicy, credentials
from opd.cluster.errors import ClusterError, LedByAnotherError, NoAnswerError, NotDeployedError
from opd.cluster.lease import Lease, LeaseTimes
from opd.cluster.manifests.pipeline import lease
from opd.cluster.names import CONTROLLER, selector
from opd.cluster.resources import LEASE


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture(autouse=True)
def deployed_lease(server):
    """The Lease as it is deployed with the pipeline."""
    server.put(lease(tiny_pipeline(), settings()))


@pytest.fixture
def two(server, tmp_path):
    """Two candidates whose clocks differ by days."""
    path = kubeconfig(server, tmp_path)
    clocks = Clock(0.0), Clock(1e6)
    clusters = [Cluster("space", lambda: credentials(str(path)), QUICK) for _ in clocks]
    return [Lease(c, "tiny", n, LeaseTimes(), k) for c, n, k in zip(clusters, "ab", clocks, strict=True)], clocks


def test_the_first_candidate_leads_and_the_second_waits(server, two):
    (a, b), _ = two
    assert a.attempt() and a.held
    assert not b.attempt() and not b.held
    assert lease_spec(server)["holderIdentity"] == "a" and lease_spec(server)["leaseTransitions"] == 0


def test_a_lease_is_kept_by_renewing_and_lost_without(server, two):
    (a, b), (of_a, of_b) = two
    a.attempt()
    for _ in range(5):
        b.attempt()
        of_a.now, of_b.now = of_a.now + 9, of_b.now + 9
        assert a.attempt() and a.held
    assert not b.attempt()
    of_a.now, of_b.now = of_a.now + 14, of_b.now + 14
    assert not a.held and not b.attempt()  # the old holder stops before the new one may begin
    of_b.now += 2
    assert b.attempt() and lease_spec(server)["leaseTransitions"] == 1
    assert not a.attempt() and not a.held


def test_times_written_by_others_are_ignored(server, two):
    (a, b), (_, of_b) = two
    a.attempt()
    server.edit(
        "leases", "tiny-controller", lambda found: found["spec"].update(renewTime="1999-01-01T00:00:00.000000Z")
    )
    assert not b.attempt()
    of_b.now += 14
    assert not b.attempt()


def test_a_closed_lease_is_returned(server, two):
    (a, b), _ = two
    a.attempt()
    a.close()
    assert not a.held and lease_spec(server)["holderIdentity"] == ""
    assert b.attempt() and lease_spec(server)["holderIdentity"] == "b"


def test_one_of_two_simultaneous_candidates_gets_the_lease(server, two):
    (a, b), _ = two
    a.attempt()
    a.close()
    server.fail("PUT", lambda: a.attempt() if not a.held else None, 1)
    assert not b.attempt() and a.held


def test_a_lease_that_cannot_be_renewed_is_lost_in_time(server, two):
    (a, _), (of_a, _) = two
    a.attempt()
    server.refuse(".", 500, 99)
    of_a.now += 10.5
    with pytest.raises(ClusterError):
        a.attempt()
    assert not a.held


def test_a_lease_is_requested_with_one_short_attempt_whatever_the_cluster_s_retry_policy(server, tmp_path):
    path = kubeconfig(server, tmp_path)
    cluster = Cluster("space", lambda: credentials(str(path)), RetryPolicy(read_seconds=10.0, attempts=4))
    lease = Lease(cluster, "tiny", "a", LeaseTimes(duration=1.5, renewal=1.0, retry=0.1))
    server.fail("GET .*leases", lambda: time.sleep(1.5), 9)
    with within(), pytest.raises(NoAnswerError, match="0.25 s to read"):
        lease.attempt()
    assert len(server.requests) == 1 and cluster.retry_policy.attempts == 4
    assert LeaseTimes().retry_policy == RetryPolicy(connect_seconds=2.5, read_seconds=2.5, attempts=1)


def test_why_a_lease_is_not_held_is_told(server, cluster):
    often = LeaseTimes(duration=30.0, renewal=20.0, retry=0.05)
    with (
        Lease(cluster, "tiny", "a", OFTEN).hold(PATIENCE),
        pytest.raises(LedByAnotherError, match="another controller"),
    ):
        Lease(cluster, "tiny", "b", often).hold(0.5).__enter__()
    server.refuse("leases", 503, 10**6, message="etcd is away")
    with pytest.raises(ClusterError, match="was not held after 0.5 s.*etcd is away") as caught:
        Lease(cluster, "tiny", "b", often).hold(0.5).__enter__()
    assert not isinstance(caught.value, LedByAnotherError)
    server.faults.clear()
    cluster.delete(LEASE, "tiny-controller")
    with within(), pytest.raises(NotDeployedError, match="'tiny' is not deployed"):
        Lease(cluster, "tiny", "b", often).hold(PATIENCE).__enter__()
    assert not server.all("leases")


def test_inconsistent_lease_times_are_refused():
    with pytest.raises(ValueError, match="retry < renewal < duration"):
        LeaseTimes(duration=5, renewal=10)


def test_a_held_lease_is_renewed_in_the_cluster(cluster):
    with Lease(cluster, "tiny", "a", OFTEN).hold(PATIENCE):
        first = cluster.get(LEASE, "tiny-controller")["spec"]
        eventually(lambda: cluster.get(LEASE, "tiny-controller")["spec"]["renewTime"] != first["renewTime"])
    assert cluster.list(LEASE, selector("tiny", CONTROLLER))[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["acquireTime"])
