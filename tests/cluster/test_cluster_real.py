"""The whole life of a pipeline on a real cluster; docs/kubernetes.md explains how to run it on your own.

Off by default. The suite needs OPD_CLUSTER_KUBECONFIG (or KUBECONFIG), OPD_CLUSTER_NAMESPACE and OPD_CLUSTER_OVERLAY, a
file that sets the image and whatever else the pods need there. With OPD_CLUSTER_EMULATOR=1 it runs against an emulated
cluster instead, with the given pipeline file or a tiny pipeline. The tests depend on one another, in this order.
"""

import json
import os
import subprocess
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from cluster_site import emulated_site, missing, user_site
from deadlines import eventually

from opd import cli
from opd.cluster.api import Cluster
from opd.cluster.backend import KubernetesBackend
from opd.cluster.connection import ApiRequest, credentials
from opd.cluster.deletion import delete_pipeline
from opd.cluster.errors import ForbiddenError, NotFoundError
from opd.cluster.manual import ManualChangeError
from opd.cluster.names import GATEWAY, MODEL, model_name, selector, stage_name
from opd.cluster.operations import startup
from opd.cluster.owned_objects import find_owned
from opd.cluster.pods import is_terminating
from opd.cluster.resources import CONFIG_MAP, DEPLOYMENT, LEASE, POD, SELDON_DEPLOYMENT, Resource
from opd.cluster.settings import ClusterSettings
from opd.pipeline import StageConfiguration, used_cores
from opd.serving.monitoring.scraper import Scraper
from opd.serving.outcomes import COMPLETED

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
RESTART_SECONDS = 180


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Site where the pipeline is not deployed, before and after the tests."""
    folder = tmp_path_factory.mktemp("site")
    if os.environ.get("OPD_CLUSTER_EMULATOR") == "1":
        with emulated_site(folder) as site:
            yield site
        return
    if missing():
        pytest.skip(f"needs a cluster: set {', '.join(missing())}; or OPD_CLUSTER_EMULATOR=1 for the emulated one")
    with closing(user_site(folder)) as site:
        if find_owned(site.cluster, site.pipeline.name)[0]:
            pytest.fail(
                f"pipeline {site.pipeline.name!r} is already deployed and would be deleted; delete it, or name "
                "another namespace in OPD_CLUSTER_NAMESPACE"
            )
        yield site
        list(delete_pipeline(site.cluster, site.pipeline.name, 120))
        with suppress(NotFoundError):
            site.cluster.delete(Resource("v1", "ServiceAccount"), ACCOUNT)


@pytest.fixture(scope="module")
def deployed(place):
    """Site where the pipeline is deployed in its smallest configuration."""
    assert place.opd("deploy") == cli.DONE
    return place


def lost(records):
    """Requests without an answer, with the errors they got instead."""
    return records.loc[records["outcome"] != COMPLETED, ["sent", "code", "detail"]].to_dict("records")


def changed(site, **what):
    """The smallest configuration with changes in its first stage; skips the test if the limits forbid it."""
    first, *others = site.pipeline.smallest_configuration()
    wanted = (first._replace(**what), *others)
    most = max(site.pipeline.batch_sizes)
    fits = used_cores(site.pipeline, wanted) <= site.pipeline.capacity
    if not fits or wanted[0].replicas > site.pipeline.max_replicas or wanted[0].batch_size > most:
        pytest.skip(f"the limits of pipeline {site.pipeline.name!r} do not hold {what}")
    return wanted


def other_variant(site):
    """Position of another variant of the first stage."""
    variants = site.pipeline.tasks[0].variants
    if len(variants) < 2:
        pytest.skip("the first task has one variant only")
    smallest = site.pipeline.smallest_configuration()[0].variant
    return min((z for z in range(len(variants)) if z != smallest), key=lambda z: variants[z].cores)


def serving(site):
    """Batch size and variants that a gateway reports of the first stage."""
    task = site.pipeline.tasks[0].name
    pods, _ = site.cluster.list(POD, selector(site.pipeline.name, GATEWAY))
    gateway = next(pod["metadata"]["name"] for pod in pods if not is_terminating(pod))
    status = site.cluster.ask_pod(gateway, 8080, f"/stages/{task}")
    return status["batch_size"], sorted(each["variant"] for each in status["replicas"] if not each["retired"])


def test_the_deployed_pipeline_serves(deployed):
    assert deployed.opd("status") == cli.DONE
    with deployed.traffic() as records:
        time.sleep(10)
    assert len(records[0]) >= 20 and not lost(records[0])
    assert records[0]["answer"].str.len().min() > 0


def test_deploying_again_changes_nothing(deployed, capsys):
    before = deployed.pods()
    assert deployed.opd("deploy") == cli.DONE
    assert "created" not in capsys.readouterr().out and deployed.pods() == before


@pytest.mark.parametrize("change", ["replicas", "variant", "batch size", "all three", "back"])
def test_a_change_loses_no_request(deployed, change):
    wanted = {
        "replicas": lambda: changed(deployed, replicas=2),
        "variant": lambda: changed(deployed, variant=other_variant(deployed)),
        "batch size": lambda: changed(deployed, batch_size=2),
        "all three": lambda: changed(deployed, variant=other_variant(deployed), replicas=2, batch_size=2),
        "back": deployed.pipeline.smallest_configuration,
    }[change]()
    with deployed.traffic() as records:
        assert deployed.configure(wanted) == cli.DONE
        variant = deployed.pipeline.tasks[0].variants[wanted[0].variant].name
        eventually(lambda: serving(deployed) == (wanted[0].batch_size, [variant] * wanted[0].replicas), 30, poll=0.5)
    assert records[0]["outcome"].eq(COMPLETED).sum() >= 20 and not lost(records[0])
    assert deployed.opd("status") == cli.DONE


def test_start_up_times_are_measured_while_all_requests_are_answered(deployed):
    with deployed.traffic() as records:
        found = dict(startup(deployed.cluster, deployed.pipeline, 1, 180.0, print))
    variants = {(task.name, variant.name) for task in deployed.pipeline.tasks for variant in task.variants}
    assert found.keys() == variants
    assert all("no room" in each for each in found.values() if isinstance(each, str))
    for (start,) in (each for each in found.values() if not isinstance(each, str)):
        assert start.node and min(start[1:]) >= 0 and 0 < start.seconds < 600
    assert records[0]["outcome"].eq(COMPLETED).sum() >= 20 and not lost(records[0])
    assert deployed.opd("status") == cli.DONE


def test_a_deleted_pod_is_replaced_without_losing_a_request(deployed):
    assert deployed.configure(changed(deployed, replicas=2)) == cli.DONE
    pods, _ = deployed.cluster.list(POD, selector(deployed.pipeline.name, MODEL, deployed.pipeline.tasks[0].name))
    victim = next(pod["metadata"]["name"] for pod in pods if not is_terminating(pod))
    with deployed.traffic() as records:
        deployed.cluster.delete(POD, victim)
        eventually(lambda: victim not in deployed.pods(), 120, poll=0.5)
        eventually(lambda: deployed.opd("status") == cli.DONE, 120, poll=0.5)
    assert not lost(records[0])


def test_a_configuration_beyond_the_limits_is_refused_and_changes_nothing(deployed, capsys):
    before, state = deployed.pods(), serving(deployed)
    first, *others = deployed.pipeline.smallest_configuration()
    largest = StageConfiguration(first.variant, deployed.pipeline.max_replicas + 1, first.batch_size)
    assert deployed.configure((largest, *others)) == cli.REFUSED
    assert "replicas are not within" in capsys.readouterr().err
    full = tuple(StageConfiguration(s.variant, deployed.pipeline.max_replicas, 1) for s in (first, *others))
    if used_cores(deployed.pipeline, full) > deployed.pipeline.capacity:
        assert deployed.configure(full) == cli.REFUSED
        assert "cores, the device has" in capsys.readouterr().err
    assert (deployed.pods(), serving(deployed)) == (before, state)


def test_the_pipeline_survives_a_restart_of_the_api_server(deployed):
    if deployed.restart is None:
        pytest.skip("set OPD_CLUSTER_RESTART_COMMAND to a command that restarts the API server")
    before = deployed.pods()
    if callable(deployed.restart):
        deployed.restart()
    else:
        subprocess.run(deployed.restart, shell=True, check=True, timeout=RESTART_SECONDS)
    eventually(lambda: deployed.opd("status") == cli.DONE, RESTART_SECONDS, poll=0.5)
    assert deployed.pods() == before  # no pod was restarted
    with deployed.traffic() as records:
        assert deployed.configure(deployed.pipeline.smallest_configuration()) == cli.DONE
    assert not lost(records[0])


ACCOUNT = "opd-controller"


def as_controller(site):
    """The namespace as the account of the controller sees it."""
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}}
    site.cluster.apply(account, "opd-test")
    path = f"/api/v1/namespaces/{site.cluster.namespace}/serviceaccounts/{ACCOUNT}/token"
    wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = json.loads(site.cluster.send(ApiRequest("asking for a token", "POST", path, wanted)))["status"]["token"]

    def limited():
        settings = credentials(site.kubeconfig)
        settings.cert_file = settings.key_file = settings.refresh_api_key_hook = None
        settings.username = settings.password = None
        settings.api_key = {"authorization": f"Bearer {token}"}
        return settings

    return Cluster(site.cluster.namespace, limited)


@contextmanager
def backend(site, **changes):
    """What a controller changes the pipeline by, with the rights of its account."""
    flavour = os.environ.get("OPD_CLUSTER_FLAVOUR", "deployment")
    settings = ClusterSettings(
        namespace=site.cluster.namespace, image="opd:0", store="/models", flavour=flavour, **changes
    )
    with closing(Scraper()) as unused:
        yield KubernetesBackend(as_controller(site), site.pipeline, settings, unused, interval_seconds=1.0)


def test_the_controller_may_scale_and_nothing_else(deployed):
    first, *_ = deployed.pipeline.tasks
    stage = stage_name(deployed.pipeline.name, first.name)
    workload = model_name(deployed.pipeline.name, first.name, first.variants[0].name)
    flavour = os.environ.get("OPD_CLUSTER_FLAVOUR", "deployment")
    kind = SELDON_DEPLOYMENT if flavour == "seldon" else DEPLOYMENT
    limited = as_controller(deployed)
    (found,) = [each for each in limited.list(kind)[0] if each["metadata"]["name"] == workload]
    limited.scale(kind, workload, 1, "opd-test", force=True, dry_run=True)
    of_theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs"}, "data": {"a": "b"}}
    for forbidden in (
        lambda: limited.delete(kind, workload, dry_run=True),
        lambda: limited.apply(found | kind.type_fields, "opd-test", force=True, dry_run=True),
        lambda: limited.create(of_theirs),
        lambda: limited.apply(of_theirs, "opd-test", dry_run=True),
        lambda: limited.delete(CONFIG_MAP, stage, dry_run=True),
        lambda: limited.scale(DEPLOYMENT, f"{deployed.pipeline.name}-gateway", 9, "opd-test", dry_run=True),
        lambda: limited.get(LEASE, "theirs"),
        lambda: limited.delete(LEASE, f"{deployed.pipeline.name}-controller", dry_run=True),
        lambda: limited.list(Resource("v1", "Secret")),
    ):
        with pytest.raises(ForbiddenError):
            forbidden()
    with backend(deployed) as controlled:  # which every change of a controller goes through
        controlled.apply(changed(deployed, variant=other_variant(deployed)))
        controlled.apply(deployed.pipeline.smallest_configuration())
    assert deployed.opd("status") == cli.DONE


def test_a_change_by_hand_is_left_alone_and_told(deployed, capsys):
    first, *_ = deployed.pipeline.tasks
    smallest = deployed.pipeline.smallest_configuration()
    workload = model_name(deployed.pipeline.name, first.name, first.variants[smallest[0].variant].name)
    kind = SELDON_DEPLOYMENT if os.environ.get("OPD_CLUSTER_FLAVOUR") == "seldon" else DEPLOYMENT
    by_hand = changed(deployed, replicas=2)
    deployed.cluster.scale(kind, workload, 2, "kubectl", force=True)
    eventually(lambda: deployed.opd("status") == cli.DONE, 120, poll=0.5)
    assert "spec.replicas was set by 'kubectl'" in capsys.readouterr().out
    with backend(deployed) as controlled:
        assert controlled.configuration == by_hand
        with pytest.raises(ManualChangeError, match="'kubectl'"):
            controlled.apply(smallest)
    with backend(deployed, manual_seconds=0) as controlled:
        controlled.apply(smallest)
    capsys.readouterr()
    # The cluster counts ready replicas a moment after the change.
    eventually(lambda: deployed.opd("status") == cli.DONE, 120, poll=0.5)
    assert "kubectl" not in capsys.readouterr().out


def test_a_policy_controls_the_pipeline(deployed):
    if not deployed.prometheus:
        pytest.skip("set OPD_CLUSTER_PROMETHEUS to the URL of a Prometheus server that scrapes the pods")
    if not (ROOT / "models" / "forecaster.npz").is_file():
        pytest.skip("needs a trained forecaster: make repro")
    given = ["--policy=greedy", f"--prometheus={deployed.prometheus}", "--decisions=2", "--port=0"]
    with deployed.traffic(rate=10) as records:
        assert deployed.control(*given) == cli.DONE
    assert not lost(records[0]) and deployed.opd("status") == cli.DONE


def test_deletion_leaves_nothing(deployed, capsys):
    assert deployed.opd("delete") == cli.DONE
    assert find_owned(deployed.cluster, deployed.pipeline.name)[0] == [] and deployed.pods() == {}
    assert deployed.cluster.list(LEASE, selector(deployed.pipeline.name))[0] == []
    assert deployed.opd("status") == cli.NOT_DEPLOYED
    assert deployed.opd("delete") == cli.NOT_DEPLOYED
    assert "is not deployed" in capsys.readouterr().err
