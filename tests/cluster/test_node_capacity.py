"""Which nodes' cores are free for the replicas, whose pods tolerate and select as an overlay says."""

import pytest

from opd.cluster.node_capacity import free_cores

EDGE = {"key": "edge", "value": "yes", "effect": "NoSchedule"}


def node(name="n", labels=None, taints=(), **spec):
    status = {"allocatable": {"cpu": "4"}, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": list(taints), **spec}, "status": status}


def pod(where):
    containers = [{"resources": {"requests": {"cpu": "1"}}}]
    return {"metadata": {}, "spec": {"nodeName": where, "containers": containers}, "status": {"phase": "Running"}}


def cores(nodes, pods=(), **pod_spec):
    return free_cores(nodes, pods, lambda pod: False, pod_spec)


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


def test_every_taint_must_be_tolerated_but_one_that_repels_nobody():
    soft = {"key": "busy", "effect": "PreferNoSchedule"}
    gone = {"key": "gone", "effect": "NoExecute"}
    tolerations = [{"key": "edge", "operator": "Exists"}]
    assert cores([node(taints=[EDGE, soft])], tolerations=tolerations) == 4.0
    assert cores([node(taints=[EDGE, gone])], tolerations=tolerations) == 0.0
    tolerations.append({"key": "gone", "operator": "Exists"})
    assert cores([node(taints=[EDGE, gone])], tolerations=tolerations) == 4.0


def test_a_value_is_empty_where_it_is_left_out():
    assert cores([node(taints=[{"key": "edge", "effect": "NoSchedule"}])], tolerations=[{"key": "edge"}]) == 4.0


def test_a_cordoned_node_is_as_if_tainted():
    cordoned = [node(unschedulable=True)]
    assert cores(cordoned, tolerations=[{"key": "edge", "operator": "Exists"}]) == 0.0
    assert cores(cordoned, tolerations=[{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]) == 4.0


def test_only_nodes_that_the_replicas_select_count_and_only_what_runs_there_is_taken():
    nodes = [node("a", {"kind": "edge", "arch": "arm"}), node("b", {"kind": "cloud"}), node("c")]
    pods = [pod("a"), pod("b"), pod("b")]
    assert cores(nodes, pods, nodeSelector={"kind": "edge"}) == 3.0
    assert cores(nodes, pods, nodeSelector={"kind": "edge", "arch": "amd"}) == 0.0
    assert cores(nodes, pods) == 9.0


def test_what_an_overlay_leaves_empty_changes_nothing():
    assert cores([node()], tolerations=None, nodeSelector=None) == 4.0
    assert free_cores([node(taints=[EDGE]), node("m")], [], lambda pod: False) == 4.0
