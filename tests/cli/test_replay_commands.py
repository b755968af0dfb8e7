"""Shadow mode of ``opd run`` on an emulated cluster, and ``opd replay``."""

import json

import pytest
from cli_shell import ROOT
from emulator.prometheus import Prometheus
from recorded_runs import PIPELINE, recorded_run

from opd import cli
from opd.profiling.pipelines import load_pipeline


@pytest.fixture
def shadow(shell, forecaster):
    """Function that runs the controller of a deployed pipeline in shadow mode."""
    assert shell.deploy() == cli.DONE
    prometheus = Prometheus(load_pipeline(shell.file), load=30.0)
    shell.api.requests.clear()
    given = ["--image=opd:1", "--store=/models", "--policy=greedy", "--shadow", f"--params={ROOT / 'params.yaml'}"]
    where = [f"--forecaster={forecaster}", f"--prometheus={prometheus.url}", "--interval=1", "--port=0", "--view=none"]
    yield lambda *options: shell("run", *given, *where, *options)
    prometheus.close()


def scale(shell, replicas):
    """What an autoscaler does: another number of replicas, and nothing else."""
    shell.api.edit("deployments", "tiny-first-small", lambda workload: workload["spec"].update(replicas=replicas))


def test_a_shadow_changes_nothing_and_reports_what_would_have_happened(shell, shadow, tmp_path):
    scale(shell, 2)
    record = tmp_path / "shadow.jsonl"
    assert shadow("--decisions=4", f"--record={record}") == cli.DONE, shell.err
    assert shell.writes() == [] and shell.models() == {"tiny-first-small": 2, "tiny-second-small": 1}
    entries = [json.loads(line) for line in record.read_text().splitlines()]
    assert [entry["configuration"]["first"]["replicas"] for entry in entries] == [2] * 4  # not what was deployed
    assert {entry["reason"] for entry in entries} == {"in shadow: nothing was changed"}
    assert all(entry["wanted"] != entry["configuration"] for entry in entries)
    assert "what ran  measured   3.00" in shell.out and "greedy    simulated" in shell.out
    assert "cores instead of 3.00 of what ran" in shell.out
    page = record.with_suffix(".html").read_text()
    assert "In 3 of 3 intervals the policy that wrote the record wanted something else" in page


def test_a_shadow_is_no_dry_run(shell, shadow, caplog):
    assert shadow("--dry-run") == cli.REFUSED
    assert "give one of them" in caplog.text and not shell.api.requests


def test_policies_of_a_project_are_replayed(shell, capsys, tmp_path, monkeypatch):
    folder = tmp_path / "shop"
    folder.mkdir()
    write_project(folder)
    recorded_run(tmp_path / "run.jsonl")
    monkeypatch.chdir(tmp_path)
    given = ["--pipeline", str(folder), "--seeds=1", "--report", str(tmp_path / "page.html")]
    assert cli.main(["replay", "run.jsonl", "--policy=greedy", "--policy=ladder", *given]) == cli.DONE
    out = capsys.readouterr().out
    assert "greedy    simulated" in out and "ladder    simulated" in out and "error on what ran" in out
    assert "ladder, simulated" in (tmp_path / "page.html").read_text()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["replay", "run.jsonl", "--policy=clairvoyant", *given]) == cli.REFUSED
    assert "needs to know the coming load" in capsys.readouterr().err


def write_project(folder):
    """A project whose pipeline is that of the record."""
    tasks = [
        {
            "name": task.name,
            "variants": [
                {"name": v.name, "model": "store", "accuracy": v.accuracy, "cores": v.cores} for v in task.variants
            ],
        }
        for task in PIPELINE.tasks
    ]
    file = {
        "name": "ocr",
        "device": {"cores": PIPELINE.capacity},
        "limits": {"replicas": PIPELINE.max_replicas, "batch_size": PIPELINE.max_batch_size},
        "objective": {"latency": {"seconds": 1.0}},
        "tasks": tasks,
    }
    (folder / "pipeline.yaml").write_text(json.dumps(file))
    rows = [
        f"{task.name},{v.name},{v.cores},{size},{v.latency[size]},measured,{v.startup_time}"
        for task in PIPELINE.tasks
        for v in task.variants
        for size in (1, 2)
    ]
    head = "task,variant,cores,batch_size,latency_mean,kind,startup_seconds"
    (folder / "profile.csv").write_text("\n".join([head, *rows]))
    (folder / "params.yaml").write_text((ROOT / "opd/project/template/params.yaml").read_text())
