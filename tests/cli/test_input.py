"""Help, and input that is refused before any call to the cluster."""

import re
import shlex
import subprocess
import sys
from typing import get_args

import pytest
import typer
from cli_shell import PIPELINE, ROOT
from code_blocks import code_blocks
from deadlines import PATIENCE

from opd import cli
from opd.host.documents import DocumentError
from opd.profiling.pipelines import load_pipeline


def test_help_lists_commands_and_exit_codes_and_imports_nothing_heavy():
    code = (
        "import sys, opd.cli\n"
        "assert opd.cli.main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'numba', 'kubernetes', 'pandas', 'mlserver', 'pydantic', 'yaml'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    for word in ("deploy", "status", "run", "delete", "exit codes: 0 done; 1 failed; 2"):
        assert word in done.stdout


def test_help_lists_flavours_policies_and_pull_policies(capsys):
    from opd.cluster.settings import Flavour, PullPolicy
    from opd.control import DEPLOYABLE_POLICIES

    assert cli.main(["run", "--help"]) == cli.DONE
    text = "".join(capsys.readouterr().out.split())  # lines are also wrapped at hyphens
    for word in (*get_args(Flavour), *DEPLOYABLE_POLICIES, *get_args(PullPolicy)):
        assert word in text


def test_opd_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "opd"], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and "COMMAND" in done.stderr


BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nall: {spec: {nodeSelector: *b}}\n"


@pytest.mark.parametrize(
    "options, place, words",
    [
        ([], {"namespace": None}, "--namespace"),
        ([], {"namespace": ""}, "not a DNS label"),
        ([], {"namespace": "other/secrets"}, "not a DNS label"),
        ([], {"namespace": "../kube-system"}, "not a DNS label"),
        ([], {"pipeline": "Tiny_1"}, "not a DNS label"),
        ([], {"pipeline": "../../etc/passwd"}, "no pipeline '../../etc/passwd'"),
        ([], {"pipeline": "nosuch"}, "no pipeline 'nosuch'"),
        ([], {"pipeline": "nosuch.yaml"}, "no pipeline 'nosuch.yaml'"),
        (["--flavour=docker"], {}, "flavour must be 'deployment' or 'seldon', not 'docker'"),
        (["--image=no image"], {}, "image: 'no image' is malformed"),
        (["--store=nowhere"], {}, "store: 'nowhere' is malformed"),
        (["--istio-gateway=a/b/c"], {}, "istio_gateway"),
        (["--monitoring-label=release"], {}, "KEY=VALUE"),
        (["--monitoring-label=app.kubernetes.io/name=x"], {}, "belongs to opd"),
        (["--stage=first=small"], {}, "TASK=VARIANT:REPLICAS:BATCH"),
        (["--stage=third=small:1:1"], {}, "no task 'third'; it has first, second"),
        (["--stage=first=huge:1:1"], {}, "no variant 'huge'; it has small, large"),
        (["--stage=first=small:0:1"], {}, "0 replicas are not within 1..3"),
        (["--stage=first=small:999999:1"], {}, "999999 replicas are not within 1..3"),
        (["--stage=first=small:1:3"], {}, "batch size 3 is not one of"),
        (["--stage=first=large:3:1"], {}, "needs 7 cores, the device has 6"),
        (["--wait=-1"], {}, "not within"),
        (["--context=nosuch"], {}, "nosuch"),
    ],
)
def test_wrong_input_is_refused(shell, options, place, words):
    assert shell.deploy(*options, **place) == cli.REFUSED
    assert words in shell.err and "Traceback" not in shell.err
    assert not shell.api.requests


def test_all_wrong_stages_are_named_at_once(shell):
    wrong = {
        "first=small": "write TASK=VARIANT:REPLICAS:BATCH",
        "third=small:1:1": "no task 'third'",
        "first=huge:1:1": "no variant 'huge'",
        "second=small:9:1": "9 replicas are not within 1..3",
        "second=small:1:3": "batch size 3 is not one of",
    }
    assert shell.deploy(*(f"--stage={text}" for text in (*wrong, "first=small:1:1"))) == cli.REFUSED
    assert "5 --stage options are wrong:" in shell.err and not shell.api.requests
    listed = [line for line in shell.err.splitlines() if line.startswith("- ")]
    for line, (text, words) in zip(listed, wrong.items(), strict=True):
        assert line.startswith(f"- --stage {text!r}: ") and words in line
    assert shell.deploy("--stage=first=small:1:1", "--stage=first=large:1:1") == cli.REFUSED
    assert "error: --stage 'first=large:1:1': task 'first' has been given before" in shell.err


