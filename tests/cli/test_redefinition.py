"""Deployment of a pipeline whose definition, flavour or settings changed."""

import pytest
from cli_shell import PIPELINE

from opd import cli

THIRD = """
  - name: third
    variants:
      - {name: small, model: store, accuracy: 0.5, cores: 1}
"""
SECOND = PIPELINE[PIPELINE.index("  - name: second") :]
LARGE = PIPELINE[PIPELINE.index("      - {name: large") : PIPELINE.index("  - name: second")]


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
@pytest.mark.parametrize(
    "replicas, old, new, running, words",
    [
        (2, "device: {cores: 6}", "device: {cores: 3}", {"first-small": 1, "second-small": 1}, "device has 3"),
        (1, LARGE, "", {"first-small": 1, "second-small": 2}, "no variant 'large'"),
        (2, LARGE, "", {"first-small": 1, "second-small": 2}, "no variant 'large'"),
        (1, SECOND, SECOND + THIRD, {"first-large": 1, "second-small": 2, "third-small": 1}, "added: third"),
        (1, SECOND, "", {"first-large": 1}, ""),
    ],
    ids=["less capacity", "variant removed", "variant removed, no room", "task added", "task removed"],
)
def test_after_a_change_of_the_pipeline_only_its_own_workloads_run(shell, flavour, replicas, old, new, running, words):
    stages = f"--stage=first=large:{replicas}:2", "--stage=second=small:2:1"
    assert shell.deploy(f"--flavour={flavour}", *stages) == cli.DONE, shell.err
    shell.kubelet.cores = 3 if "device" in new else 6
    redefined = shell.write("redefined.yaml", PIPELINE.replace(old, new, 1))
    assert shell.deploy(f"--flavour={flavour}", pipeline=redefined) == cli.DONE, shell.err
    assert words in shell.err
    assert shell.models() == {f"tiny-{name}": replicas for name, replicas in running.items()}
    assert shell.stage("first")["batch_size"] == ("2" if "first-large" in running else "1")
    assert shell.deploy(f"--flavour={flavour}", pipeline=redefined) == cli.DONE
    assert "created" not in shell.out and "deleted" not in shell.out and "warning" not in shell.err


def test_old_replicas_serve_until_new_ones_do_if_there_is_room(shell):
    assert shell.deploy("--stage=first=large:1:1") == cli.DONE
    shell.kubelet.behave("tiny-first-small", start_seconds=0.5)
    seen = []
    shell.api.fail("GET .*pods", lambda: seen.append(shell.models()), 99)
    assert shell.deploy(pipeline=shell.write("redefined.yaml", PIPELINE.replace(LARGE, ""))) == cli.DONE, shell.err
    assert seen[-1] == {"tiny-first-large": 1, "tiny-first-small": 1, "tiny-second-small": 1}
    assert shell.models() == {"tiny-first-small": 1, "tiny-second-small": 1}


def test_old_replicas_that_never_become_ready_are_not_waited_for(shell):
    shell.kubelet.behave("tiny-first-large", broken="ImagePullBackOff")
    assert shell.deploy("--stage=first=large:1:1", "--wait=0.2") == cli.FAILED
    assert shell.deploy(pipeline=shell.write("redefined.yaml", PIPELINE.replace(LARGE, ""))) == cli.DONE, shell.err


def test_replicas_are_not_released_while_a_controller_leads(shell, monkeypatch):
    monkeypatch.setattr("opd.cluster.operations.LEASE_SECONDS", 0.5)
    assert shell.deploy("--stage=first=large:1:1") == cli.DONE
    shell.give_the_lease_to_another()
    redefined = shell.write("redefined.yaml", PIPELINE.replace(LARGE, ""))
    assert shell.deploy(pipeline=redefined) == cli.FAILED and "another controller holds the Lease" in shell.err
    assert (
        shell.models() == {"tiny-first-large": 1, "tiny-second-small": 1} and shell.stage("first")["variant"] == "large"
    )
    assert shell.deploy("--dry-run", pipeline=redefined) == cli.DONE
    assert "+++ Deployment/tiny-first-small then" in shell.out and "--- Deployment/tiny-first-large now" in shell.out


def test_another_flavour_replaces_the_former_one_without_room_for_both(shell):
    shell.kubelet.cores = 6
    full = "--stage=first=large:2:1", "--stage=second=small:2:1"
    assert shell.deploy(*full) == cli.DONE, shell.err
    assert shell.deploy("--flavour=seldon") == cli.DONE, shell.err
    assert not any(name.endswith(("small", "large")) for name in shell.names("deployments"))
    assert shell.models() == {"tiny-first-large": 2, "tiny-second-small": 2}


@pytest.mark.parametrize("flavour, said", [("deployment", True), ("seldon", False)])
def test_only_plain_deployments_are_renewed_in_place(shell, flavour, said):
    full = shell.write("full.yaml", PIPELINE.replace("{cores: 6}", "{cores: 2}"))
    assert shell.deploy(f"--flavour={flavour}", pipeline=full) == cli.DONE, shell.err
    assert shell.deploy(f"--flavour={flavour}", "--image=opd:2", pipeline=full) == cli.DONE, shell.err
    assert ("renewed in place" in shell.err) == said


def test_an_overlay_and_settings_reach_the_pods(shell):
    overlay = shell.write("overlay.yaml", "model: {spec: {nodeSelector: {disk: fast}}}")
    settings = shell.write("settings.yaml", "{image: 'opd:1', store: /models, dashboard: true}")
    given = [f"--settings={settings}", "--image=opd:2", f"--overlay={overlay}", "--no-dashboard", "--wait=10"]
    assert shell("deploy", *given) == cli.DONE, shell.err
    pods = {
        name: shell.api.find("deployments", name)["spec"]["template"]["spec"] for name in shell.names("deployments")
    }
    assert pods["tiny-first-small"]["nodeSelector"] == {"disk": "fast"} and "nodeSelector" not in pods["tiny-gateway"]
    assert {pod["containers"][0]["image"] for pod in pods.values()} == {"opd:2"}
    assert not any("dashboard" in name for name in shell.names("configmaps"))
