"""The command line against an emulated cluster: every exit code, what is refused before any call, and a whole life."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deadlines import PATIENCE, eventually, terminating
from emulator.api_server import ApiServer, kubeconfig
from emulator.kubelet import Kubelet
from emulator.prometheus import Prometheus

from opd import cli
from opd.cluster.manifests.workloads import replicas_of
from opd.documents import DocumentError, read_document
from opd.profiling.pipeline_file import read_pipeline
from opd.workload.forecast import ForecastParameters
from opd.workload.forecast_training import train_forecaster
from opd.workload.trace import load_trace

ROOT = Path(__file__).parents[1]

PIPELINE = """
name: tiny
capacity: 6
max_replicas: 3
max_batch_size: 4
latency_sla: 1.0
tasks:
  - name: first
    variants:
      - {name: small, accuracy: 0.5, cores: 1, latency: {1: 0.05, 4: 0.05}, startup_time: 2.0}
      - {name: large, accuracy: 0.6, cores: 2, latency: {1: 0.05, 4: 0.05}, startup_time: 2}
  - name: second
    variants:
      - {name: small, accuracy: 0.5, cores: 1, latency: {1: 0.05, 4: 0.05}, startup_time: 2.0}
"""


class Shell:
    """Calls the command line for one pipeline, namespace and cluster."""

    def __init__(self, folder, capsys):
        self.api, self.folder, self._capsys = ApiServer(), folder, capsys
        self.kubelet = Kubelet(self.api)
        self.config = kubeconfig(self.api, folder)
        self.file = self.write("tiny.yaml", PIPELINE)

    def write(self, name, text):
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def __call__(self, command, *options, pipeline=None, namespace="space"):
        place = [f"--namespace={namespace}"] if namespace is not None else []
        given = [command, f"--pipeline={pipeline or self.file}", f"--kubeconfig={self.config}", *place, *options]
        code = cli.main(given)
        self.out, self.err = self._capsys.readouterr()
        return code

    def deploy(self, *options, **place):
        return self("deploy", "--image=opd:1", "--store=/models", "--wait=10", *options, **place)

    def stage(self, task):
        return self.api.find("configmaps", f"tiny-{task}-stage")["data"]

    def writes(self):
        return [(method, target) for method, target, _ in self.api.requests if method != "GET"]

    def names(self, plural):
        return {each["metadata"]["name"] for each in self.api.all(plural)}

    def models(self):
        """How many replicas there are to be of each workload, of either flavour."""
        kinds = ("deployments", "seldondeployments")
        found = [each for kind in kinds for each in self.api.all(kind, app_kubernetes_io__component="model")]
        return {each["metadata"]["name"]: replicas_of(each) for each in found}

    def give_the_lease_to_another(self):
        spec = {"holderIdentity": "other", "leaseDurationSeconds": 60, "renewTime": "2030-01-01T00:00:00.000000Z"}
        metadata = {"name": "tiny-controller", "namespace": "space"}
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        self.api.put({**kind, "metadata": metadata, "spec": spec})

    def close(self):
        self.kubelet.close()
        self.api.stop()


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("opd.cluster.status.POLL_SECONDS", 0.02)
    monkeypatch.setattr("opd.cluster.deletion.POLL_SECONDS", 0.02)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    made = Shell(tmp_path, capsys)
    yield made
    made.close()
    for number, handler in handlers.items():  # a run takes them
        signal.signal(number, handler)


# --- without a cluster ------------------------------------------------------------------------------------------------


def test_help_names_the_commands_and_exit_codes_without_importing_anything_heavy():
    code = (
        "import sys, opd.cli\n"
        "assert opd.cli.main(['--help']) == 0\n"
        "heavy = {'torch', 'numpy', 'kubernetes', 'pandas', 'mlserver', 'yaml'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for word in ("deploy", "status", "run", "delete", "exit codes: 0 done; 1 failed; 2"):
        assert word in done.stdout


def test_help_lists_the_flavours_and_policies_that_there_are(capsys):
    from opd.cluster.settings import FLAVOURS, PULL_POLICIES
    from opd.control import DEPLOYABLE_POLICIES

    assert cli.main(["run", "--help"]) == cli.DONE
    text = "".join(capsys.readouterr().out.split())  # lines are wrapped at hyphens, too
    for word in (*FLAVOURS, *DEPLOYABLE_POLICIES, *PULL_POLICIES):
        assert word in text


def test_opd_can_be_run_as_a_module():
    done = subprocess.run([sys.executable, "-m", "opd"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "{deploy,status,run,delete}" in done.stderr


# --- refused before any call ------------------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nall: {spec: {nodeSelector: *b}}\n"


@pytest.mark.parametrize(
    "options, place, words",
    [
        ([], {"namespace": None}, "--namespace"),
        ([], {"namespace": ""}, "not a DNS label"),
        ([], {"namespace": "other/secrets"}, "not a DNS label"),
        ([], {"namespace": "../kube-system"}, "not a DNS label"),
        ([], {"pipeline": "Tiny_1"}, "not a DNS label"),
        ([], {"pipeline": "../../etc/passwd"}, "not a DNS label"),
        ([], {"pipeline": "nosuch"}, "no pipeline 'nosuch'"),
        ([], {"pipeline": "nosuch.yaml"}, "no file nosuch.yaml"),
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
def test_wrong_input_is_refused_before_any_call(shell, options, place, words):
    assert shell.deploy(*options, **place) == cli.REFUSED
    assert words in shell.err and "Traceback" not in shell.err
    assert not shell.api.requests


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
def test_a_malicious_overlay_is_refused_before_any_call(shell, text, words):
    assert shell.deploy(f"--overlay={shell.write('overlay.yaml', text)}") == cli.REFUSED
    assert words in shell.err and not shell.api.requests


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("name: tiny", "name: tiny\nnamespace: kube-system", "(line 3) is not a known key; known are name, cap"),
        ("name: tiny", "name: kube-system/tiny", "not a DNS label"),
        ("name: tiny", "name: 1tiny", "must begin with a letter"),
        ("name: tiny", "name: [tiny]", "name (line 2) must be text"),
        ("name: first", "name: 'first\\nx'", "not a DNS label"),
        ("name: large", "name: queue", "2 objects"),
        ("max_replicas: 3", "max_replicas: 1000000000", "max_replicas (line 4) must be at most 1000, not 1000000000"),
        ("max_replicas: 3", "max_replicas: true", "whole number"),
        ("max_batch_size: 4", "max_batch_size: 1024000", "must be at most 1024"),
        ("capacity: 6", "capacity: 1", "too small for any configuration"),
        ("capacity: 6\n", "", "capacity (line 2) is missing"),
        ("cores: 2", "cores: 2.5", "whole number"),
        ("accuracy: 0.6", "accuracy: .nan", "finite number"),
        ("{1: 0.05, 4: 0.05}, startup_time: 2}", "[1], startup_time: 2}", "must be a mapping, not a list (seconds"),
        ("tasks:", "other:", "is not a known key"),
    ],
)
def test_a_wrong_pipeline_file_is_refused_before_any_call(shell, old, new, words):
    assert old in PIPELINE
    path = shell.write("wrong.yaml", PIPELINE.replace(old, new, 1))
    for command in (lambda: shell.deploy(pipeline=path), lambda: shell("delete", pipeline=path)):
        assert command() == cli.REFUSED
        assert words in shell.err and not shell.api.requests


def test_a_pipeline_file_is_read_as_written(shell):
    pipeline = read_pipeline(Path(shell.file))
    assert (pipeline.name, pipeline.capacity, pipeline.max_replicas, pipeline.latency_sla) == ("tiny", 6, 3, 1.0)
    assert [variant.cores for variant in pipeline.tasks[0].variants] == [1, 2]
    assert pipeline.tasks[0].variants[1].service_time(2) == 0.05
    with pytest.raises(DocumentError, match="tasks .* at least 1 entry"):
        read_pipeline(Path(shell.write("none.yaml", PIPELINE.split("tasks:")[0] + "tasks: []")))


def test_settings_of_another_namespace_are_refused(shell):
    path = shell.write("settings.yaml", "{namespace: theirs, image: 'opd:1', store: /models}")
    assert shell("deploy", f"--settings={path}") == cli.REFUSED
    assert "is for namespace 'theirs', not 'space'" in shell.err and not shell.api.requests


def test_without_image_and_store_the_remedy_is_named(shell):
    assert shell("deploy") == cli.REFUSED
    assert "--image and --store" in shell.err


@pytest.mark.parametrize("command", ["status", "delete"])
def test_a_name_is_checked_but_need_not_be_in_the_catalogue(shell, command):
    assert shell(command, pipeline="a,b=c") == cli.REFUSED and not shell.api.requests
    assert shell(command, pipeline="gone-from-the-catalogue") == cli.NOT_DEPLOYED
    assert "is not deployed in namespace 'space'" in shell.err


# --- a life -----------------------------------------------------------------------------------------------------------


def test_deploy_status_change_and_delete(shell):
    assert shell.deploy() == cli.DONE, shell.err
    assert re.search(r"^Deployment +tiny-router +created$", shell.out, re.MULTILINE)
    assert "tiny-router.space.svc, gRPC 8081" in shell.out
    assert shell.stage("first") == {"variant": "small", "replicas": "1", "batch_size": "1"}

    assert shell("status") == cli.DONE
    assert re.search(r"^model +first +small +1/1", shell.out, re.MULTILINE)
    assert re.search(r"^queue +second +- +1/1 +1 +0", shell.out, re.MULTILINE)

    shell.api.requests.clear()
    assert shell.deploy() == cli.DONE
    assert "created" not in shell.out and "changed" not in shell.out.replace("unchanged", "")

    assert shell.deploy("--stage=first=large:2:2") == cli.DONE, shell.err
    assert shell.stage("first") == {"variant": "large", "replicas": "2", "batch_size": "2"}
    assert shell.stage("second") == {"variant": "small", "replicas": "1", "batch_size": "1"}
    assert shell("status") == cli.DONE
    assert re.search(r"^model +first +large +2/2", shell.out, re.MULTILINE) and "first   small" not in shell.out

    shell.api.requests.clear()
    assert shell.deploy() == cli.DONE  # what runs goes on
    assert shell.stage("first")["variant"] == "large" and "created" not in shell.out

    assert shell("delete") == cli.DONE, shell.err
    assert "deleted" in shell.out
    assert not shell.api.objects
    assert shell("status") == cli.NOT_DEPLOYED
    assert shell("delete") == cli.NOT_DEPLOYED


def test_default_is_a_namespace_like_others_when_it_is_named(shell):
    assert shell.deploy(namespace="default") == cli.DONE
    assert {key[2] for key in shell.api.objects} == {"default"}


def test_a_pipeline_of_the_catalogue(shell):
    assert shell.deploy("--flavour=seldon", "--pod-monitor", "--network-policy", pipeline="ocr") == cli.DONE, shell.err
    assert shell.names("seldondeployments") and shell.names("podmonitors") == {"ocr"}
    assert shell("status", pipeline="ocr") == cli.DONE and "text-recognition" in shell.out
    assert shell("delete", pipeline="ocr") == cli.DONE and not shell.api.objects


# --- a pipeline that is defined anew ----------------------------------------------------------------------------------

THIRD = """
  - name: third
    variants:
      - {name: small, accuracy: 0.5, cores: 1, latency: {1: 0.05, 4: 0.05}, startup_time: 2.0}
