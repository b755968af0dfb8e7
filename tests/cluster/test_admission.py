"""Admission checks by the API server: what the policy of a pipeline refuses, and how it comes and goes.

The emulated API server evaluates the policy's CEL with a real implementation.
"""

import pytest
from deadlines import PATIENCE
from hypothesis import given, settings
from small_pipelines import every_configuration, pipelines, stages
from tenacity import retry, retry_if_exception_type, stop_after_attempt
from tiny_cluster import LARGE, SMALL, THIRD, config_map, tiny_pipeline
from tiny_cluster import settings as cluster_settings

from opd.cluster.api import Cluster
from opd.cluster.connection import credentials
from opd.cluster.errors import ConflictError, ForbiddenError, InvalidError
from opd.cluster.inputs import stages_of
from opd.cluster.manifests.admission import admission_objects, most_replicas
from opd.cluster.operations import deploy, preview
from opd.cluster.owned_objects import apply_objects, find_owned
from opd.cluster.resources import ADMISSION_POLICY, DEPLOYMENT, SELDON_DEPLOYMENT, resource_of
from opd.pipeline import Pipeline, Task


@pytest.fixture(params=["deployment", "seldon"])
def guarded(request, space):
    """A namespace whose pipeline has the checks; its workloads are of the resource ``workload``."""
    space.deploy(flavour=request.param, admission=True)
    space.workload = SELDON_DEPLOYMENT if request.param == "seldon" else DEPLOYMENT
    return space


def scale(space, name, replicas):
    return space.cluster.scale(space.workload, name, replicas, "kubectl", force=True)


@retry(retry=retry_if_exception_type(ConflictError), stop=stop_after_attempt(100), reraise=True)
def rewrite(space, name, change):
    """Read a workload, change and replace it; again where its status was written in between."""
    found = space.cluster.get(space.workload, name)
    change(found)
    return space.cluster.replace(found)


def edit(space, name="tiny-first-stage", manager="kubectl", **data):
    """Set fields of a ConfigMap as somebody else does."""
    manifest = config_map(name, **data)
    return space.cluster.apply(manifest, manager, force=True)


@pytest.mark.parametrize(
    ("name", "most"), [("tiny-first-small", 3), ("tiny-first-large", 2), ("tiny-second-x", 2)]
)  # six cores, one of them for the other stage
def test_no_variant_is_scaled_beyond_what_the_pipeline_allows(guarded, name, most):
    for replicas in (most, 0, 1):
        assert scale(guarded, name, replicas)["spec"]["replicas"] == replicas
    wanted = f"allows at most {most} replicas of {name}, not {most + 1}: max_replicas is 3, and 6 cores must hold"
    with pytest.raises(InvalidError, match=wanted):
        scale(guarded, name, most + 1)
    assert guarded.cluster.get(guarded.workload, name)["spec"]["replicas"] == 1
    with pytest.raises(InvalidError, match=wanted):
        rewrite(guarded, name, lambda found: found["spec"].update(replicas=most + 1))


def test_other_workloads_are_nobodys_business(guarded):
    assert guarded.cluster.scale(DEPLOYMENT, "tiny-gateway", 9, "kubectl", force=True)["spec"]["replicas"] == 9
    assert edit(guarded, "theirs", variant="whatever")["data"] == {"variant": "whatever"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"variant": "huge"}, "variant of tiny-first-stage must be one of small, large, x, not huge"),
        ({"batch_size": "3"}, "batch_size of tiny-first-stage must be one of 1, 2, 4, not 3"),
        ({"batch_size": "8"}, "must be one of 1, 2, 4, not 8"),
        ({"batch_size": ""}, "must be one of 1, 2, 4, not "),
    ],
)
def test_a_stage_gets_only_a_variant_and_a_batch_size_that_it_has(guarded, data, message):
    with pytest.raises(InvalidError, match=message):
        edit(guarded, **data)
    assert edit(guarded, variant="large", batch_size="4")["data"] == {"variant": "large", "batch_size": "4"}


def test_a_stage_cannot_be_created_without_variant_and_batch_size(guarded):
    guarded.api.remove(("v1", "configmaps", "space", "tiny-first-stage"))
    with pytest.raises(InvalidError, match="must be one of"):
        edit(guarded)


def test_what_is_beyond_the_limits_already_may_be_changed_otherwise_and_reduced(guarded):
    plural = guarded.workload.plural
    guarded.api.edit(plural, "tiny-first-large", lambda found: found["spec"].update(replicas=9))
    guarded.api.edit("configmaps", "tiny-first-stage", lambda found: found["data"].update(variant="old"))
    edit(guarded, batch_size="2")
    labelled = rewrite(guarded, "tiny-first-large", lambda found: found["metadata"].update(annotations={"team": "a"}))
    assert labelled["spec"]["replicas"] == 9
    with pytest.raises(InvalidError, match="at most 2 replicas of tiny-first-large, not 8"):
        scale(guarded, "tiny-first-large", 8)
    assert scale(guarded, "tiny-first-large", 2)["spec"]["replicas"] == 2


