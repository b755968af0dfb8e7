"""``opd deploy | status | run | delete``: a pipeline on the Kubernetes cluster of the current kubeconfig context.

A command first reads and checks all it is given and returns what it will do; only that asks the cluster anything. What
takes long to import is imported by the command that needs it.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opd.cluster.errors import ClusterError, NotDeployedError
from opd.control import DEPLOYABLE_POLICIES

if TYPE_CHECKING:
    from opd.cluster.api import Cluster, Object
    from opd.cluster.backend import KubernetesBackend
    from opd.cluster.lifecycle import Change
    from opd.cluster.settings import ClusterSettings
    from opd.pipeline import Configuration, Pipeline, StageConfiguration

logger = logging.getLogger("opd.cli")
"""Not of ``__name__``, which may be ``__main__``."""

DONE, FAILED, REFUSED, NOTHING_THERE = range(4)
INTERRUPTED = 130

EXIT_CODES = "exit codes: 0 done; 1 failed; 2 wrong usage or refused input; 3 the pipeline is not deployed"

WAIT_SECONDS = 180.0
LEASE_SECONDS = 20.0
"""The Lease of a controller that died runs out within this."""

_STAGE = re.compile(r"(?P<task>[^=:]+)=(?P<variant>[^=:]+):(?P<replicas>[0-9]{1,6}):(?P<batch_size>[0-9]{1,6})")
_SETTINGS = (
    "image",
    "store",
    "flavour",
    "pull_policy",
    "storage_secret",
    "pod_monitor",
    "dashboard",
    "network_policy",
    "istio_gateway",
    "istio_host",
)
"""Options that are settings of the same name."""

Action = Callable[[], int]
"""What a command does once its input is found good; returns the exit code."""

Stages = Mapping[str, "StageConfiguration"]
"""What stages run, by task."""


class InputError(ValueError):
    """The command line asks for what cannot be."""


# ------------------------------------------------------------------------------------------------------ commands


def deploy(options: argparse.Namespace) -> Action:
    """Make the objects of a pipeline, or bring them up to date, and wait until it serves."""
    from opd.cluster.manifests.pipeline import pipeline_objects

    pipeline, settings = _pipeline(options.pipeline), _settings(options)
    asked = dict(_stage(pipeline, text) for text in options.stage)
    pipeline_objects(pipeline, _configuration(pipeline, asked), settings)
    cluster = _cluster(options, settings.call_seconds)
    return lambda: _deploy(cluster, pipeline, settings, asked, options)


def status(options: argparse.Namespace) -> Action:
    """Show what a pipeline runs, and whether all of it is ready."""
    name, cluster = _name(options.pipeline), _cluster(options)
    return lambda: _status(cluster, name)


def run(options: argparse.Namespace) -> Action:
    """Control a deployed pipeline from here, as the controller in the cluster does, until interrupted."""
    # The first process of a container does not hear SIGTERM without a handler; loading a policy takes a while.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(DONE))
    from opd.cluster.json_log import log_as_json

    log_as_json()
    from opd.cluster.api import credentials
    from opd.cluster.controller import ControllerSettings, run_controller
    from opd.control.factory import build_policy
    from opd.documents import read_document
    from opd.objective import Weights
    from opd.paths import project_path
    from opd.serving.monitoring.prometheus import PROMETHEUS_URL_VARIABLE, PrometheusUrl
    from opd.simulator.simulation import SimulationParameters
    from opd.solvers import IpaParameters
    from opd.workload.forecast import Forecaster

    url = options.prometheus or os.environ.get(PROMETHEUS_URL_VARIABLE)
    if not url:
        raise InputError(f"name the Prometheus server with --prometheus, or in {PROMETHEUS_URL_VARIABLE}")
    pipeline, settings = _pipeline(options.pipeline), _settings(options)
    credentials(options.kubeconfig, options.context)
    parameters = read_document(options.params or project_path("params.yaml"))
    simulation = SimulationParameters(**parameters["simulation"])
    weights = Weights(**parameters["weights"])
    policy = build_policy(
        options.policy,
        pipeline,
        weights,
        simulation,
        IpaParameters(**parameters["ipa"]),
        options.seed,
        options.agent or _agent(pipeline.name),
    )
    forecaster = Forecaster.load(options.forecaster or project_path("models", "forecaster.ckpt"), parameters["damping"])
    how = ControllerSettings(
        interval_seconds=options.interval or simulation.interval,
        weights=weights,
        port=options.port,
        read_nodes=options.read_nodes,
        dry_run=options.dry_run,
        decisions=options.decisions,
    )
    monitor = PrometheusUrl(url, labels=settings.series_labels)
    return lambda: run_controller(
        pipeline, settings, monitor, policy, forecaster.predict, how, options.kubeconfig, options.context
    )


def delete(options: argparse.Namespace) -> Action:
    """Take a pipeline away; requests that it has are answered first."""
    name, cluster = _name(options.pipeline), _cluster(options)
    return lambda: _delete(cluster, name, options)


# ------------------------------------------------------------------------------------------------------ deploying


def _deploy(
    cluster: Cluster, pipeline: Pipeline, settings: ClusterSettings, asked: Stages, options: argparse.Namespace
) -> int:
    """Objects come with what runs already, so that a changed configuration is reached without losing a request."""
    from opd.cluster import lifecycle
    from opd.cluster.manifests.pipeline import pipeline_objects

    running = _running(cluster, pipeline)
    wanted = _configuration(pipeline, {**running, **asked})
    begin = _configuration(pipeline, running) if len(running) == len(pipeline.tasks) else wanted
    manifests = pipeline_objects(pipeline, begin, settings)
    former = lifecycle.superseded(cluster, pipeline.name, manifests)
    if running:
        _say_how_renewed(pipeline, begin, settings)
    if options.dry_run:
        changes = _preview(cluster, pipeline.name, manifests, former)
        if wanted != begin:
            preview = _with_backend(cluster, pipeline, settings, lambda backend: backend.preview(wanted))
            changes += [lifecycle.Change(*pair) for pair in preview]
        _print_differences(changes)
        return DONE
    with _leading(cluster, pipeline.name, bool(former) or wanted != begin) as held:
        guarded = cluster.guarded(lambda: _check_leads(held))
        room = _fit(pipeline, begin, former)
        changes = _bring(guarded, pipeline.name, manifests, former, room, options.wait)
        if wanted != begin:
            _reconfigure(cluster, pipeline, settings, wanted, held)
    _print_changes(changes)
    print(f"\npipeline {pipeline.name} serves in namespace {cluster.namespace}: {_address(pipeline.name, settings)}")
    return DONE


def _preview(cluster: Cluster, name: str, manifests: list[Object], former: list[Object]) -> list[Change]:
    """What :func:`_bring` would change."""
    from opd.cluster import lifecycle

    return [
        *lifecycle.apply(cluster, manifests, dry_run=True),
        *lifecycle.prune(cluster, name, manifests, dry_run=True),
        *lifecycle.release(cluster, former, dry_run=True),
    ]


def _bring(
    cluster: Cluster, name: str, manifests: list[Object], former: list[Object], room: bool, seconds: float
) -> list[Change]:
    """Bring the objects of a pipeline to their manifests; former replicas serve until it does, if there is room."""
    from opd.cluster import lifecycle

    changes = list(lifecycle.apply(cluster, manifests))
    if not room:
        changes += lifecycle.release(cluster, former)
    lifecycle.wait_until_serving(cluster, name, seconds, lambda text: _say(f"waiting for {text}"), former)
    changes += lifecycle.prune(cluster, name, manifests)
    if room:
        changes += lifecycle.release(cluster, former)
    return changes


def _running(cluster: Cluster, pipeline: Pipeline) -> dict[str, StageConfiguration]:
    """What the pipeline's stages run now, without those that are new or not valid; empty if that breaks its limits."""
    from opd.cluster.lifecycle import stages
    from opd.cluster.stage_state import StageStateError, read_stage
    from opd.pipeline import InfeasibleError, check_feasible

    found = stages(cluster, pipeline.name)
    running = {}
    for task in pipeline.tasks:
        if task.name not in found:
            continue
        try:
            running[task.name] = read_stage(pipeline, task, found[task.name])
        except StageStateError as error:
            _say(f"warning: what stage {task.name!r} runs is not kept: {error}")
    try:
        check_feasible(pipeline, _completed(pipeline, running))
    except InfeasibleError as error:
        _say(f"warning: what runs is not kept: {error}")
        return {}
    added = [task.name for task in pipeline.tasks if found and task.name not in found]
    if added:
        _say(f"warning: the pipeline that runs lacks stages, which are added: {', '.join(added)}")
    return running


