"""Which nodes' cores are free for the replicas, whose pods tolerate and select as an overlay says."""

import pytest
from tiny_cluster import node

from opd.cluster.pods import free_cores, requested_cores

EDGE = {"key": "edge", "value": "yes", "effect": "NoSchedule"}


def pod(*cpus, where="n", phase="Running", **spec):
    containers = [{"resources": {"requests": {"cpu": cpu}}} for cpu in cpus]
    return {"metadata": {}, "spec": {"nodeName": where, "containers": containers, **spec}, "status": {"phase": phase}}


def cores(nodes, pods=(), **pod_spec):
    return free_cores(nodes, pods, lambda pod: False, pod_spec)


@pytest.mark.parametrize(
    "nodes, pods, cores",
    [
        ([node(cpu="4"), node("m", "3500m")], [], 7.5),
        ([node()], [pod("500m", "1")], 2.5),
        ([node()], [pod("1", phase="Succeeded"), pod("1", where="elsewhere")], 4.0),
        ([node(ready="False"), node("m", "2", unschedulable=True)], [], 0.0),
        ([node(taints=[{"effect": "NoSchedule"}]), node("m", "1", taints=[{"effect": "PreferNoSchedule"}])], [], 1.0),
        ([node(cpu="1")], [pod("2")], 0.0),
    ],
)
def test_free_cores(nodes, pods, cores):
    assert free_cores(nodes, pods, lambda pod: False) == cores
    assert free_cores([node()], [pod("3")], lambda pod: True) == 4.0


def test_a_pod_requests_its_containers_or_its_largest_init_step():
    step = {"resources": {"requests": {"cpu": "3"}}}
    sidecar = {"resources": {"requests": {"cpu": "1"}}, "restartPolicy": "Always"}
    assert requested_cores(pod("1", initContainers=[step])) == 3
    assert requested_cores(pod("1", initContainers=[sidecar])) == 2
    assert requested_cores(pod("1", initContainers=[sidecar, step])) == 4
    assert requested_cores(pod("1", overhead={"cpu": "250m"})) == 1.25
    assert requested_cores({"spec": {"containers": [{}]}}) == 0


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"key": "edge", "operator": "Exists", "effect": "NoSchedule"}, True),
        ({"key": "edge", "operator": "Exists"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "edge", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
        ({"key": "edge", "value": "yes"}, True),
        ({"key": "edge", "value": "no"}, False),
        ({"key": "edge"}, False),
        ({"value": "yes"}, False),
        ({"key": "edge", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_a_tainted_node_counts_if_the_replicas_tolerate_it(toleration, tolerated):
    assert cores([node(taints=[EDGE])], tolerations=[toleration]) == (4.0 if tolerated else 0.0)


def test_every_taint_that_repels_pods_must_be_tolerated():
    soft = {"key": "busy", "effect": "PreferNoSchedule"}
    gone = {"key": "gone", "effect": "NoExecute"}
    tolerations = [{"key": "edge", "operator": "Exists"}]
    assert cores([node(taints=[EDGE, soft])], tolerations=tolerations) == 4.0
    assert cores([node(taints=[EDGE, gone])], tolerations=tolerations) == 0.0
    tolerations.append({"key": "gone", "operator": "Exists"})
    assert cores([node(taints=[EDGE, gone])], tolerations=tolerations) == 4.0


def test_an_omitted_value_is_empty():
    assert cores([node(taints=[{"key": "edge", "effect": "NoSchedule"}])], tolerations=[{"key": "edge"}]) == 4.0


def test_a_cordoned_node_counts_as_tainted():
    cordoned = [node(unschedulable=True)]
    assert cores(cordoned, tolerations=[{"key": "edge", "operator": "Exists"}]) == 0.0
    assert cores(cordoned, tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]) == 4.0


def test_only_selected_nodes_and_the_pods_on_them_count():
    nodes = [node("a", labels={"kind": "edge", "arch": "arm"}), node("b", labels={"kind": "cloud"}), node("c")]
    pods = [pod("1", where="a"), pod("1", where="b"), pod("1", where="b")]
    assert cores(nodes, pods, nodeSelector={"kind": "edge"}) == 3.0
    assert cores(nodes, pods, nodeSelector={"kind": "edge", "arch": "amd"}) == 0.0
    assert cores(nodes, pods) == 9.0


def test_empty_parts_of_an_overlay_change_nothing():
    assert cores([node()], tolerations=None, nodeSelector=None) == 4.0
    assert free_cores([node(taints=[EDGE]), node("m")], [], lambda pod: False) == 4.0
