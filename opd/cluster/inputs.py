"""Input of the command line, read and checked without asking the cluster anything."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opd.cluster.api import Cluster
from opd.cluster.charge import Controlled
from opd.cluster.connection import RetryPolicy, credentials
from opd.cluster.controller import ControllerSettings, run_controller
from opd.cluster.errors import InputError
from opd.cluster.names import check_name, check_names
from opd.cluster.options import Place, RunOptions, SettingsOptions
from opd.cluster.overlay import read_overlay
from opd.cluster.settings import ClusterSettings, read_settings
from opd.control import policy_label
from opd.control.factory import KnownLoad, build_policy
from opd.control.policies import Policy
from opd.control.sharing import Shared, division_of
from opd.host.documents import as_model, read_document
from opd.host.errors import problem_list
from opd.host.imports import make_project_importable
from opd.host.paths import project_path
from opd.measurement import SimulationParameters
from opd.objective import Objective
from opd.pipeline import Configuration, InfeasibleError, Pipeline, StageConfiguration, check_feasible, check_stage
from opd.profiling.pipeline_file import pipeline_path, read_pipeline_file, shipped_pipelines
from opd.profiling.pipelines import load_objective, load_pipeline
from opd.serving.emulation.names import emulated_pipeline
from opd.serving.monitoring.prometheus import PrometheusUrl, named_url
from opd.solvers import IpaParameters
from opd.workload.forecast import Forecaster, ForecasterError
from opd.workload.futures import Futures
from opd.workload.quantile_futures import futures_of

SETTINGS_FILE = "cluster.yaml"
"""Name of the file of settings in the folder of a pipeline."""

Stages = Mapping[str, StageConfiguration]
"""Configurations of some stages, by task."""

_STAGE = re.compile(r"(?P<task>[^=:]+)=(?P<variant>[^=:]+):(?P<replicas>[0-9]{1,6}):(?P<batch_size>[0-9]{1,6})")


def pipeline_of(text: str) -> Pipeline:
    """Load a pipeline: one that ships with the package if ``text`` is a name, or from a folder or YAML file."""
    pipeline = load_pipeline(_source(text))
    check_names(pipeline)
    return pipeline


def deployed_pipeline(pipeline: Pipeline, settings: ClusterSettings) -> Pipeline:
    """Return the pipeline as it is deployed: under a name that says so if its replicas are emulated."""
    if not settings.emulated:
        return pipeline
    served = emulated_pipeline(pipeline)
    check_names(served)
    return served


def _source(text: str) -> str | Path:
    return Path(text) if _is_path(text) else check_name("pipeline", text)


def pipeline_name_of(text: str) -> str:
    """Return the name of a pipeline, which needs no profile; a pipeline that is given by its name need not exist."""
    if not _is_path(text):
        return check_name("pipeline", text)
    content = read_pipeline_file(Path(text))
    check_names(content)
    return content.name


def settings_of(place: Place, options: SettingsOptions) -> ClusterSettings:
    """Return the settings of a file; options of the command line take precedence.

    Args:
        place: pipeline and namespace. If no file is named, it is :data:`SETTINGS_FILE` beside the pipeline file.
        options: without a file, they must name image and store.

    Raises:
        InputError: if image or store are missing, or a label is malformed.
        DocumentError: if a setting is wrong; it lists all problems.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    file, labels = given.pop("settings", None), given.pop("monitoring_label", None)
    file, namespace = file or _settings_file(place.pipeline), place.namespace
    if options.overlay:
        given["overlay"] = read_overlay(options.overlay)
    if labels:
        given["monitoring_labels"] = dict(map(_label, labels))
    if file:
        return read_settings(file, namespace, given)
    if not {"image", "store"} <= given.keys():
        raise InputError(
            "name the image and the model store: --image and --store, a file of --settings, or a file "
            f"{SETTINGS_FILE} in the folder of the pipeline"
        )
    return as_model(ClusterSettings, {"namespace": namespace, **given}, "options")