def _completed(pipeline: Pipeline, stages: Stages) -> Configuration:
    """A configuration of the whole pipeline, of the smallest where nothing is said."""
    smallest = zip(pipeline.tasks, pipeline.smallest_configuration(), strict=True)
    return tuple(stages.get(task.name, stage) for task, stage in smallest)


def _configuration(pipeline: Pipeline, stages: Stages) -> Configuration:
    """The same, within the limits of the pipeline.

    Raises:
        InputError: naming the limit that it breaks.
    """
    from opd.pipeline import InfeasibleError, check_feasible

    configuration = _completed(pipeline, stages)
    try:
        check_feasible(pipeline, configuration)
    except InfeasibleError as error:
        raise InputError(f"{error}; say what stages are to run with --stage") from error
    return configuration


def _say_how_renewed(pipeline: Pipeline, begin: Configuration, settings: ClusterSettings) -> None:
    from opd.cluster.manifests.workloads import renewed_by_surge

    if settings.flavour != "seldon" and not renewed_by_surge(pipeline, begin):
        _say(
            f"note: replicas whose settings change are renewed in place, one of each stage at a time, as "
            f"{pipeline.capacity} cores hold none beside them"
        )


def _fit(pipeline: Pipeline, configuration: Configuration, former: Iterable[Object]) -> bool:
    """Whether W_max holds the replicas of former workloads beside those of a configuration."""
    from opd.cluster.manifests.workloads import replicas_of, template_of
    from opd.cluster.node_capacity import requested_cores
    from opd.pipeline import used_cores

    leaving = sum(replicas_of(each) * requested_cores(template_of(each)) for each in former)
    return float(used_cores(pipeline, configuration)) + leaving <= pipeline.capacity


