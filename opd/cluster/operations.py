"""Deployment, inspection and deletion of a pipeline: the work behind the command line, returning data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.deletion import delete_pipeline
from opd.cluster.deployed_state import StageStateError, read_stage, replicas_by_role
from opd.cluster.errors import ClusterError, NotDeployedError
from opd.cluster.inputs import Stages, complete_configuration, feasible_configuration
from opd.cluster.lease import Lease
from opd.cluster.manifests.pipeline import lease, pipeline_objects
from opd.cluster.manifests.workloads import renewed_by_surge, replicas_of, template_of
from opd.cluster.manual import manual_changes
from opd.cluster.names import STAGE_BATCH_SIZE, STAGE_VARIANT, gateway_name, service_host
from opd.cluster.owned_objects import (
    WORKLOADS,
    apply_objects,
    delete_objects,
    find_owned,
    identity_of,
    is_model,
    prune_objects,
)
from opd.cluster.pods import requested_cores
from opd.cluster.resources import CONFIG_MAP, DAEMON_SET, Object, ObjectChange, Resource, resource_of
from opd.cluster.settings import ClusterSettings
from opd.cluster.starts import Key, Start, measure_starts
from opd.cluster.status import (
    controller_states,
    leader,
    prefetch_status,
    queued_requests,
    stage_config_maps,
    wait_for_prefetch,
    wait_until_serving,
    workload_statuses,
)
from opd.control.loop import ApplyError
from opd.pipeline import Configuration, InfeasibleError, Pipeline, StageConfiguration, check_feasible, used_cores
from opd.serving.monitoring.scraper import Scraper

LEASE_SECONDS = 20.0
"""The Lease of a controller that died expires within this time."""

Report = Callable[[str], object]
"""Receives a line about progress, for people."""


class PipelineStatus(NamedTuple):
    """State of a deployed pipeline.

    Attributes:
        serves: whether all pods are ready.
        leader: holder of the controllers' Lease, empty if there is none.
        controllers: states of the controllers in the namespace, such as ``warming up``, by pod; only those that answer.
        components: gateways and models, each with the texts of :data:`COLUMNS`, empty where one does not apply.
    """

    serves: bool
    leader: str
    controllers: Mapping[str, str]
    components: Sequence[tuple[str, ...]]


COLUMNS = ("COMPONENT", "TASK", "VARIANT", "READY", "BATCH", "WAITING", "TROUBLE")
"""Parts of a component's status; waiting requests are ``?`` if no gateway can be asked."""


@dataclass(frozen=True)
class _Rollout:
    """The steps of a deployment.

    Attributes:
        start: configuration in the manifests. It is what runs now, if anything does: the backend then reaches
            ``target`` without losing a request.
        target: configuration to be reached.
        manifests: of all objects that are to be there before replicas leave, with ``start``.
        emptied: manifests of the variants that run now, and that ``start`` leaves without replicas.
        superseded: workloads that are in no manifest.
        has_room: whether W_max has room for the replicas that leave next to those of ``start``.
    """

    start: Configuration
    target: Configuration
    manifests: list[Object]
    emptied: list[Object]
    superseded: list[Object]
    has_room: bool

    @property
    def changes_replicas(self) -> bool:
        """Whether other replicas run afterwards, so no controller may lead meanwhile."""
        return bool(self.emptied or self.superseded or self.target != self.start)


def deploy(
    cluster: Cluster,
    pipeline: Pipeline,
    settings: ClusterSettings,
    stages: Stages,
    wait_seconds: float,
    report: Report,
) -> list[ObjectChange]:
    """Create or update the objects of a pipeline, and wait until it serves.

    Args:
        cluster: the namespace.
        pipeline: to deploy.
        settings: of its objects.
        stages: configurations to reach; other stages stay as they run, or begin with the smallest configuration.
        wait_seconds: for pods, at most.
        report: receives warnings and what is still missing.

    Raises:
        InputError: if the configuration breaks a limit of the pipeline.
        NotOursError: if an object exists and belongs to somebody else.
        LedByAnotherError: if a controller leads and would undo the change.
        ClusterError: if the cluster refuses a change, or pods do not become ready.
    """
    rollout = _plan(cluster, pipeline, settings, stages, report)
    # Whether the kinds exist, the rights suffice and the cluster accepts everything shows before the first object does.
    list(apply_objects(cluster, [*rollout.manifests, *rollout.emptied], dry_run=True))
    if not rollout.changes_replicas:
        return _bring(cluster, pipeline.name, rollout, wait_seconds, report)
    list(apply_objects(cluster, [lease(pipeline, settings)]))
    with Lease(cluster, pipeline.name).hold(LEASE_SECONDS) as held:
        changes = _bring(cluster.guarded(held.check_held), pipeline.name, rollout, wait_seconds, report)
        if rollout.target != rollout.start:
            _reach(cluster, pipeline, settings, rollout.target, held)
            changes = [_again(cluster, change) for change in changes]
    return changes