def test_a_changed_pipeline_is_deployed_with_its_limits(guarded):
    before = guarded.pipeline
    tasks = tuple(Task(each.name, each.variants[1:]) for each in before.tasks)
    guarded.pipeline = Pipeline(before.name, tasks, 10, 4, 2, before.service_level)
    flavour = "seldon" if guarded.workload == SELDON_DEPLOYMENT else "deployment"
    wanted = guarded.manifests(stages((0, 4, 2), (1, 1, 1)), flavour=flavour, admission=True)
    for dry_run in (True, False):  # the policy is still the former one in a dry run
        assert list(apply_objects(guarded.cluster, wanted, dry_run))
    with pytest.raises(InvalidError, match="must be one of large, x, not small"):
        edit(guarded, variant="small")
    with pytest.raises(InvalidError, match="must be one of 1, 2, not 4"):
        edit(guarded, batch_size="4")
    assert scale(guarded, "tiny-second-x", 4)["spec"]["replicas"] == 4


def test_every_pipeline_has_checks_of_its_own(space):
    space.deploy(admission=True)
    other = Cluster("other", lambda: credentials(str(space.config)))
    theirs = admission_objects(tiny_pipeline(), cluster_settings(namespace="other"))
    list(apply_objects(other, theirs))
    assert space.names(ADMISSION_POLICY.plural) == {"tiny.space.opd.io", "tiny.other.opd.io"}
    assert space.delete()
    assert space.names(ADMISSION_POLICY.plural) == {"tiny.other.opd.io"}
    assert len(find_owned(other, "tiny")[0]) == len(theirs) == 2


def test_an_account_of_one_namespace_deletes_what_it_may_and_is_told_the_rest(space):
    space.deploy(admission=True)
    space.api.refuse("GET .*validatingadmission", 403, 99)
    assert {kind.kind for kind in find_owned(space.cluster, "tiny")[1]} == {
        *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    }
    assert space.delete()
    assert space.names(ADMISSION_POLICY.plural) == {"tiny.space.opd.io"}


@given(pipelines(max_tasks=2, max_replicas=3))
@settings(max_examples=30)
def test_the_largest_number_of_replicas_is_that_of_the_feasible_configurations(pipeline):
    configurations = every_configuration(pipeline)
    for n, task in enumerate(pipeline.tasks):
        for z, variant in enumerate(task.variants):
            having = [chosen[n].replicas for chosen in configurations if chosen[n].variant == z]
            assert most_replicas(pipeline, task, variant) == max(having, default=0)


@pytest.mark.parametrize("configuration", [stages((SMALL, 3, 4), (SMALL, 1, 1)), stages((LARGE, 2, 1), (THIRD, 1, 2))])
def test_what_the_controller_may_run_is_admitted(space, configuration):
    space.deploy(admission=True)
    for task, stage in zip(tiny_pipeline().tasks, configuration, strict=True):
        variant = task.variants[stage.variant].name
        edit(space, f"tiny-{task.name}-stage", "opd-controller", variant=variant, batch_size=str(stage.batch_size))
        space.cluster.scale(DEPLOYMENT, f"tiny-{task.name}-{variant}", stage.replicas, "opd-controller", force=True)


def test_deploy_brings_keeps_and_takes_the_checks(space):
    """The change to ``--stage`` goes the way of the controller, which the checks are for as well."""
    guarding, told = cluster_settings(admission=True), []
    assert deploy(space.cluster, space.pipeline, guarding, {}, PATIENCE, told.append)
    wanted = stages_of(space.pipeline, ["first=large:2:4"])
    changes = deploy(space.cluster, space.pipeline, guarding, wanted, PATIENCE, told.append)
    assert {change.outcome for change in changes if not resource_of(change.after).namespaced} == {"unchanged"}
    assert space.api.find("configmaps", "tiny-first-stage")["data"] == {"variant": "large", "batch_size": "4"}
    taken = preview(space.cluster, space.pipeline, cluster_settings(), {}, told.append)
    gone = {change.before["kind"] for change in taken if change.outcome == "deleted"}
    assert gone == {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    deploy(space.cluster, space.pipeline, cluster_settings(), {}, PATIENCE, told.append)
    assert not space.names(ADMISSION_POLICY.plural)


def test_without_rights_in_the_cluster_nothing_is_deployed(space):
    space.api.refuse("GET .*/validatingadmission.*/tiny.space", 403, 99)
    with pytest.raises(ForbiddenError, match="cluster-wide"):
        deploy(space.cluster, space.pipeline, cluster_settings(admission=True), {}, PATIENCE, print)
    assert not space.api.objects
