"""Commands for a project: input, exit codes and output for programs, almost without starting anything."""

import fcntl
import json
import os
import shutil
import subprocess
import sys

import pytest
import yaml
from deadlines import PATIENCE
from small_shop import write_shop

from opd import cli
from opd.project.folder import create

COMMANDS = sorted(command.name or command.callback.__name__ for command in cli.app.registered_commands)
OF_A_PROJECT = ["check", "profile", "accuracy", "recommend", "train", "evaluate", "serve", "load"]
NEEDED = {"recommend": ["--load=2"]}

PROFILE = "\n".join(
    [
        "task,variant,cores,batch_size,latency_mean,kind,startup_seconds",
        *(
            f"{task},{variant},1,{size},0.02,assumed,2"
            for task, variant in (("scale", "one"), ("scale", "minus"), ("sign", "strict"), ("sign", "plain"))
            for size in (1, 2)
        ),
    ]
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return write_shop(create(tmp_path_factory.mktemp("template") / "shop").root)


@pytest.fixture
def shop(template, tmp_path, monkeypatch):
    """A project that was not measured but has a profile typed by hand; commands work beside it."""
    shutil.copytree(template, tmp_path / "shop")
    (tmp_path / "shop" / "profile.csv").write_text(PROFILE)
    monkeypatch.chdir(tmp_path)  # commands change into the project
    return tmp_path / "shop"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_says_how_programs_read_it(command, capsys):
    assert cli.main([command, "--help"]) == cli.DONE
    text = capsys.readouterr().out
    assert f"example: opd {command} shop" in text and "130 interrupted" in " ".join(text.split())
    assert "--json" in text or command in ("run", "keda")  # the log of one is JSON, the other answers over gRPC


@pytest.mark.parametrize("command", OF_A_PROJECT)
def test_a_folder_that_is_no_project_is_refused(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in (".", "nosuch"):
        assert cli.main([command, folder, *NEEDED.get(command, [])]) == cli.REFUSED
        printed = capsys.readouterr()
        assert printed.err.startswith(
            f"error: {folder} is no project: it has no pipeline.yaml; make one with `opd init"
        )
        assert printed.out == "" and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command, package, extras",
    [
        (["check", "shop"], "papermill", "serving"),
        (["init", "new"], "dvc", "serving"),
        (["status", "shop", "-n=space"], "kubernetes", "serving,cluster"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(shop, command, package, extras):
    hidden = f"import sys; sys.modules[{package!r}] = None; from opd import cli; sys.exit(cli.main({command}))"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (cli.REFUSED, "")
    install = f"install it with: pip install 'opd[{extras}]'"
    assert done.stderr == f"error: the package {package} is not installed; {install}\n"
    assert not (shop.parent / "new").exists()


def test_wrong_usage_is_refused(shop, capsys):
    for words in ("recommend shop", "recommend shop --load=-1", "load shop --seconds=0", "chek shop"):
        assert cli.main(words.split()) == cli.REFUSED
        assert "Traceback" not in capsys.readouterr().err


def test_init_as_json(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "new", "--json"]) == cli.DONE
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"folder": str(tmp_path / "new"), "pipeline": "new"}
    assert cli.main(["init", "new"]) == cli.REFUSED
    assert "is not empty; name a new folder" in capsys.readouterr().err


def test_a_check_as_json(shop, capsys):
    assert cli.main(["check", "shop", "--no-run-models", "--json"]) == cli.DONE
    printed = capsys.readouterr()
    notes = ["assumed, not measured: scale/one, scale/minus, sign/strict, sign/plain"]
    assert json.loads(printed.out) == {"problems": [], "notes": notes}
    assert "stored scale/one" in printed.err


def test_a_check_that_finds_problems_refuses_the_project(shop, capsys):
    (shop / "shop_models.py").unlink()
    (shop / "labels.json").unlink()
    assert cli.main(["check", str(shop), "--no-run-models"]) == cli.REFUSED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1. labels: ") and lines[-1] == "1 problem"


def test_recommendations_of_an_assumed_profile_say_so(shop, capsys):
    assert cli.main(["recommend", "shop", "--load=2", "--json"]) == cli.DONE
    answer = json.loads(capsys.readouterr().out)
    assert answer["reached"] and all(each["assumed"] for each in answer["configurations"])
    assert cli.main(["recommend", ".", "--load=2"]) == cli.DONE
    assert "(assumed profile)" in capsys.readouterr().out
    assert cli.main(["recommend", ".", "--load=100000"]) == cli.FAILED
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    "policy, words",
    [
        ("clairvoyant", "policy 'clairvoyant' is not one of"),
        ("mioypc", "policy 'mioypc' is not one of"),
        ("agent-single", "file of an agent that was trained for the pipeline"),
        ("no_such_module_of_mine:Policy", "policy 'no_such_module_of_mine:Policy' cannot be imported"),
    ],
)
def test_unknown_policies_are_refused_before_anything_starts(shop, policy, words, capsys):
    assert cli.main(["serve", "shop", "--policy", policy]) == cli.REFUSED
    assert words in capsys.readouterr().err and not (shop / ".cache" / "serving").exists()


@pytest.mark.processes
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_pipeline_that_does_not_start_is_one_line_with_reason_logs_and_remedy(shop, as_json, capsys):
    models = shop / "shop_models.py"
    broken = models.read_text().replace("self.above, self.alone = above, alone", "raise ValueError('no weights here')")
    models.write_text(broken)
    assert cli.main(["serve", "shop", "--policy=greedy", "--view=none", *as_json]) == cli.FAILED
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and printed.err.rstrip().endswith(errors[0]) and "Traceback" not in printed.err
    assert errors[0].startswith(
        "error: pipeline 'shop' does not start: variant 'strict' of 'sign' did not start 2 times"
    )
    assert "no weights here" in errors[0] and "exit code 1" in errors[0]
    assert errors[0].endswith(
        f"logs are in {shop}/.cache/serving; `opd check shop` loads every model and says what is wrong"
    )
    assert list((shop / ".cache" / "serving").glob("sign-*.log"))


@pytest.mark.processes
def test_a_pipeline_that_is_served_already_is_one_line(shop, capsys):
    serving = shop / ".cache" / "serving"
    serving.mkdir(parents=True)
    with (serving / "controller.lock").open("a+") as held:
        held.write("4711")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cli.main(["serve", "shop", "--policy=greedy", "--view=none"]) == cli.FAILED
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: pipeline 'shop' in ") and error.endswith(
        "is controlled by process 4711; stop it, or use another folder"
    )


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_wrong_trace_changes_nothing(shop, command, capsys):
    before = (shop / "params.yaml").read_bytes()
    (shop.parent / "mine.csv").write_text("count\n-1\n")
    for trace, words in (
        ("mine.csv", "is negative"),
        ("nosuch.csv", "nor an existing file"),
    ):
        assert cli.main([command, "shop", "--trace", trace]) == cli.REFUSED
        assert words in capsys.readouterr().err
        os.chdir(shop.parent)  # the command has changed into the project
    assert (shop / "params.yaml").read_bytes() == before