@contextmanager
def _leading(cluster: Cluster, name: str, needed: bool) -> Iterator[Callable[[], bool]]:
    """Holds the controllers' Lease if it is needed, so that none of them acts; yields whether we still may."""
    from opd.cluster.lease import Lease
    from opd.cluster.record import identity
    from opd.waiting import wait_until

    if not needed:
        yield lambda: True
        return
    lease = Lease(cluster, name, identity())
    lease.start()
    try:
        if not wait_until(lambda: lease.held, LEASE_SECONDS):
            raise ClusterError(
                f"a controller leads pipeline {name!r} and would undo the change; stop it, then deploy again"
            )
        yield lambda: lease.held
    finally:
        lease.close()


def _check_leads(held: Callable[[], bool]) -> None:
    if not held():
        raise ClusterError(
            "another controller leads now, or the Lease could not be renewed; stop that controller, or see why the API "
            "server does not answer, then deploy again"
        )


def _reconfigure(
    cluster: Cluster,
    pipeline: Pipeline,
    settings: ClusterSettings,
    wanted: Configuration,
    held: Callable[[], bool],
) -> None:
    """Bring a pipeline that serves to another configuration, as long as no controller acts."""
    from opd.control.loop import ApplyError

    try:
        _with_backend(cluster, pipeline, settings, lambda backend: backend.apply(wanted), held)
    except ApplyError as error:
        raise ClusterError(str(error)) from error


