"""Deployment, status, changes and deletion of a pipeline; dry runs; failures."""

import os
import re
import subprocess
import sys

import pytest
from cli_shell import ROOT
from deadlines import PATIENCE

from opd import cli


def test_the_life_of_a_pipeline(shell):
    assert shell.deploy() == cli.DONE, shell.err
    assert re.search(r"^Deployment +tiny-gateway +created$", shell.out, re.MULTILINE)
    assert "tiny-gateway.space.svc, gRPC 8081" in shell.out
    assert shell.stage("first") == {"variant": "small", "batch_size": "1"}

    assert shell("status") == cli.DONE
    assert re.search(r"^model +first +small +1/1", shell.out, re.MULTILINE)
    assert re.search(r"^model +second +small +1/1 +1 +0", shell.out, re.MULTILINE)

    shell.api.requests.clear()
    assert shell.deploy() == cli.DONE
    assert "created" not in shell.out and "changed" not in shell.out.replace("unchanged", "")

    assert shell.deploy("--stage=first=large:2:2") == cli.DONE, shell.err
    assert shell.stage("first") == {"variant": "large", "batch_size": "2"}
    assert shell.stage("second") == {"variant": "small", "batch_size": "1"}
    for changed in ("ConfigMap +tiny-first-stage", "Deployment +tiny-first-large", "Deployment +tiny-first-small"):
        assert re.search(rf"^{changed} +changed$", shell.out, re.MULTILINE)
    assert shell("status") == cli.DONE
    assert re.search(r"^model +first +large +2/2", shell.out, re.MULTILINE) and "first   small" not in shell.out

    shell.api.requests.clear()
    assert shell.deploy() == cli.DONE  # the running configuration stays
    assert shell.stage("first")["variant"] == "large" and "created" not in shell.out

    assert shell("delete") == cli.DONE, shell.err
    assert "deleted" in shell.out
    assert not shell.api.objects
    assert shell("status") == cli.NOT_DEPLOYED
    assert shell("delete") == cli.NOT_DEPLOYED


def test_the_namespace_default_can_be_named(shell):
    assert shell.deploy(namespace="default") == cli.DONE
    assert {key[2] for key in shell.api.objects} == {"default"}


def test_a_pipeline_that_ships_with_the_package(shell):
    assert shell.deploy("--flavour=seldon", "--pod-monitor", "--network-policy", pipeline="ocr") == cli.DONE, shell.err
    assert shell.names("seldondeployments") and shell.names("podmonitors") == {"ocr"}
    assert shell("status", pipeline="ocr") == cli.DONE and "text-recognition" in shell.out
    assert shell("delete", pipeline="ocr") == cli.DONE and not shell.api.objects


def specified(api):
    """All objects without the parts that the cluster itself updates."""
    kept = ("metadata", "status")
    return {key: {n: part for n, part in each.items() if n not in kept} for key, each in list(api.objects.items())}


def test_dry_runs_write_nothing(shell):
    assert shell.deploy("--dry-run") == cli.DONE
    assert "+++ Deployment/tiny-gateway then" in shell.out and not shell.api.objects
    assert shell.deploy() == cli.DONE
    before = specified(shell.api)
    shell.api.requests.clear()
    assert shell.deploy("--dry-run") == cli.DONE and shell.out == "nothing would change\n"
    assert shell.deploy("--dry-run", "--image=opd:2", "--stage=first=large:1:4") == cli.DONE, shell.err
    assert "+        image: opd:2" in shell.out
    assert "+  variant: large" in shell.out and "+++ Deployment/tiny-first-large then" in shell.out
    assert shell("delete", "--dry-run") == cli.DONE
    assert re.search(r"^Deployment +tiny-gateway +would be deleted$", shell.out, re.MULTILINE)
    assert all("dryRun=All" in target for _, target in shell.writes())
    assert specified(shell.api) == before


def test_a_missing_kind_is_found_before_the_first_object_is_made(shell):
    shell.api.refuse("PATCH .*podmonitors", 404, message="the server could not find the requested resource")
    assert shell.deploy("--pod-monitor") == cli.FAILED
    assert "its kind is installed" in shell.err and not shell.api.objects


@pytest.mark.processes
def test_who_reads_the_output_may_stop_reading(shell):
    assert shell.deploy() == cli.DONE
    read, write = os.pipe()
    os.close(read)
    place = [shell.file, "--namespace=space", f"--kubeconfig={shell.config}"]
    command = [sys.executable, "-m", "opd", "status", *place]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, cwd=ROOT)
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.DONE, "")


