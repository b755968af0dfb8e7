"""State of a deployed pipeline, and waiting until it serves."""

import os
import re
import sys
from pathlib import Path

import pytest
from deadlines import PATIENCE, eventually
from emulator.kubelet import Kubelet
from serving_models import push_variant
from small_pipelines import stages
from tiny_cluster import INITIAL, LARGE, SMALL, settings, tiny_pipeline

from opd import cli
from opd.cluster.errors import NotServingError
from opd.cluster.inputs import stages_of
from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.operations import deploy
from opd.cluster.overlay import Overlay
from opd.cluster.owned_objects import apply_objects
from opd.cluster.pods import failure_reason, last_end
from opd.cluster.status import (
    controller_states,
    leader,
    queued_requests,
    wait_until_serving,
    workload_status,
    workload_statuses,
)

TESTS = Path(__file__).parents[1]


def deployment(name, image_generation=1, **status):
    its_labels = {"app.kubernetes.io/component": "gateway"}
    metadata = {"name": name, "labels": its_labels, "generation": image_generation}
    kind = {"apiVersion": "apps/v1", "kind": "Deployment"}
    return {**kind, "metadata": metadata, "spec": {"replicas": 1}, "status": status}


READY = {
    "metadata": {"name": "p"},
    "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
}


@pytest.mark.parametrize(
    "status, generation, ready",
    [
        (dict(observedGeneration=1, replicas=1, updatedReplicas=1), 1, 1),
        (dict(observedGeneration=1, replicas=1, updatedReplicas=1), 2, 0),  # the cluster has not looked yet
        (dict(observedGeneration=2, replicas=1), 2, 0),  # the pod is of the state before
        (dict(observedGeneration=2, replicas=2, updatedReplicas=1), 2, 0),  # the old pod is still there
    ],
)
def test_a_pod_of_an_earlier_specification_does_not_count(status, generation, ready):
    assert workload_status(deployment("d", generation, **status), [READY]).ready == ready


@pytest.mark.parametrize("state, ready", [("Available", 1), ("Creating", 0)])
def test_a_seldon_deployment_is_ready_when_its_state_is_available(state, ready):
    found = {
        "apiVersion": "machinelearning.seldon.io/v1",
        "kind": "SeldonDeployment",
        "metadata": {"name": "d", "labels": {}},
        "spec": {"predictors": [{"replicas": 1, "componentSpecs": [{"spec": {}}]}]},
        "status": {"state": state},
    }
    assert workload_status(found, [READY]).ready == ready


def test_seldon_pods_of_an_earlier_template_do_not_count_before_the_operator_reacts(space):
    space.deploy(flavour="seldon")
    space.kubelet.close()
    overlay = Overlay(model={"spec": {"nodeSelector": {"disk": "fast"}}})
    list(apply_objects(space.cluster, space.manifests(flavour="seldon", overlay=overlay)))
    running = [each for each in space.api.all("seldondeployments") if each["spec"]["replicas"]]
    assert {each["status"]["state"] for each in running} == {"Available"}
    with pytest.raises(NotServingError, match="tiny-first-small 0 of 1, tiny-second-small 0 of 1"):
        wait_until_serving(space.cluster, "tiny", 0.1)


@pytest.mark.parametrize("reason", ["ErrImageNeverPull", "quota exceeded: cpu"])
def test_missing_pods_and_the_reason_are_reported(space, reason):
    space.kubelet.behave("tiny-second-small", broken=reason)
    told = []
    list(apply_objects(space.cluster, space.manifests()))
    eventually(lambda: sum(each.serves for each in workload_statuses(space.cluster, "tiny")) == 2)
    with pytest.raises(NotServingError, match=f"tiny-second-small 0 of 1.*{reason}"):
        wait_until_serving(space.cluster, "tiny", 0.5, told.append)
    assert told == ["tiny-second-small 0 of 1"]