def preview(
    cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings, stages: Stages, report: Report
) -> list[ObjectChange]:
    """Return what :func:`deploy` would change, as the cluster would accept it; nothing is changed.

    Raises:
        InputError: if the configuration breaks a limit of the pipeline.
        ClusterError: if the cluster would refuse a change.
    """
    rollout = _plan(cluster, pipeline, settings, stages, report)
    manifests = pipeline_objects(pipeline, rollout.target, settings)
    changes = [
        *apply_objects(cluster, manifests, dry_run=True),
        *prune_objects(cluster, pipeline.name, manifests, dry_run=True),
        *delete_objects(cluster, rollout.superseded, dry_run=True),
    ]
    return [change for change in changes if change.outcome != "unchanged"]


def address(pipeline: Pipeline, settings: ClusterSettings) -> str:
    """Return where clients inside the cluster reach a pipeline, for people."""
    host = service_host(gateway_name(pipeline.name), settings.namespace)
    return f"model {pipeline.name} at {host}, gRPC {settings.grpc_port}, HTTP {settings.http_port}"


def status(cluster: Cluster, name: str) -> PipelineStatus:
    """Return the state of a pipeline.

    Raises:
        NotDeployedError: if it is not there.
        ClusterError: if the cluster does not answer.
    """
    workloads, stages = workload_statuses(cluster, name), stage_config_maps(cluster, name)
    if not workloads and not stages:
        raise _not_deployed(cluster, name)
    components = []
    for each in workloads:
        batch_size, waiting, trouble = "", "", each.trouble
        stage = stages.get(each.task, {})
        data = stage.get("data") or {}
        if each.variant and each.variant == data.get(STAGE_VARIANT):
            batch_size, waiting = data.get(STAGE_BATCH_SIZE, "?"), queued_requests(cluster, name, each.task)
            trouble = trouble or "; ".join(map(str, manual_changes(stage)))
        ready = f"{each.ready}/{each.wanted}"
        components.append((each.component, each.task, each.variant, ready, batch_size, waiting, trouble))
    if prefetch := prefetch_status(cluster, name):
        components.append((prefetch.component, "", "", f"{prefetch.ready}/{prefetch.wanted}", "", "", prefetch.trouble))
    serves = bool(workloads) and all(each.serves for each in workloads)
    return PipelineStatus(serves, leader(cluster, name), controller_states(cluster, name), components)


def running_stages(cluster: Cluster, name: str) -> list[str]:
    """Return what the stages of a pipeline run, each as ``--stage`` of a deployment takes it.

    Raises:
        NotDeployedError: if it is not there.
        ClusterError: if a stage runs nothing that could be deployed again, or the cluster does not answer.
    """
    replicas = {(each.task, each.variant): each.wanted for each in workload_statuses(cluster, name)}
    found = []
    for task, stage in stage_config_maps(cluster, name).items():
        variant, batch_size = stage["data"][STAGE_VARIANT], stage["data"].get(STAGE_BATCH_SIZE)
        if not batch_size or (task, variant) not in replicas:
            raise ClusterError(
                f"stage {task!r} cannot be deployed again as it runs: variant {variant!r} has "
                f"{replicas.get((task, variant), 0)} replicas, and the batch size is {batch_size!r}; correct it first"
            )
        found.append(f"{task}={variant}:{replicas[task, variant]}:{batch_size}")
    if not found:
        raise _not_deployed(cluster, name)
    return found


def startup(
    cluster: Cluster, pipeline: Pipeline, number: int, wait_seconds: float, report: Report
) -> Iterator[tuple[Key, list[Start] | str]]:
    """Measure how long replicas of every variant take to start; see :func:`opd.cluster.starts.measure_starts`.

    Raises:
        NotDeployedError: if the pipeline is not deployed.
        LedByAnotherError: if a controller leads.
        ClusterError: if the cluster does not answer.
    """
    with Lease(cluster, pipeline.name).hold(LEASE_SECONDS) as held:
        yield from measure_starts(cluster.guarded(held.check_held), pipeline, number, wait_seconds, report)


def delete(
    cluster: Cluster, name: str, wait_seconds: float, dry_run: bool
) -> tuple[list[ObjectChange], list[Resource]]:
    """Delete a pipeline after it has answered the requests it has.

    Returns:
        Deleted objects, and kinds of objects that this account may not list, so some may be left.

    Raises:
        NotDeployedError: if it is not there.
        LeftoverError: if objects or pods are still there in the end.
        ClusterError: if the cluster does not answer.
    """
    changes = list(delete_pipeline(cluster, name, wait_seconds, dry_run))
    if not changes:
        raise _not_deployed(cluster, name)
    return changes, find_owned(cluster, name)[1]