def test_a_change_by_hand_is_shown_by_the_status_and_ended_by_a_deployment(shell):
    assert shell.deploy() == cli.DONE
    by_hand = {"replicas": 2}
    shell.api.edit("deployments", "tiny-first-small", lambda found: found["spec"].update(by_hand), "kubectl")
    shell.api.edit("configmaps", "tiny-second-stage", lambda found: found["data"].update(batch_size="2"), "k9s")
    shell("status")
    assert re.search(r"^model +first .*spec.replicas was set by 'kubectl'$", shell.out, re.MULTILINE)
    assert re.search(r"^model +second .*data.batch_size was set by 'k9s'$", shell.out, re.MULTILINE)
    assert shell.deploy() == cli.DONE and shell("status") == cli.DONE
    assert "was set by" not in shell.out
    assert shell.models() == {"tiny-first-small": 2, "tiny-second-small": 1}
    assert shell.stage("second")["batch_size"] == "2"


def test_a_refusal_of_the_cluster_is_one_line_with_the_remedy(shell):
    shell.api.refuse("PATCH .*deployments", 403, 99, message="deployments.apps is forbidden")
    assert shell.deploy() == cli.FAILED
    assert shell.err.startswith("error: ") and shell.err.count("\n") == 1
    assert "deployments.apps is forbidden" in shell.err and "RoleBinding" in shell.err


def test_an_unreachable_cluster_is_an_error_with_a_remedy(shell):
    shell.api.stop()
    for command in ("status", "delete"):
        assert shell(command) == cli.FAILED
        assert "check that the API server runs" in shell.err and "Traceback" not in shell.err
    shell.api.start()


def test_missing_pods_are_reported_with_the_reason(shell):
    shell.kubelet.behave("tiny-first-small", broken="ImagePullBackOff")
    assert shell.deploy("--wait=1") == cli.FAILED
    assert "tiny-first-small 0 of 1" in shell.err and "ImagePullBackOff" in shell.err
    assert shell("status") == cli.FAILED
    assert re.search(r"^model +first +small +0/1 .*ImagePullBackOff", shell.out, re.MULTILINE)
    shell.kubelet.behave("tiny-first-small")
    assert shell.deploy() == cli.DONE


def test_a_failed_change_is_rolled_back(shell):
    assert shell.deploy() == cli.DONE
    shell.kubelet.behave("tiny-first-large", broken="CrashLoopBackOff")
    assert shell.deploy("--stage=first=large:1:1") == cli.FAILED
    assert "CrashLoopBackOff" in shell.err and "last good configuration is restored" in shell.err
    assert shell.stage("first")["variant"] == "small"


def test_a_change_fails_while_a_controller_leads(shell, monkeypatch):
    monkeypatch.setattr("opd.cluster.operations.LEASE_SECONDS", 0.5)
    assert shell.deploy() == cli.DONE
    shell.give_the_lease_to_another()
    assert shell.deploy("--stage=first=large:1:1") == cli.FAILED
    assert (
        "another controller holds the Lease 'tiny-controller' of pipeline 'tiny'" in shell.err
        and shell.stage("first")["variant"] == "small"
    )
    assert shell("status") == cli.DONE and "controller: other" in shell.out


def test_a_change_ends_when_the_lease_is_lost(shell):
    assert shell.deploy() == cli.DONE
    shell.kubelet.behave(
        "tiny-first-large", start_seconds=4.0
    )  # longer than it takes to notice the loss at the first pod
    theirs = {"holderIdentity": "other", "leaseDurationSeconds": 60}
    shell.api.fail("PATCH .*first-large/scale", lambda: shell.api.edit("leases", "tiny-controller", taken))

    def taken(lease):
        lease["spec"].update(theirs)

    assert shell.deploy("--stage=first=large:1:1") == cli.FAILED
    assert "another controller leads now" in shell.err and shell.stage("first")["variant"] == "small"
    assert shell.api.find("leases", "tiny-controller")["spec"]["holderIdentity"] == "other"


def test_foreign_objects_are_not_touched(shell):
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "tiny-gateway", "namespace": "space"}}
    shell.api.put({**theirs, "spec": {"selector": {"app": "theirs"}}})
    assert shell.deploy() == cli.REFUSED
    assert "is not of pipeline 'tiny'" in shell.err and not shell.writes()
    assert shell("delete") == cli.NOT_DEPLOYED
    assert shell.names("services") == {"tiny-gateway"}
