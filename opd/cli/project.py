"""Commands for a project: the folder of one pipeline, from its models to the served pipeline."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opd.cli.command import (
    DONE,
    FAILED,
    REFUSED,
    CommandError,
    Json,
    command,
    print_json,
    print_table,
    reading_input,
    say,
)
from opd.cluster import options

if TYPE_CHECKING:
    from opd.project.folder import Project

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The project.", show_default=False)]
Again = Annotated[bool, typer.Option("--again", help="Run although nothing changed.")]
Emulated = Annotated[
    bool,
    typer.Option(
        "--emulated",
        help="By emulated replicas, which take the profiled times and no cores; FOLDER may be "
        "the name of a shipped pipeline.",
    ),
]
Trace = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Load: a CSV or Parquet file, or synthetic; becomes that of the project."),
]


def _open(folder: Path, emulated: bool = False) -> Project:
    """Open a project and work in its folder, as its notebooks do."""
    from opd.project.folder import Project

    project = Project.to_emulate(folder) if emulated else Project.at(folder)
    os.chdir(project.root)
    return project


def _open_all(folders: list[Path], emulated: bool, record: Path | None) -> list[Project]:
    """Open projects; one that is alone is worked in."""
    if len(folders) == 1:
        return [_open(folders[0], emulated)]
    from opd.host.imports import make_project_importable
    from opd.project.folder import Project, ProjectError

    if record is not None:
        raise ProjectError("a record is of one pipeline; serve one, or leave --record out")
    projects = [Project.to_emulate(folder) if emulated else Project.at(folder) for folder in folders]
    for project in projects:
        make_project_importable(project.root)  # for a policy of the user
    return projects


def _resolved(trace: str | None) -> str | None:
    """A trace file as an absolute path, before the working directory changes."""
    return str(Path(trace).resolve()) if trace and Path(trace).is_file() else trace


@command("opd init shop --example tabular")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.", show_default=False)],
    example: Annotated[str | None, typer.Option(metavar="NAME", help="Begin with a pipeline that ships.")] = None,
    as_json: Json = False,
) -> int:
    """Create a project: pipeline file, parameters, stages, notebooks and sample requests."""
    with reading_input():
        from opd.project.folder import create

        project = create(folder, example)
    say(f"created {project.root}")
    if as_json:
        print_json({"folder": project.root, "pipeline": project.file.name})
    elif example is None:
        print(f"next: describe your pipeline in {folder / 'pipeline.yaml'}, then `opd check {folder}`")
    else:
        print(f"next: `opd check {folder}`, then `opd profile {folder}`")
    return DONE


@command("opd check shop")
def check(
    folder: Folder,
    run_models: Annotated[bool, typer.Option(help="Load every model and send samples through all stages.")] = True,
    as_json: Json = False,
) -> int:
    """Report everything that is wrong with a project, by place, value and remedy."""
    with reading_input():
        project = _open(folder)
        from opd.project.checking import check_project

        found = check_project(project.root, run_models, say)
    if as_json:
        print_json({"problems": [each._asdict() for each in found.problems], "notes": found.notes})
    else:
        for number, problem in enumerate(found.problems, 1):
            print(f"{number}. {problem.place}: {problem.text}")
        for note in found.notes:
            print(f"note: {note}")
        print(f"{len(found.problems)} problem{'s' * (len(found.problems) != 1)}" if found.problems else "no problem")
    return REFUSED if found.problems else DONE


@command("opd profile shop")
def profile(folder: Folder, again: Again = False, as_json: Json = False) -> int:
    """Measure every variant as it is served: latency by batch size, start-up and memory. Resumable."""
    with reading_input():
        project = _open(folder)
        from opd.project.storing import store_models

        store_models(project.pipeline_path, say)
        if again:  # by this file the next run knows what it need not measure
            project.root.joinpath("profile.json").unlink(missing_ok=True)
    _reproduce(project, ["profile"], again)
    from opd.profiling.profiles import load_profile

    table = load_profile(project.root / "profile.csv")
    _print_frame(table, as_json)
    return DONE


@command("opd accuracy shop")
def accuracy(folder: Folder, as_json: Json = False) -> int:
    """Measure accuracy on labelled samples: of variants, and end to end beside the sum of Eq. 1."""
    with reading_input():
        project = _open(folder)
        from opd.project.storing import store_models
        from opd.serving.accuracy import labelled_pipeline, order_note

        store_models(project.pipeline_path, say)
        labelled = labelled_pipeline(project.root)
        say("serving every variant with all samples")
        variants, configurations = labelled.measure_variants(), labelled.measure_configurations()
    if as_json:
        both = {"variants": variants, "configurations": configurations}
        print_json({name: table.to_dict("records") for name, table in both.items()})
        return DONE
    _print_frame(variants, as_json=False)
    print()
    _print_frame(configurations.sort_values("measured", ascending=False), as_json=False)
    print(f"\n{order_note(configurations)}")
    return DONE


@command("opd recommend shop --load 20")
def recommend(
    folder: Folder,
    load: Annotated[float, typer.Option(min=0.0, help="Requests/s to carry.", show_default=False)],
    top: Annotated[int, typer.Option(min=1, help="Configurations to show.")] = 10,
    as_json: Json = False,
) -> int:
    """Rank the configurations that carry a load, with predicted latency percentiles, cost and accuracy."""
    with reading_input():
        project = _open(folder)
        from opd.study.recommendation import recommend as ranked

        answer = ranked(project.pipeline(), load, top, simulation=project.simulation())
    if as_json:
        print_json(answer.as_json())
    else:
        for limit in answer.limits:
            print(f"{limit.text}\n")
        if answer.configurations:
            _print_frame(_shown(answer.as_table()), as_json=False)
    return DONE if answer.reached else FAILED


def _shown(table: Any) -> Any:
    """The columns of recommendations that people read first, in their units."""
    shown = table[["configuration", "cores", "accuracy", "within"]].copy()
    for name in ("latency_p50", "latency_p95", "latency_p99"):
        shown[f"{name.removeprefix('latency_')} (ms)"] = 1e3 * table[name]
    shown["within"] = table["within"].map("{:.1%}".format)
    shown["keeps the level"] = table["keeps_level"].map({True: "yes", False: "no"})
    shown.loc[table["assumed"], "configuration"] += " (assumed profile)"
    return shown


@command("opd train shop")
def train(folder: Folder, trace: Trace = None, again: Again = False, as_json: Json = False) -> int:
    """Fine-tune the agent for the pipeline, and train the load forecast that it needs. Resumable."""
    project = _run_on_trace(folder, trace, "train", again)
    summary = project.report("training", project.file.name, "summary.json")
    if as_json:
        print_json(summary)
    else:
        import pandas as pd

        for runs in filter(None, (summary["runs"], summary["tuned"])):
            _print_frame(pd.DataFrame(runs), as_json=False)
    return DONE


@command("opd evaluate shop --trace load.csv")
def evaluate(folder: Folder, trace: Trace = None, again: Again = False, as_json: Json = False) -> int:
    """Run every policy on the load, in simulation, and write one HTML report."""
    project = _run_on_trace(folder, trace, "evaluate", again)
    import pandas as pd

    from opd.study.report.results import readable_summary

    evaluation = pd.read_csv(project.root / "reports" / "evaluation.csv")
    _print_frame(readable_summary(evaluation, project.report("evaluation.json")), as_json)
    say(f"report: {project.root / 'reports' / 'index.html'}")
    return DONE


def _run_on_trace(folder: Path, trace: str | None, stage: str, again: bool) -> Project:
    """Run a stage that needs the load and its forecast; a trace that is given becomes that of the project first."""
    with reading_input():
        given = _resolved(trace)
        project = _open(folder)
        project.pipeline()  # raises if it has not been measured
        if given is not None:
            from opd.workload.check_trace import check_trace, use_of, write_trace

            parameters = project.root / "params.yaml"
            check_trace(given, use_of(parameters, given))
            if note := write_trace(parameters, given):
                say(note)
    _reproduce(project, ["trace", "forecast", stage], again)
    return project


def _reproduce(project: Project, names: list[str], again: bool) -> None:
    with reading_input():
        from opd.project import stages
    try:
        stages.reproduce(project, names, again)
    except stages.StageFailedError as error:
        raise CommandError(str(error)) from error


def _print_frame(frame: Any, as_json: bool) -> None:
    """Print a table, numbers with four significant digits, or as JSON."""
    if as_json:
        print_json(frame.to_dict("records"))
        return
    shown = [[f"{each:.4g}" if isinstance(each, float) else str(each) for each in row] for row in frame.values.tolist()]
    print_table([[*map(str, frame.columns)], *shown])


@command("opd serve shop --policy myopic-backlog")
def serve(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Projects.", show_default=False)],
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="A policy, or module:Class (default: the agent).")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Of the device (default: those in the pipeline files).")
    ] = None,
    standbys: Annotated[int, typer.Option(min=0, help="Processes that each stage keeps warm.")] = 0,
    emulated: Emulated = False,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Append every decision to it, for `opd replay`.")
    ] = None,
    view: options.Page = options.PAGE,
    as_json: Annotated[bool, typer.Option("--json", help="Write every view as a line of JSON.")] = False,
) -> int:
    """Serve pipelines on this machine, decided every interval, with a live view; Ctrl-C drains and stops them.

    Several share the cores of the device: every interval an arbiter divides them by what they are worth to each.
    """
    with reading_input():
        record = record and record.resolve()
        projects = _open_all(folders, emulated, record)
        from opd.live.serve import show, show_as_json
        from opd.project.running import division_of_projects, placed_together, serve_projects
        from opd.project.storing import store_models
        from opd.serving.local import AlreadyControlledError
        from opd.serving.monitoring.source import MonitoringError
        from opd.serving.processes import StartError
        from opd.serving.store import store_url

        for project in [] if emulated else projects:
            store_models(project.pipeline_path, say, store_url(project.root))
        placed = placed_together(projects, policy, cores)
        division = division_of_projects(placed)
    for _, pipeline, chosen in placed:
        for note in chosen.notes:
            say(f"note: {pipeline.name}: {note}" if len(placed) > 1 else f"note: {note}")
    views = serve_projects(placed, division, standbys, record)
    try:
        (show_as_json if as_json else show)(views, view if len(placed) == 1 else None)
    except StartError as error:
        folder = folders[0] if len(folders) == 1 else "FOLDER"
        remedy = "" if emulated else f"; `opd check {folder}` loads every model and says what is wrong"
        raise CommandError(f"{error}{remedy}") from error
    except (AlreadyControlledError, MonitoringError) as error:
        raise CommandError(str(error)) from error
    return DONE


@command("opd load shop --trace load.csv --seconds 300")
def load(
    folder: Folder,
    trace: Annotated[str | None, typer.Option(metavar="FILE", help="Default: the trace of the project.")] = None,
    address: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Default: where `opd serve` serves.")] = None,
    start: Annotated[int, typer.Option(help="First second of the trace (default: its test split).")] = -1,
    seconds: Annotated[int, typer.Option(min=1, help="Length of the load.")] = 300,
    rate: Annotated[float | None, typer.Option(min=0.0, help="Requests/s, steady, in place of a trace.")] = None,
    seed: Annotated[int, typer.Option(help="Of the times and of the samples.")] = 0,
    emulated: Emulated = False,
    as_json: Json = False,
) -> int:
    """Send open-loop load to the pipeline, here or on a cluster, and report what became of the requests."""
    with reading_input():
        given = _resolved(trace)
        project = _open(folder, emulated)
        from opd.project import running

        where = address or running.served_address(project)
        if rate is None:
            counts = running.load_counts(project, given, start, seconds)
        else:
            counts = running.steady_counts(rate, seconds)
    from opd.live.failures import count_failures, useless_reason
    from opd.live.load import LoadError, share_within, summary

    try:
        output = project.root / "reports" / f"load{'-emulated' * emulated}.parquet"
        records = running.send_load(project, where, counts, output, seed)
    except LoadError as error:
        raise CommandError(str(error)) from error
    level = project.file.service_level
    found = {**summary(records), "within": share_within(records, level.seconds), "failures": count_failures(records)}
    if as_json:
        print_json(found)
    else:
        _print_load(running.served_name(project), found)
        print(f"\n{level.stated(found['within'])}")
    return FAILED if useless_reason(found) else DONE


def _print_load(name: str, found: dict[str, Any]) -> None:
    """Print failures first, then counts and latencies."""
    from opd.live.failures import describe_failures

    for sentence in describe_failures({name: {"requests": found, "failures": found["failures"]}}):
        print(f"{sentence}\n")
    print_table([(name, "" if value is None else f"{value:.4g}") for name, value in found.items() if _is_number(value)])


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)