def _not_deployed(cluster: Cluster, name: str) -> NotDeployedError:
    return NotDeployedError(
        f"pipeline {name!r} is not deployed in namespace {cluster.namespace!r}; check both names and the context"
    )


# ------------------------------------------------------------------------------------------------------ planning


def _plan(cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings, stages: Stages, report: Report) -> _Rollout:
    if pipeline.assumed_note:
        report(f"note: {pipeline.assumed_note}")
    found = find_owned(cluster, pipeline.name, WORKLOADS)[0]
    running = _running(cluster, pipeline, replicas_by_role(found), report)
    target = feasible_configuration(pipeline, {**running, **stages})
    start = feasible_configuration(pipeline, running) if len(running) == len(pipeline.tasks) else target
    manifests = pipeline_objects(pipeline, start, settings)
    if running and settings.flavour != "seldon" and not renewed_by_surge(pipeline, start):
        report(
            f"note: replicas with changed settings are renewed in place, one of each stage at a time, because "
            f"{pipeline.capacity} cores have no room for more"
        )
    serving = {identity_of(each): each for each in found if is_model(each) and replicas_of(each)}
    emptied = [each for each in manifests if identity_of(each) in serving and not replicas_of(each)]
    kept = set(map(identity_of, manifests))
    superseded = [each for each in found if is_model(each) and identity_of(each) not in kept]
    leaving = [*superseded, *(serving[identity_of(each)] for each in emptied)]
    cores = sum(replicas_of(each) * requested_cores(template_of(each)) for each in leaving)
    has_room = float(used_cores(pipeline, start)) + cores <= pipeline.capacity
    return _Rollout(start, target, [each for each in manifests if each not in emptied], emptied, superseded, has_room)


def _running(
    cluster: Cluster, pipeline: Pipeline, replicas: Mapping[tuple[str, str], int], report: Report
) -> dict[str, StageConfiguration]:
    """Return what the stages run now, without new or invalid ones; nothing if that breaks the pipeline's limits."""
    found = stage_config_maps(cluster, pipeline.name)
    running = {}
    for task in pipeline.tasks:
        if task.name not in found:
            continue
        try:
            running[task.name] = read_stage(pipeline, task, found[task.name], replicas)
        except StageStateError as error:
            report(f"warning: stage {task.name!r} cannot keep what it runs: {error}")
    try:
        check_feasible(pipeline, complete_configuration(pipeline, running))
    except InfeasibleError as error:
        report(f"warning: the pipeline cannot keep what it runs: {error}")
        return {}
    added = [task.name for task in pipeline.tasks if found and task.name not in found]
    if added:
        report(f"warning: the running pipeline lacks stages, which are added: {', '.join(added)}")
    return running


# ------------------------------------------------------------------------------------------------------ changing


def _bring(cluster: Cluster, name: str, rollout: _Rollout, wait_seconds: float, report: Report) -> list[ObjectChange]:
    """Bring the objects to their manifests; if there is room, replicas that leave serve until the new ones do."""

    def let_go() -> list[ObjectChange]:
        return [*apply_objects(cluster, rollout.emptied), *delete_objects(cluster, rollout.superseded)]

    # New replicas must not wait for a pull, which takes longer than requests may wait for replicas renewed in place.
    ahead = [each for each in rollout.manifests if resource_of(each) == DAEMON_SET]
    changes = list(apply_objects(cluster, ahead))
    if ahead:
        wait_for_prefetch(cluster, name, wait_seconds, report)
    changes += [] if rollout.has_room else let_go()
    changes += apply_objects(cluster, [each for each in rollout.manifests if each not in ahead])
    leaving = [*rollout.emptied, *rollout.superseded]
    wait_until_serving(cluster, name, wait_seconds, lambda missing: report(f"waiting for {missing}"), leaving)
    changes += prune_objects(cluster, name, [*rollout.manifests, *rollout.emptied])
    return changes + let_go() if rollout.has_room else changes


def _reach(cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings, target: Configuration, held: Lease) -> None:
    """Change the configuration as the control loop does; its backend sees no metrics here and needs none."""
    with closing(Scraper()) as unused:
        backend = KubernetesBackend(
            cluster, pipeline, settings, unused, interval_seconds=1.0, may_act=lambda: held.held
        )
        try:
            backend.apply(target)
        except ApplyError as error:
            raise ClusterError(str(error)) from error


def _again(cluster: Cluster, change: ObjectChange) -> ObjectChange:
    """Return a change with what became of the object since, if that is the state of a stage."""
    if not change.after or not (is_model(change.after) or resource_of(change.after) == CONFIG_MAP):
        return change
    return ObjectChange(change.before, cluster.get(*identity_of(change.after)))