def _with_backend(
    cluster: Cluster,
    pipeline: Pipeline,
    settings: ClusterSettings,
    use: Callable[[KubernetesBackend], Any],
    may_act: Callable[[], bool] = lambda: True,
) -> Any:
    """What ``use`` returns for the backend of the control loop, which here need not see any metrics."""
    from opd.cluster.backend import KubernetesBackend
    from opd.serving.monitoring.scraper import Scraper

    with closing(Scraper()) as unused:
        return use(KubernetesBackend(cluster, pipeline, settings, unused, interval_seconds=1.0, may_act=may_act))


def _address(name: str, settings: ClusterSettings) -> str:
    from opd.cluster.names import router_name, service_host

    host = service_host(router_name(name), settings.namespace)
    return f"model {name} at {host}, gRPC {settings.grpc_port}, HTTP {settings.http_port}"


# ------------------------------------------------------------------------------------------------------ the others


def _status(cluster: Cluster, name: str) -> int:
    from opd.cluster import lifecycle
    from opd.cluster.names import QUEUE

    found, stages = lifecycle.workloads(cluster, name), lifecycle.stages(cluster, name)
    if not found and not stages:
        return _nothing_there(cluster, name)
    rows = [("COMPONENT", "TASK", "VARIANT", "READY", "BATCH", "WAITING", "TROUBLE")]
    for each in found:
        is_queue = each.component == QUEUE
        batch_size = stages[each.task]["data"].get("batch_size", "?") if is_queue and each.task in stages else ""
        waiting = lifecycle.waiting(cluster, name, each.task) if is_queue else ""
        ready = f"{each.ready}/{each.wanted}"
        rows.append((each.component, each.task, each.variant, ready, batch_size, waiting, each.trouble))
    serves = bool(found) and all(each.serves for each in found)
    print(f"pipeline {name} in namespace {cluster.namespace}: {'serves' if serves else 'does not serve fully'}")
    print(f"controller: {lifecycle.leader(cluster, name) or 'none leads'}\n")
    _print_table(rows)
    return DONE if serves else FAILED


def _delete(cluster: Cluster, name: str, options: argparse.Namespace) -> int:
    from opd.cluster import lifecycle

    changes = list(lifecycle.delete(cluster, name, options.wait, options.dry_run))
    if not changes:
        return _nothing_there(cluster, name)
    _print_changes(changes, "would be deleted" if options.dry_run else "")
    for resource in lifecycle.owned(cluster, name)[1]:
        _say(f"warning: this account may not look for {resource.plural}; if the pipeline has any, they stay")
    return DONE


def _nothing_there(cluster: Cluster, name: str) -> int:
    _say(f"pipeline {name!r} is not deployed in namespace {cluster.namespace!r}; check both names and the context")
    return NOTHING_THERE


def _agent(name: str) -> Path | None:
    """The checkpoint of the pipeline's agent: as trained, or alone as a controller has it mounted."""
    from opd.paths import project_path

    known = project_path("models", "agents", name, "agent-0.pt"), project_path("models", "agent.pt")
    return next((path for path in known if path.is_file()), None)


# ------------------------------------------------------------------------------------------------------ input


def _is_file(text: str) -> bool:
    return text.endswith((".yaml", ".yml"))


def _pipeline(text: str) -> Pipeline:
    """A pipeline of the catalogue, or of a file."""
    from opd.cluster.names import check_name, check_names
    from opd.profiling.pipeline_file import read_pipeline
    from opd.profiling.profiles import load_pipeline

    if not _is_file(text):
        return load_pipeline(check_name("pipeline", text))
    pipeline = read_pipeline(Path(text))
    check_names(pipeline)
    return pipeline


