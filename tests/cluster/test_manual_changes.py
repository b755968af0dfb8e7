"""Changes by hand: how they are recognised, and how a controller leaves them alone and takes over again."""

import pytest
from small_pipelines import stages
from tiny_cluster import INITIAL, SMALL, WANTED, FixedPolicy, settings, tiny_pipeline

from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.manual import ManualChangeError, ManualChanges, manual_changes
from opd.cluster.names import CONTROLLER_MANAGER, DEPLOY_MANAGER
from opd.cluster.owned_objects import apply_objects
from opd.control.loop import APPLIED, REFUSED, run
from opd.objective import Weights

SCALED = stages((SMALL, 2, 1), (SMALL, 1, 1))
FOREVER = 604_800


def scale_by_hand(world, name, replicas, manager="kubectl"):
    world.api.edit("deployments", name, lambda found: found["spec"].update(replicas=replicas), manager)


def edit_by_hand(world, task, **data):
    world.api.edit("configmaps", f"tiny-{task}-stage", lambda found: found["data"].update(data), "kubectl-edit")


# --- what counts: known answers ---------------------------------------------------------------------------------------


def workload(*entries):
    managed = [
        {"manager": manager, "operation": "Update", "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields}
        for manager, time, fields in entries
    ]
    return {"kind": "Deployment", "metadata": {"name": "w", "managedFields": managed}, "spec": {"replicas": 1}}


REPLICAS = {"f:spec": {"f:replicas": {}}}
OTHER = {"f:metadata": {"f:annotations": {"f:a": {}}}}


@pytest.mark.parametrize(
    "entries, manager",
    [
        ([], None),
        ([(DEPLOY_MANAGER, "1", REPLICAS)], None),
        ([(CONTROLLER_MANAGER, "1", REPLICAS), ("kubectl", "2", OTHER)], None),
        ([(CONTROLLER_MANAGER, "1", REPLICAS), ("kubectl", "2", REPLICAS)], None),  # both want this number
        ([(DEPLOY_MANAGER, "1", OTHER), ("kubectl", "2", REPLICAS)], "kubectl"),
        ([("a", "1", REPLICAS), ("b", "3", REPLICAS), ("c", "2", REPLICAS)], "b"),
    ],
)
def test_a_field_is_changed_by_hand_if_others_have_set_it_and_we_have_not(entries, manager):
    assert [change.manager for change in manual_changes(workload(*entries))] == ([manager] if manager else [])


def test_a_change_is_left_alone_for_its_time_and_told_once():
    now, told = [100.0], []
    manual = ManualChanges(60.0, lambda *words: told.append(words), lambda: now[0])
    manual.check([workload()])
    changed = workload(("kubectl", "1", REPLICAS))
    for passed, left in ((0.0, 60), (59.0, 1)):
        now[0] = 100.0 + passed
        with pytest.raises(ManualChangeError, match=f"Deployment 'w': spec.replicas was set by 'kubectl'.* {left} s"):
            manual.check([changed])
    now[0] = 160.0
    manual.check([changed])
    assert [reason for reason, _ in told] == ["ManualChange"]
    with pytest.raises(ManualChangeError, match="another 60 s"):  # a later change begins a time of its own
        manual.check([workload(("kubectl", "2", REPLICAS))])
    assert len(told) == 2


# --- on a cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["replicas", "another variant", "batch size"])
def test_a_change_by_hand_is_left_alone_and_becomes_the_configuration(world, field):
    backend = world.backend(settings=settings(manual_seconds=FOREVER))
    expected = INITIAL
    if field == "replicas":
        scale_by_hand(world, "tiny-first-small", 2)
        expected = SCALED
    elif field == "another variant":
        scale_by_hand(world, "tiny-first-large", 1)
    else:
        edit_by_hand(world, "first", batch_size="4")
        expected = stages((SMALL, 1, 4), (SMALL, 1, 1))
    world.api.requests.clear()
    with pytest.raises(ManualChangeError, match="changed by hand: .*'kubectl.*left alone for another 604800 s"):
        backend.apply(WANTED)
    assert {method for method, *_ in world.api.requests} == {"GET"}
    assert backend.configuration == expected and backend.left_alone
    assert [reason for reason, _ in world.announced] == ["ManualChange"]


def test_after_its_time_control_goes_on_and_the_change_counts_no_longer(world):
    scale_by_hand(world, "tiny-first-small", 2)
    edit_by_hand(world, "second", batch_size="4")
    backend = world.backend(settings=settings(manual_seconds=0))
    backend.apply(backend.configuration)
    assert backend.configuration == stages((SMALL, 2, 1), (SMALL, 1, 4))
    assert not manual_changes(world.api.find("deployments", "tiny-first-small"))
    assert not manual_changes(world.api.find("configmaps", "tiny-second-stage"))
    successor = world.backend(settings=settings(manual_seconds=FOREVER))  # remembers nothing, and need not
    successor.apply(WANTED)
    assert world.state("first") == {"variant": "large", "batch_size": "2"} and not successor.left_alone


def test_a_change_by_hand_in_the_middle_of_ours_ends_it_without_a_fight(world):
    backend = world.backend(settings=settings(manual_seconds=FOREVER))
    world.api.fail("GET .*pods", lambda: scale_by_hand(world, "tiny-first-small", 3))
    with pytest.raises(ManualChangeError, match="'tiny-first-small'"):
        backend.apply(WANTED)
    names = {each["metadata"]["name"]: each["spec"]["replicas"] for each in world.api.all("deployments")}
    assert names["tiny-first-small"] == 3


def test_a_deployment_ends_it(world):
    backend = world.backend(settings=settings(manual_seconds=FOREVER))
    scale_by_hand(world, "tiny-first-small", 2)
    with pytest.raises(ManualChangeError):
        backend.apply(WANTED)
    list(apply_objects(world.cluster, pipeline_objects(tiny_pipeline(), SCALED, world.settings)))
    backend.apply(WANTED)
    assert world.state("first")["variant"] == "large"


def test_the_control_loop_goes_on_from_what_was_changed_by_hand(world):
    backend = world.backend(settings=settings(manual_seconds=FOREVER))
    policy = FixedPolicy(WANTED)
    steps = run(backend, world.pipeline, policy, lambda history: 5.0, Weights(), 3)
    scale_by_hand(world, "tiny-first-small", 2)
    step = next(steps)
    assert (step.outcome, step.configuration, step.decided) == (REFUSED, SCALED, WANTED)
    assert step.score.cost[0] == 3.0 and "left alone" in step.refused
    list(apply_objects(world.cluster, pipeline_objects(tiny_pipeline(), SCALED, world.settings)))
    assert next(steps).outcome == APPLIED