def test_commands_that_need_a_profile_say_how_to_get_one(shop, capsys):
    (shop / "profile.csv").unlink()
    for command in ("recommend", "train", "evaluate", "serve"):
        assert cli.main([command, str(shop), *NEEDED.get(command, [])]) == cli.REFUSED
        assert "opd profile" in capsys.readouterr().err


def test_wrong_parameters_are_refused_by_name(shop, capsys):
    path = shop / "params.yaml"
    path.write_text(path.read_text().replace("interval: 10", "intervall: 10"))
    assert cli.main(["recommend", str(shop), "--load=2"]) == cli.REFUSED
    assert "params.yaml, simulation: intervall is not a known key; known are interval" in capsys.readouterr().err


# --- the same folder on a cluster ------------------------------------------------------------------------------------


@pytest.fixture
def settings(shop):
    """Writes the settings beside the pipeline file; the store is a folder of this machine."""
    store = shop.parent / "store"

    def write(**changes):
        (shop / "cluster.yaml").write_text(yaml.safe_dump({"image": "opd:1", "store": str(store), **changes}))
        return store

    return write


@pytest.fixture
def deploy(shell, shop):
    return lambda *options: shell("deploy", "--wait=10", *options, pipeline=shop)


def test_models_are_copied_where_the_pods_look_for_them(settings, deploy, shell, shop):
    store = settings()
    assert deploy("--dry-run") == cli.DONE, shell.err
    assert f"note: {store} is no folder of this machine" in shell.err and not store.exists()
    store.mkdir()
    assert deploy("--dry-run", "--json") == cli.DONE
    assert f"the models would be copied into {store}" in shell.err and not any(store.iterdir())
    assert any("shop-gateway" in each for each in json.loads(shell.out)["differences"])
    assert deploy("--no-store", "--json") == cli.DONE, shell.err
    assert not any(store.iterdir())
    assert {"kind": "Deployment", "name": "shop-gateway", "result": "created"} in json.loads(shell.out)["changes"]
    assert deploy() == cli.DONE
    assert shell.err.count("stored ") == 4 and (store / "scale" / "one" / "manifest.json").is_file()
    assert deploy() == cli.DONE and "stored" not in shell.err
    assert shell("status", "--json", pipeline=shop) == cli.DONE
    found = json.loads(shell.out)
    assert found["serves"] and {each["task"] for each in found["components"]} >= {"scale", "sign"}
    assert shell("delete", "--json", pipeline=shop) == cli.DONE
    assert "Deployment" in {each["kind"] for each in json.loads(shell.out)["changes"]}