@pytest.mark.parametrize(
    "text, words",
    [
        (BOMB, "anchors and aliases are not allowed"),
        ("all: !!python/object/apply:os.system [id]", "tags such as"),
        ("all: {spec: {nodeSelektor: {}}}", "unknown field 'nodeSelektor'"),
        ("all: {metadata: {labels: {opd.io/task: x}}}", "belongs to opd"),
        ("all: " + "[" * 60 + "]" * 60, "nested deeper"),
        ("# " + "x" * 70_000, "larger than"),
    ],
)
def test_a_malicious_overlay_is_refused(shell, text, words):
    assert shell.deploy(f"--overlay={shell.write('overlay.yaml', text)}") == cli.REFUSED
    assert words in shell.err and not shell.api.requests


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("name: tiny", "name: tiny\nnamespace: kube-system", "(line 3) is not a known key; known are name, des"),
        ("name: tiny", "name: kube-system/tiny", "name (line 2) is not of the right form: 'kube-system/tiny'"),
        ("name: tiny", "name: Tiny_1", "not a DNS label"),
        ("name: tiny", "name: 1tiny", "must begin with a letter"),
        ("name: tiny", "name: [tiny]", "name (line 2) must be text"),
        ("name: first", "name: 'first\\nx'", "tasks[0].name (line 7) is not of the right form"),
        ("name: large", "name: stage", "2 objects"),
        ("replicas: 3", "replicas: 1000000000", "limits.replicas (line 4) must be at most 1000, not 1000000000"),
        ("replicas: 3", "replicas: true", "whole number"),
        ("batch_size: 4", "batch_size: 1024000", "must be at most 1024"),
        ("device: {cores: 6}", "device: {cores: 1}", "too small for any configuration"),
        ("device: {cores: 6}\n", "", "device (line 2) is missing"),
        ("cores: 2", "cores: 2.5", "whole number"),
        ("accuracy: 0.6", "accuracy: .nan", "finite number"),
        ("tasks:", "other:", "is not a known key"),
    ],
)
def test_a_wrong_pipeline_file_is_refused(shell, old, new, words):
    assert old in PIPELINE
    path = shell.write("wrong.yaml", PIPELINE.replace(old, new, 1))
    for command in (lambda: shell.deploy(pipeline=path), lambda: shell("delete", pipeline=path)):
        assert command() == cli.REFUSED
        assert words in shell.err and not shell.api.requests


def test_a_pipeline_file_is_read_as_written(shell):
    pipeline = load_pipeline(shell.file)
    assert (pipeline.name, pipeline.capacity, pipeline.max_replicas, pipeline.service_level.seconds) == (
        "tiny",
        6,
        3,
        1.0,
    )
    assert [variant.cores for variant in pipeline.tasks[0].variants] == [1, 2]
    assert pipeline.tasks[0].variants[1].service_time(2) == 0.05
    with pytest.raises(DocumentError, match="tasks .* at least 1 entry"):
        load_pipeline(shell.write("none.yaml", PIPELINE.split("tasks:")[0] + "tasks: []"))


def test_a_pipeline_needs_a_profile_to_be_deployed_but_not_to_be_deleted(shell):
    assert shell.deploy() == cli.DONE, shell.err
    (shell.folder / "profile.csv").unlink()
    assert shell.deploy() == cli.REFUSED and "opd profile" in shell.err
    assert shell("status") == cli.DONE and shell("delete") == cli.DONE, shell.err


def test_a_folder_is_deployed_like_the_file_in_it(shell):
    (shell.folder / "tiny.yaml").rename(shell.folder / "pipeline.yaml")
    assert shell.deploy(pipeline=shell.folder) == cli.DONE, shell.err
    assert shell("delete", pipeline=f"{shell.folder}/pipeline.yaml") == cli.DONE, shell.err


def test_settings_of_another_namespace_are_refused(shell):
    path = shell.write("settings.yaml", "{namespace: theirs, image: 'opd:1', store: /models}")
    assert shell("deploy", f"--settings={path}") == cli.REFUSED
    assert "is for namespace 'theirs', not 'space'" in shell.err and not shell.api.requests


def test_the_error_for_missing_image_and_store_names_the_remedy(shell):
    assert shell("deploy") == cli.REFUSED
    assert "--image and --store" in shell.err


@pytest.mark.parametrize("command", ["status", "delete"])
def test_a_name_is_checked_but_need_not_be_known(shell, command):
    assert shell(command, pipeline="a,b=c") == cli.REFUSED and not shell.api.requests
    assert shell(command, pipeline="gone") == cli.NOT_DEPLOYED
    assert "is not deployed in namespace 'space'" in shell.err


def documented_commands():
    """Calls of ``opd`` in the documentation, split into words."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lines = "\n".join(code_blocks(text, "console")).replace("\\\n", " ").splitlines()
    return [shlex.split(match[1], comments=True) for line in lines if (match := re.match(r"\S*\bopd (.*)", line))]


def test_documented_commands_and_options_exist():
    commands = typer.main.get_command(cli.app).commands
    calls = [call for call in documented_commands() if call != ["--help"]]
    assert len(calls) >= 6
    for name, *words in calls:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_an_interrupted_command_says_how_to_go_on(shell, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("opd.cluster.operations.status", interrupt)
    assert shell("status") == cli.INTERRUPTED == 130
    assert shell.err == "interrupted; run the command again to go on\n"