def test_status_and_waiting_need_no_rights_beyond_the_role_view(space):
    space.deploy()
    space.api.refuse("GET .*(roles|rolebindings|secrets|leases|proxy)", 403, 99)
    space.api.refuse("GET .*(seldon|istio|monitoring)", 403, 99)
    wait_until_serving(space.cluster, "tiny", PATIENCE)
    assert len(workload_statuses(space.cluster, "tiny")) == 3
    assert (queued_requests(space.cluster, "tiny", "first"), leader(space.cluster, "tiny")) == ("?", "?")


def controller_pod(name):
    labels = {"app.kubernetes.io/name": "opd", "app.kubernetes.io/component": "controller"}
    ports = [{"name": "http", "containerPort": 8080}]
    metadata, spec = (
        {"name": name, "namespace": "space", "labels": labels},
        {"containers": [{"name": "server", "ports": ports}]},
    )
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def test_controllers_of_a_pipeline_report_what_they_do(space):
    answers = {
        "a": {"pipelines": {"tiny": ""}, "state": "warming up"},
        "b": {"pipelines": {"another": ""}, "state": "leading"},
        "c": {"pipelines": {"tiny": ""}, "state": "standing by"},
        "d": {"pipelines": {"tiny": "97.2% within 0.5 s, objective 95%"}, "state": "leading"},
    }
    for name in answers:
        space.api.put(controller_pod(name))
    space.api.proxy = lambda pod, port, path: answers[pod["metadata"]["name"]] if path == "/healthz" else {}
    assert controller_states(space.cluster, "tiny") == {
        "a": "warming up",
        "c": "standing by",
        "d": "leading; last interval: 97.2% within 0.5 s, objective 95%",
    }
    space.api.refuse("GET .*proxy/healthz", 403)
    assert controller_states(space.cluster, "tiny") == {}


def test_queued_requests_are_unknown_if_the_gateway_does_not_answer(space):
    space.deploy()
    assert queued_requests(space.cluster, "tiny", "first") == "0"
    space.api.refuse("GET .*proxy/stages/first", 403)
    assert queued_requests(space.cluster, "tiny", "first") == "?"


def restorable(space, capsys):
    """What ``opd status --stages`` prints."""
    code = cli.main(["status", "tiny", "--namespace=space", f"--kubeconfig={space.config}", "--stages"])
    return code, capsys.readouterr()


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
def test_what_runs_is_restored_by_the_options_that_status_prints(space, capsys, flavour):
    space.deploy(stages((LARGE, 2, 4), (SMALL, 1, 2)), flavour=flavour)
    code, printed = restorable(space, capsys)
    assert (code, printed.out) == (0, "--stage=first=large:2:4 --stage=second=small:1:2\n")
    space.delete()
    given = [option.removeprefix("--stage=") for option in printed.out.split()]
    wanted = stages_of(space.pipeline, given)
    deploy(space.cluster, space.pipeline, settings(flavour=flavour), wanted, PATIENCE, print)
    capsys.readouterr()
    assert restorable(space, capsys)[1].out == printed.out


def test_a_stage_that_runs_nothing_is_not_restored(space, capsys):
    space.deploy()
    space.api.edit("deployments", "tiny-second-small", lambda found: found["spec"].update(replicas=0))
    code, printed = restorable(space, capsys)
    assert (code, printed.out) == (1, "")
    assert "stage 'second' cannot be deployed again as it runs: variant 'small' has 0 replicas" in printed.err


def test_nothing_is_restored_of_a_pipeline_that_is_not_there(space, capsys):
    assert restorable(space, capsys)[0] == 3


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="needs every address of 127.0.0.0/8")
def test_a_server_that_cannot_load_fails_and_its_reason_is_in_the_status(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]))
    push_variant(tmp_path / "store", "first", "small", "Broken")
    made = pipeline_objects(tiny_pipeline(), INITIAL, settings(store=str(tmp_path / "store")))
    for manifest in made:
        if manifest["metadata"]["name"] == "tiny-first-small":
            server.put(manifest)
    kubelet = Kubelet(server, tmp_path)
    try:
        ended = "exit code 1: .*the weights are damaged"
        eventually(lambda: any(re.search(ended, last_end(pod)) for pod in server.all("pods")))
        eventually(lambda: any(re.search(f"CrashLoop.*{ended}", failure_reason(pod)) for pod in server.all("pods")))
    finally:
        kubelet.close()