def stages_of(pipeline: Pipeline, texts: Iterable[str]) -> Stages:
    """Parse stages, each ``TASK=VARIANT:REPLICAS:BATCH``.

    Raises:
        InputError: listing all that are malformed, name what the pipeline lacks, break a limit of a stage, or repeat a
            task; else if all of them together need too many cores.
    """
    stages: dict[str, StageConfiguration] = {}
    problems = []
    for text in texts:
        try:
            task, stage = _stage(pipeline, text)
            if task in stages:
                raise InputError(f"task {task!r} has been given before; give every task once")
            stages[task] = stage
        except (InfeasibleError, InputError, KeyError) as error:
            problems.append(f"--stage {text!r}: {error.args[0]}")
    if problems:
        several = problem_list(f"{len(problems)} --stage options are wrong", problems)
        raise InputError(several if len(problems) > 1 else problems[0])
    feasible_configuration(pipeline, stages)
    return stages


def complete_configuration(pipeline: Pipeline, stages: Stages) -> Configuration:
    """Return a configuration of the whole pipeline, the smallest one for stages that are not given."""
    smallest = zip(pipeline.tasks, pipeline.smallest_configuration(), strict=True)
    return tuple(stages.get(task.name, stage) for task, stage in smallest)


def feasible_configuration(pipeline: Pipeline, stages: Stages) -> Configuration:
    """Return :func:`complete_configuration`, checked against the limits of the pipeline.

    Raises:
        InputError: naming the limit that it breaks.
    """
    configuration = complete_configuration(pipeline, stages)
    try:
        check_feasible(pipeline, configuration)
    except InfeasibleError as error:
        raise InputError(f"{error}; choose what the stages run with --stage") from error
    return configuration


def cluster_of(place: Place, call_seconds: float = 10.0) -> Cluster:
    """Open a namespace; this reads the kubeconfig but asks the cluster nothing."""
    namespace = check_name("namespace", place.namespace)
    load = partial(credentials, place.kubeconfig, place.context)
    return Cluster(namespace, load, RetryPolicy(read_seconds=call_seconds))


class Deciding(NamedTuple):
    """What decides about a pipeline, as options name it.

    Attributes:
        pipeline: its definition.
        objective: that of the pipeline's file, unless the parameters have weights.
        simulation: behaviour of the device; its interval is that of the options, in whole seconds.
        policy: makes a new policy for a seed, in the simulator or outside.
        forecast: predicted maximum load (requests/s) for a history of per-second counts.
        futures: loads that may come, as far as the forecaster knows.
    """

    pipeline: Pipeline
    objective: Objective
    simulation: SimulationParameters
    policy: Callable[[int, bool], Policy]
    forecast: Callable[[np.ndarray], float]
    futures: Futures


def deciding_of(source: str, options: RunOptions) -> Deciding:
    """Load pipeline, policy and forecaster.

    Raises:
        ValueError: if the policy is unknown, or a file cannot be used.
        OSError: if a file cannot be read.
    """
    pipeline = pipeline_of(source)
    pipeline = replace(pipeline, capacity=options.cores) if options.cores else pipeline
    project = _project_of(source)
    make_project_importable(project)  # for a policy of the user
    parameters = read_document(options.params or project / "params.yaml")
    simulation = SimulationParameters(**parameters["simulation"])
    if options.interval:
        simulation = replace(simulation, interval=max(1, round(options.interval)))
    objective = load_objective(_source(source), parameters.get("weights"))
    ipa = IpaParameters(**parameters.get("ipa", {}))
    agent = options.agent or _default_agent(project, pipeline.name, options.policy)
    seconds = options.decision_share * (options.interval or simulation.interval)
    file = options.forecaster or project / "models" / "forecaster.npz"

    def policy(seed: int, simulated: bool, load: KnownLoad | None = None) -> Policy:
        known = pipeline, objective, simulation, ipa, seed, agent, simulated
        return build_policy(options.policy, *known, decision_seconds=seconds, load=load)

    try:
        forecaster = Forecaster.load(file, parameters["damping"])
    except ForecasterError:
        policy(options.seed, False)  # what is wrong with the policy is told first
        raise
    futures = futures_of(forecaster)
    made = partial(policy, load=KnownLoad(futures))
    return Deciding(pipeline, objective, simulation, made, forecaster.predict, futures)