"""
SECOND = PIPELINE[PIPELINE.index("  - name: second") :]
LARGE = PIPELINE[PIPELINE.index("      - {name: large") : PIPELINE.index("  - name: second")]


@pytest.mark.parametrize("flavour", ["deployment", "seldon"])
@pytest.mark.parametrize(
    "replicas, old, new, running, words",
    [
        (2, "capacity: 6", "capacity: 3", {"first-small": 1, "second-small": 1}, "device has 3"),
        (1, LARGE, "", {"first-small": 1, "second-small": 2}, "no variant 'large'"),
        (2, LARGE, "", {"first-small": 1, "second-small": 2}, "no variant 'large'"),
        (1, SECOND, SECOND + THIRD, {"first-large": 1, "second-small": 2, "third-small": 1}, "added: third"),
        (1, SECOND, "", {"first-large": 1}, ""),
    ],
    ids=["less capacity", "a variant less", "a variant less, without room", "a task more", "a task less"],
)
def test_only_what_is_wanted_runs_after_a_change_of_the_pipeline(shell, flavour, replicas, old, new, running, words):
    stages = f"--stage=first=large:{replicas}:2", "--stage=second=small:2:1"
    assert shell.deploy(f"--flavour={flavour}", *stages) == cli.DONE, shell.err
    shell.kubelet.cores = 3 if "capacity" in new else 6
    redefined = shell.write("redefined.yaml", PIPELINE.replace(old, new, 1))
    assert shell.deploy(f"--flavour={flavour}", pipeline=redefined) == cli.DONE, shell.err
    assert words in shell.err
    assert shell.models() == {f"tiny-{name}": replicas for name, replicas in running.items()}
    assert shell.stage("first")["batch_size"] == ("2" if "first-large" in running else "1")
    assert shell.deploy(f"--flavour={flavour}", pipeline=redefined) == cli.DONE
    assert "created" not in shell.out and "deleted" not in shell.out and "warning" not in shell.err


def test_old_replicas_serve_until_the_new_ones_do_if_there_is_room(shell):
    assert shell.deploy("--stage=first=large:1:1") == cli.DONE
    shell.kubelet.behave("tiny-first-small", start_seconds=0.5)
    seen = []
    shell.api.fail("GET .*pods", lambda: seen.append(shell.models()), 99)
    assert shell.deploy(pipeline=shell.write("redefined.yaml", PIPELINE.replace(LARGE, ""))) == cli.DONE, shell.err
    assert seen[-1] == {"tiny-first-large": 1, "tiny-first-small": 1, "tiny-second-small": 1}
    assert shell.models() == {"tiny-first-small": 1, "tiny-second-small": 1}


def test_old_replicas_that_never_come_are_not_waited_for(shell):
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


def test_another_flavour_takes_the_place_of_the_former_one_though_there_is_no_room_for_both(shell):
    shell.kubelet.cores = 6
    full = "--stage=first=large:2:1", "--stage=second=small:2:1"
    assert shell.deploy(*full) == cli.DONE, shell.err
    assert shell.deploy("--flavour=seldon") == cli.DONE, shell.err
    assert not any(name.endswith(("small", "large")) for name in shell.names("deployments"))
    assert shell.names("seldondeployments") == {"tiny-first-large", "tiny-second-small"}


@pytest.mark.parametrize("flavour, said", [("deployment", True), ("seldon", False)])
def test_only_plain_deployments_are_renewed_in_place(shell, flavour, said):
    full = shell.write("full.yaml", PIPELINE.replace("capacity: 6", "capacity: 2"))
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
    assert pods["tiny-first-small"]["nodeSelector"] == {"disk": "fast"} and "nodeSelector" not in pods["tiny-router"]
    assert {pod["containers"][0]["image"] for pod in pods.values()} == {"opd:2"}
    assert not any("dashboard" in name for name in shell.names("configmaps"))


# --- dry runs ---------------------------------------------------------------------------------------------------------


def wished(api):
    """All objects but for what the cluster itself keeps up to date in them."""
    kept = ("metadata", "status")
    return {key: {n: part for n, part in each.items() if n not in kept} for key, each in list(api.objects.items())}


def test_dry_runs_write_nothing(shell):
    assert shell.deploy("--dry-run") == cli.DONE
    assert "+++ Deployment/tiny-router then" in shell.out and not shell.api.objects
    assert shell.deploy() == cli.DONE
    before = wished(shell.api)
    shell.api.requests.clear()
    assert shell.deploy("--dry-run") == cli.DONE and shell.out == "nothing would change\n"
    assert shell.deploy("--dry-run", "--image=opd:2", "--stage=first=large:1:4") == cli.DONE, shell.err
    assert "+        image: opd:2" in shell.out
    assert "+  variant: large" in shell.out and "+++ Deployment/tiny-first-large then" in shell.out
    assert shell("delete", "--dry-run") == cli.DONE
    assert re.search(r"^Deployment +tiny-router +would be deleted$", shell.out, re.MULTILINE)
    assert all("dryRun=All" in target for _, target in shell.writes())
    assert wished(shell.api) == before


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_the_cluster_refuses_is_one_line_with_the_remedy(shell):
    shell.api.refuse("POST .*deployments", 403, 99, message="deployments.apps is forbidden")
    assert shell.deploy() == cli.FAILED
    assert shell.err.startswith("error: ") and shell.err.count("\n") == 1
    assert "deployments.apps is forbidden" in shell.err and "RoleBinding" in shell.err


def test_a_cluster_that_is_away(shell):
    shell.api.stop()
    for command in ("status", "delete"):
        assert shell(command) == cli.FAILED
        assert "check that the API server runs" in shell.err and "Traceback" not in shell.err
    shell.api.start()


def test_pods_that_do_not_come(shell):
    shell.kubelet.behave("tiny-first-small", broken="ImagePullBackOff")
    assert shell.deploy("--wait=1") == cli.FAILED
    assert "tiny-first-small 0 of 1" in shell.err and "ImagePullBackOff" in shell.err
    assert shell("status") == cli.FAILED
    assert re.search(r"^model +first +small +0/1 .*ImagePullBackOff", shell.out, re.MULTILINE)
    shell.kubelet.behave("tiny-first-small")
    assert shell.deploy() == cli.DONE


def test_a_change_that_fails_is_taken_back(shell):
    assert shell.deploy() == cli.DONE
    shell.kubelet.behave("tiny-first-large", broken="CrashLoopBackOff")
    assert shell.deploy("--stage=first=large:1:1") == cli.FAILED
    assert "CrashLoopBackOff" in shell.err and "last good configuration is restored" in shell.err
    assert shell.stage("first")["variant"] == "small"


def test_a_change_waits_for_no_controller_that_leads(shell, monkeypatch):
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
    shell.kubelet.behave("tiny-first-large", start_seconds=4.0)  # by then the loss, at the first pod, is known
    theirs = {"holderIdentity": "other", "leaseDurationSeconds": 60}
    shell.api.fail("POST .*deployments", lambda: shell.api.edit("leases", "tiny-controller", taken))

    def taken(lease):
        lease["spec"].update(theirs)

    assert shell.deploy("--stage=first=large:1:1") == cli.FAILED
    assert "another controller leads now" in shell.err and shell.stage("first")["variant"] == "small"
    assert shell.api.find("leases", "tiny-controller")["spec"]["holderIdentity"] == "other"


def test_objects_of_others_are_not_touched(shell):
    theirs = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "tiny-router", "namespace": "space"}}
    shell.api.put({**theirs, "spec": {"selector": {"app": "theirs"}}})
    assert shell.deploy() == cli.REFUSED
    assert "is not of pipeline 'tiny'" in shell.err and not shell.writes()
    assert shell("delete") == cli.NOT_DEPLOYED
    assert shell.names("services") == {"tiny-router"}


# --- control ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        (["--policy=clairvoyant", "--prometheus=http://127.0.0.1:1"], "policy 'clairvoyant' is not one of"),
        (["--policy=agent", "--prometheus=http://127.0.0.1:1"], "checkpoint of a trained agent"),
        (
            ["--policy=greedy", "--prometheus=http://127.0.0.1:1", "--forecaster=nosuch"],
            "there is no file nosuch; train one",
        ),
        (["--policy=greedy"], "--prometheus"),
        (["--policy=greedy", "--decisions=0"], "not at least 1"),
    ],
)
def test_a_run_that_cannot_be_is_refused(shell, monkeypatch, caplog, options, words):
    monkeypatch.delenv("OPD_PROMETHEUS_URL", raising=False)
    assert shell("run", "--image=opd:1", "--store=/models", *options) == cli.REFUSED
    assert words in shell.err + caplog.text and not shell.api.requests


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory):
    """File of one that has learnt a little, from a load as small as that of the pipeline."""
    file = tmp_path_factory.mktemp("forecaster") / "forecaster.npz"
    trace = load_trace("synthetic", damping=read_document(ROOT / "params.yaml")["damping"])
    train_forecaster(trace, ForecastParameters(epochs=1, train_windows=1500)).save(file)
    return file


@pytest.fixture
def controlled(shell, forecaster):
    """Options by which a deployed pipeline is controlled."""
    assert shell.deploy() == cli.DONE
    prometheus = Prometheus(read_pipeline(Path(shell.file)), load=30.0)
    yield [
        "--image=opd:1",
        "--store=/models",
        "--policy=greedy",
        f"--forecaster={forecaster}",
        f"--prometheus={prometheus.url}",
        "--interval=0.2",
    ]
    prometheus.close()


@pytest.fixture
def control(shell, controlled):
    """Runs the controller of a deployed pipeline in this process."""
    return lambda *options: shell("run", *controlled, *options)


def test_a_run_decides_and_ends(shell, control):
    assert control("--decisions=2", "--port=0") == cli.DONE, shell.err
    assert shell.stage("first") != {"variant": "small", "replicas": "1", "batch_size": "1"}


def test_a_run_of_some_decisions_for_a_pipeline_that_is_not_deployed(shell, control, caplog):
    assert shell("delete") == cli.DONE
    assert control("--decisions=1", "--port=0") == cli.NOT_DEPLOYED
    assert "pipeline 'tiny' is not deployed" in caplog.records[-1].message


def test_a_dry_run_of_control_prints_and_changes_nothing(shell, control):
    shell.api.requests.clear()
    assert control("--decisions=1", "--port=0", "--dry-run") == cli.DONE, shell.err
    assert "ConfigMap/tiny-first-stage then" in shell.out or "ConfigMap/tiny-second-stage then" in shell.out
    assert all("dryRun=All" in target for _, target in shell.writes())
    assert shell.stage("first") == {"variant": "small", "replicas": "1", "batch_size": "1"}


def test_a_port_that_is_taken_is_named(shell, control, caplog):
    port = shell.api.url.rpartition(":")[2]
    assert control("--decisions=1", f"--port={port}") == cli.FAILED
    assert "in use" in caplog.records[-1].message


def test_sigterm_while_it_loads_its_policy_ends_a_run_at_once(shell):
    started = shell.folder / "started"
    shell.write("numba.py", f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n")
    given = [
        f"--pipeline={shell.file}",
        "--namespace=space",
        "--image=opd:1",
        "--store=/models",
        "--prometheus=http://p",
    ]
    path = os.pathsep.join([str(shell.folder), str(ROOT)])
    command = [sys.executable, "-m", "opd", "run", *given]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path})
    with terminating(running):
        eventually(started.exists)
        running.send_signal(signal.SIGTERM)
        log = running.communicate(timeout=PATIENCE)[1]  # far less than the import would take
    assert (running.returncode, log) == (cli.DONE, "")


def test_every_line_of_the_log_of_a_run_is_a_json_object(shell, controlled):
    def log(*options):
        place = [f"--pipeline={shell.file}", f"--kubeconfig={shell.config}", "--namespace=space"]
        command = [sys.executable, "-m", "opd", "run", *place, *controlled, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        return done.returncode, [json.loads(line) for line in done.stderr.splitlines()]

    code, lines = log("--decisions=2", "--port=0")
    assert code == cli.DONE
    assert all({"time", "logger", "level", "message"} <= line.keys() for line in lines)
    first, second = [line for line in lines if line.get("event") == "decision"]
    assert (first["outcome"], second["outcome"]) == ("applied", "kept")
    assert first["state"]["incoming_load"] > 0 and first["message"].startswith("applied: first ")
    code, lines = log("--policy=clairvoyant")
    assert code == cli.REFUSED
    assert [line["level"] for line in lines] == ["ERROR"] and "'clairvoyant' is not one of" in lines[0]["message"]