def _name(text: str) -> str:
    """The name of a pipeline, which need not be in the catalogue any more."""
    from opd.cluster.names import check_name

    return _pipeline(text).name if _is_file(text) else check_name("pipeline", text)


def _settings(options: argparse.Namespace) -> ClusterSettings:
    """Settings of a file, those of the command line before them."""
    from opd.cluster.overlay import read_overlay
    from opd.cluster.settings import ClusterSettings, read_settings

    given: dict[str, Any] = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    if options.overlay:
        given["overlay"] = read_overlay(options.overlay)
    if options.monitoring_label:
        given["monitoring_labels"] = dict(map(_label, options.monitoring_label))
    if options.settings:
        return replace(read_settings(options.settings, options.namespace), **given)
    if not {"image", "store"} <= given.keys():
        raise InputError("name the image and the model store: --image and --store, or a file of --settings")
    return ClusterSettings(namespace=options.namespace, **given)


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"cannot read the label {text!r}; write KEY=VALUE, such as release=prometheus")
    return key, value


def _stage(pipeline: Pipeline, text: str) -> tuple[str, StageConfiguration]:
    """Task and configuration of ``task=variant:replicas:batch size``."""
    from opd.pipeline import StageConfiguration

    match = _STAGE.fullmatch(text)
    if match is None:
        raise InputError(f"cannot read the stage {text!r}; write TASK=VARIANT:REPLICAS:BATCH")
    tasks = {task.name: task for task in pipeline.tasks}
    if match["task"] not in tasks:
        raise InputError(f"pipeline {pipeline.name!r} has no task {match['task']!r}; it has {', '.join(tasks)}")
    variant = tasks[match["task"]].variant_index(match["variant"])
    return match["task"], StageConfiguration(variant, int(match["replicas"]), int(match["batch_size"]))


def _cluster(options: argparse.Namespace, call_seconds: float = 10.0) -> Cluster:
    """The namespace; opening it only reads the kubeconfig."""
    from opd.cluster.api import Cluster, Patience, credentials
    from opd.cluster.names import check_name

    namespace = check_name("namespace", options.namespace)
    return Cluster(
        namespace, lambda: credentials(options.kubeconfig, options.context), Patience(read_seconds=call_seconds)
    )


# ------------------------------------------------------------------------------------------------------ output


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Columns of text, as wide as they must be, a line each; what is empty is a dash."""
    shown = [[" ".join(cell.split()) or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_changes(changes: Iterable[Change], instead: str = "") -> None:
    named = [(each.after or each.before, instead or each.what) for each in changes]
    rows = [(found["kind"], found["metadata"]["name"], what) for found, what in named]
    _print_table([("KIND", "NAME", "RESULT"), *rows])


def _print_differences(changes: Iterable[Change]) -> None:
    from opd.cluster.difference import difference

    print("".join(difference(*change) for change in changes) or "nothing would change")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _complain(options: argparse.Namespace, error: BaseException, code: int) -> int:
    """One line on standard error, or in the log of a command that has one; what a KeyError says is its argument."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    line = " ".join(text.split())
    if options.prepare is run:
        logger.error("%s", line)
    else:
        _say(f"error: {line}")
    return code


# ------------------------------------------------------------------------------------------------------ arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="opd", description="A pipeline on Kubernetes.", epilog=EXIT_CODES)
    commands = parser.add_subparsers(required=True, metavar="{deploy,status,run,delete}")
    made = {}
    for prepare in (deploy, status, run, delete):
        words = (prepare.__doc__ or "").strip()
        made[prepare] = command = commands.add_parser(
            prepare.__name__, help=words, description=words, epilog=EXIT_CODES
        )
        command.set_defaults(prepare=prepare)
        _add_place(command)
    for prepare in (deploy, run):
        _add_settings(made[prepare])
    for prepare in (deploy, run, delete):
        made[prepare].add_argument("--dry-run", action="store_true", help="show what would change, change nothing")
    for prepare in (deploy, delete):
        made[prepare].add_argument(
            "--wait", type=_seconds, default=WAIT_SECONDS, metavar="SECONDS", help="for pods, at most (default: 180)"
        )
    made[deploy].add_argument(
        "--stage",
        action="append",
        default=[],
        metavar="TASK=VARIANT:REPLICAS:BATCH",
        help="what a stage is to run; may be repeated. Without it a new pipeline begins with one replica of the "
        "smallest variant, and one that runs goes on as it is",
    )
    _add_control(made[run])
    return parser


