"""The rights of the controller: enough for its whole life, and nothing beyond.

The emulated API server enforces the Role that the deployment makes.
"""

from itertools import product

import pytest
from deadlines import PATIENCE, eventually
from emulator.api_server import kubeconfig
from running_controllers import Running, controller, events
from small_pipelines import stages
from tiny_cluster import INITIAL, LARGE, QUICK, SMALL, WANTED, FixedPolicy, TinyDeployment, config_map

from opd.cluster.api import Cluster
from opd.cluster.connection import ApiRequest, credentials
from opd.cluster.errors import ClusterError, ForbiddenError
from opd.cluster.operations import startup

FLAVOURS = ("deployment", "seldon")


@pytest.fixture(params=FLAVOURS)
def limited(request, tmp_path):
    """A deployment whose cluster is seen by the account of the controller; ``api`` has recorded what it was refused."""
    with TinyDeployment(tmp_path, request.param) as world:
        folder = tmp_path / "limited"
        folder.mkdir()
        world.api.accounts["of-the-controller"] = world.settings.controller_account
        path = kubeconfig(world.api, folder, "of-the-controller")
        world.cluster = Cluster("space", lambda: credentials(str(path)), QUICK)
        yield world


def test_a_whole_life_needs_no_other_rights(limited, caplog):
    world, kind = limited, "seldondeployments" if limited.settings.flavour == "seldon" else "deployments"
    policy = FixedPolicy(WANTED)
    with Running(controller(world, policy)) as made:
        eventually(lambda: world.state("first")["variant"] == "large")
        policy.configuration = stages((LARGE, 1, 4), (SMALL, 2, 1))  # replicas and batch size
        eventually(lambda: world.pods("second") == {"small": 2})
        world.kubelet.behave("tiny-second-x", broken="CrashLoopBackOff")
        policy.configuration = stages((LARGE, 1, 4), (2, 1, 1))  # which is rolled back
        eventually(lambda: "configuration is restored" in events(world).get("Refused", {}).get("message", ""))
        policy.configuration = INITIAL
        eventually(lambda: world.pods("first") == {"small": 1})
        world.api.edit(kind, "tiny-first-small", lambda found: found["spec"].update(replicas=2), "kubectl")
        eventually(lambda: "ManualChange" in events(world))
        assert made.state == "leading"
    assert world.api.find("leases", "tiny-controller")["spec"]["holderIdentity"] == ""
    assert not [record.message for record in caplog.records if "403" in record.message]


@pytest.mark.parametrize("limited", ["deployment"], indirect=True)
def test_start_up_times_are_measured_with_the_rights_of_the_controller(limited):
    found = dict(startup(limited.cluster, limited.pipeline, 1, PATIENCE, print))
    assert len(found) == 6 and not any(isinstance(each, str) for each in found.values())


RESOURCES = {
    "": ("configmaps", "pods", "pods/proxy", "pods/exec", "secrets", "services", "serviceaccounts", "events", "nodes"),
    "apps": ("deployments", "deployments/scale", "statefulsets", "daemonsets"),
    "machinelearning.seldon.io": ("seldondeployments", "seldondeployments/scale"),
    "coordination.k8s.io": ("leases",),
    "rbac.authorization.k8s.io": ("roles", "rolebindings"),
    "autoscaling": ("horizontalpodautoscalers",),
}
METHODS = {"get": "GET", "list": "GET", "create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
NAMES = ("tiny-first-small", "tiny-first-stage", "tiny-controller", "tiny-gateway", "theirs")


def test_every_other_verb_is_answered_with_403(limited):
    """Every verb on every kind, with the names of our objects and that of another one."""
    rules = limited.api.find("roles", "tiny-controller")["rules"]
    granted = {
        (group, resource, verb, name)
        for rule in rules
        for group, resource, verb in product(rule["apiGroups"], rule["resources"], rule["verbs"])
        for name in rule.get("resourceNames", NAMES)
    }
    tried = [
        (group, resource, verb, name)
        for group, resources in RESOURCES.items()
        for resource, verb, name in product(resources, METHODS, NAMES)
    ]
    refused = {each for each in tried if not _allowed(limited.cluster, *each)}
    assert refused == set(tried) - granted
    assert len(refused) > 10 * (len(tried) - len(refused))


def _allowed(cluster, group, resource, verb, name):
    """Whether the API server does not refuse a request, whatever else it says of it."""
    plural, _, subresource = resource.partition("/")
    version = "v1" if group != "autoscaling" else "v2"
    path = f"{f'/apis/{group}/{version}' if group else '/api/v1'}/namespaces/space/{plural}"
    if verb not in ("list", "create") or subresource:
        path += f"/{name}"
    path += f"/{subresource}" if subresource else ""
    if verb == "list" and subresource:
        return False
    body = None if METHODS[verb] in ("GET", "DELETE") else {**config_map(name), "spec": {"replicas": 1}}
    query = {"content_type": "application/apply-patch+yaml", "field_manager": "me"} if verb == "patch" else {}
    try:
        cluster.send(ApiRequest(f"{verb} {path}", METHODS[verb], path, body, {"dry_run": "All", **query}))
    except ForbiddenError:
        return False
    except ClusterError:
        return True
    return True


def test_without_its_role_the_controller_says_what_is_missing(limited):
    limited.api.remove(("rbac.authorization.k8s.io/v1", "rolebindings", "space", "tiny-controller"))
    with pytest.raises(ForbiddenError, match="give the account this right"):
        limited.backend()