def test_a_store_that_cannot_be_written_is_an_error_with_a_remedy(settings, deploy, shell):
    settings(store="file:///proc/nosuch")
    assert deploy() == cli.FAILED
    assert "the model store file:///proc/nosuch cannot be used" in shell.err and "--no-store leaves it" in shell.err
    assert not shell.writes()


def test_models_that_cannot_be_stored_are_refused(settings, deploy, shell, shop):
    settings().mkdir()
    path = shop / "pipeline.yaml"
    path.write_text(path.read_text().replace('"shop_models:Sign", accuracy: 0.7', "none.onnx, accuracy: 0.7"))
    assert deploy() == cli.REFUSED
    assert "model 'none.onnx' of variant 'plain' of task 'sign': there is no file" in shell.err and not shell.writes()


def test_functions_that_the_image_must_have_are_named(settings, deploy, shell, shop):
    settings().mkdir()
    path = shop / "pipeline.yaml"
    path.write_text(path.read_text().replace("{pick: [scaled], rename: {scaled: value}}", "helpers:value"))
    assert deploy("--dry-run") == cli.DONE, shell.err
    assert "the gateway calls helpers:value; the image must have these modules" in shell.err


def test_settings_of_the_command_line_replace_the_file_in_the_folder(settings, deploy, shell, shop):
    settings(image="opd:1")
    other = shop.parent / "other.yaml"
    other.write_text("{image: 'opd:2', store: /models}")
    for options, image in ((["--image=opd:3"], "opd:3"), ([f"--settings={other}"], "opd:2"), ([], "opd:1")):
        assert deploy("--no-store", *options) == cli.DONE, shell.err
        pod = shell.api.find("deployments", "shop-gateway")["spec"]["template"]["spec"]
        assert pod["containers"][0]["image"] == image


def test_a_controller_takes_parameters_policy_and_forecaster_from_the_folder(settings, shell, shop, caplog):
    settings()
    (shop / "policies_of_shop.py").write_text("class Mine:\n    def decide(self, observation):\n        return []\n")
    given = ["--prometheus=http://127.0.0.1:1", "--policy=policies_of_shop:Mine"]
    assert shell("run", *given, pipeline=shop) == cli.REFUSED
    assert f"there is no file {shop}/models/forecaster.npz; train one" in shell.err + caplog.text