def _add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--pipeline", required=True, metavar="NAME|FILE", help="of the catalogue, or a YAML file that describes one"
    )
    command.add_argument("--namespace", required=True, help="of all objects; there is no default")
    command.add_argument("--context", help="of the kubeconfig (default: its current one)")
    command.add_argument("--kubeconfig", metavar="FILE", help="(default: as kubectl, or the pod's own account)")


def _add_settings(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("settings of the pods, the same for deploy and run")
    group.add_argument("--settings", type=Path, metavar="FILE", help="YAML file of settings; options override it")
    group.add_argument("--image", help="with tag or digest")
    group.add_argument("--store", metavar="URL", help="model store as pods see it, such as s3://bucket/store")
    group.add_argument("--overlay", type=Path, metavar="FILE", help="YAML file of changes to the pods")
    group.add_argument("--flavour", help="deployment (default) or seldon")
    group.add_argument("--pull-policy", help="Always, IfNotPresent (default) or Never")
    group.add_argument("--storage-secret", metavar="NAME", help="Secret with the credentials of the model store")
    switch = argparse.BooleanOptionalAction
    group.add_argument("--pod-monitor", action=switch, default=None, help="for the Prometheus operator")
    group.add_argument("--monitoring-label", action="append", metavar="KEY=VALUE", help="of the PodMonitor")
    group.add_argument("--dashboard", action=switch, default=None, help="ConfigMap for Grafana's sidecar")
    group.add_argument("--network-policy", action=switch, default=None, help="let only those talk who must")
    group.add_argument("--istio-gateway", metavar="[NAMESPACE/]NAME", help="through which requests come")
    group.add_argument("--istio-host", help="host name of those requests (default: any)")


def _add_control(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("control")
    group.add_argument("--policy", default="agent", help=f"{', '.join(DEPLOYABLE_POLICIES)} (default agent)")
    group.add_argument("--agent", type=Path, metavar="FILE", help="checkpoint (default: models/agents/NAME/agent-0.pt)")
    group.add_argument("--forecaster", type=Path, metavar="FILE", help="(default: models/forecaster.ckpt)")
    group.add_argument("--params", type=Path, metavar="FILE", help="weights and times (default: params.yaml)")
    group.add_argument("--prometheus", metavar="URL", help="(default: OPD_PROMETHEUS_URL)")
    group.add_argument("--interval", type=_seconds, metavar="SECONDS", help="between decisions (default: of --params)")
    group.add_argument("--decisions", type=_count, metavar="N", help="end after as many (default: never)")
    group.add_argument("--seed", type=int, default=0, help="of policy random")
    group.add_argument("--port", type=int, default=8080, help="of health and metrics, 0 for any (default: 8080)")
    group.add_argument("--read-nodes", action="store_true", help="heed the nodes' free cores; needs a cluster role")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"{text} s is not within 0..86400")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        act = options.prepare(options)
    except (ClusterError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        return _complain(options, error, REFUSED)
    try:
        return int(act())
    except InputError as error:
        return _complain(options, error, REFUSED)
    except NotDeployedError as error:
        return _complain(options, error, NOTHING_THERE)
    except ClusterError as error:
        from opd.cluster.lifecycle import NotOursError

        return _complain(options, error, REFUSED if isinstance(error, NotOursError) else FAILED)
    except OSError as error:  # such as a port that is taken
        return _complain(options, error, FAILED)
    except KeyboardInterrupt:
        _say("interrupted; run the command again to go on")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