def monitor_of(settings: ClusterSettings, options: RunOptions) -> PrometheusUrl:
    """The source of metrics.

    Raises:
        ValueError: if no Prometheus server is named.
    """
    return PrometheusUrl(named_url(options.prometheus), labels=settings.series_labels)


def controller_of(
    cluster: Cluster,
    deciding: Sequence[Deciding],
    settings: Sequence[ClusterSettings],
    monitors: Sequence[PrometheusUrl],
    options: RunOptions,
) -> Callable[[], int]:
    """Return a function that controls pipelines until it is interrupted.

    Raises:
        ValueError: if a policy cannot be used, or the pipelines cannot share a device.
    """
    controlled = [
        Controlled(
            deployed_pipeline(each.pipeline, its),
            its,
            monitor,
            each.policy(options.seed, False),
            each.forecast,
            each.objective,
        )
        for each, its, monitor in zip(deciding, settings, monitors, strict=True)
    ]
    division = division_of([Shared(d.pipeline, d.objective, d.simulation, d.futures) for d in deciding])
    controller_settings = ControllerSettings(
        interval_seconds=options.interval or deciding[0].simulation.interval,
        port=options.port,
        page=options.view if len(deciding) == 1 else None,
        read_nodes=options.read_nodes,
        dry_run=options.dry_run,
        shadow=options.shadow,
        record=options.record,
        decisions=options.decisions,
    )
    return partial(run_controller, cluster, controlled, division, controller_settings)


def _project_of(source: str) -> Path:
    """Folder with parameters and trained models: that of the pipeline file, or the project one works in."""
    file = pipeline_file_of(source)
    return file.parent if file and (file.parent / "params.yaml").is_file() else project_path()


def _default_agent(project: Path, name: str, policy: str) -> Path | None:
    """Return the file of the pipeline's agent, as trained or as the controller's pod mounts it, if there is one."""
    models = project / "models"
    candidates = models / "agents" / name / f"{policy_label(policy)}-0.npz", models / "agent.npz"
    return next((path for path in candidates if path.is_file()), None)


def pipeline_file_of(text: str) -> Path | None:
    """Path of a pipeline file that is no shipped one."""
    return pipeline_path(Path(text)) if _is_path(text) else None


def _settings_file(pipeline: str) -> Path | None:
    file = pipeline_file_of(pipeline)
    beside = file and file.parent / SETTINGS_FILE
    return beside if beside and beside.is_file() else None


def _is_path(text: str) -> bool:
    if text in shipped_pipelines():
        return False
    return text.endswith((".yaml", ".yml")) or "/" in text or Path(text).is_dir()


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"cannot read the label {text!r}; write KEY=VALUE, such as release=prometheus")
    return key, value


def _stage(pipeline: Pipeline, text: str) -> tuple[str, StageConfiguration]:
    match = _STAGE.fullmatch(text)
    if match is None:
        raise InputError("it is malformed; write TASK=VARIANT:REPLICAS:BATCH")
    tasks = {task.name: task for task in pipeline.tasks}
    if match["task"] not in tasks:
        raise InputError(f"pipeline {pipeline.name!r} has no task {match['task']!r}; it has {', '.join(tasks)}")
    task = tasks[match["task"]]
    variant = task.variant_index(match["variant"])
    stage = StageConfiguration(variant, int(match["replicas"]), int(match["batch_size"]))
    check_stage(pipeline, task, stage)
    return task.name, stage
