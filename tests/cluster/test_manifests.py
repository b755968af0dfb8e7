"""Content of the objects of a pipeline, and names and configurations that they cannot have."""

import json

import pytest
from manifest_objects import FLAVOURS, FULL, PLAIN, changed, find, identity, objects_of, server_of, workloads
from small_pipelines import ocr_pipeline

from opd.cluster import names
from opd.cluster.gateway_settings import ClusterGatewaySettings
from opd.cluster.manifests.pipeline import stage_config
from opd.cluster.manifests.pods import SECURITY_CONTEXT
from opd.cluster.manifests.workloads import model_workload, replicas_of, template_of, with_replicas
from opd.cluster.overlay import Overlay
from opd.cluster.owned_objects import role_of
from opd.pipeline import InfeasibleError, Pipeline, ServiceLevel, StageConfiguration, Task, Variant
from opd.profiling.pipelines import load_pipeline
from opd.serving.settings import ServerSettings, StageSettings

BUDGET = "PodDisruptionBudget"


def test_every_server_can_read_its_settings():
    objects = objects_of()
    for workload in workloads(objects):
        mounted = find(objects, "ConfigMap", workload["metadata"]["name"])["data"]["server.json"]
        module = server_of(workload)["command"][-1]
        server = {each.module: each for each in (ServerSettings, ClusterGatewaySettings)}[module].model_validate_json(
            mounted
        )
        component = workload["metadata"]["labels"][names.COMPONENT_LABEL]
        assert isinstance(server, ClusterGatewaySettings) == (component == "gateway")
        ports = {port["name"]: port["containerPort"] for port in server_of(workload)["ports"]}
        assert ports == {"http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}
        assert server_of(workload)["readinessProbe"]["httpGet"]["path"] == f"/v2/models/{server.name}/ready"


def test_the_gateway_knows_the_stages_in_order_and_its_own_name():
    objects = objects_of(settings=changed(PLAIN, gateways=3))
    settings = json.loads(find(objects, "ConfigMap", "ocr-gateway")["data"]["server.json"])
    assert settings["stages"] == [
        {"task": "text-detection", "adapter": {}},
        {"task": "text-recognition", "adapter": {}},
    ]
    assert (settings["namespace"], settings["replica_port"]) == ("pipelines", 8081)
    gateway, service = find(objects, "Deployment", "ocr-gateway"), find(objects, "Service", "ocr-gateway")["spec"]
    assert replicas_of(gateway) == 3
    assert service["selector"].items() <= template_of(gateway)["metadata"]["labels"].items()
    assert {port["name"]: port["port"] for port in service["ports"]}["grpc"] == 8081
    own_name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert own_name in server_of(gateway)["env"]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_labels_of_replicas_and_stages_tell_their_task(flavour):
    objects = objects_of(flavour)
    models = [each for each in workloads(objects) if each["metadata"]["labels"][names.COMPONENT_LABEL] == "model"]
    assert {role_of(template_of(each)) for each in models} == {
        ("model", task.name, variant.name) for task in load_pipeline("ocr").tasks for variant in task.variants
    }
    for task in ("text-detection", "text-recognition"):
        stage = find(objects, "ConfigMap", f"ocr-{task}-stage")
        assert role_of(stage)[:2] == ("stage", task)
        assert stage["data"].keys() == {"variant", "batch_size"}


def test_only_gateways_have_access_to_the_api_server_with_minimal_rights():
    objects = objects_of()
    for workload in workloads(objects):
        pod, component = template_of(workload)["spec"], workload["metadata"]["labels"][names.COMPONENT_LABEL]
        assert pod["automountServiceAccountToken"] == (component == "gateway")
        assert pod.get("serviceAccountName") == ("ocr-gateway" if component == "gateway" else None)
    (rule,) = find(objects, "Role", "ocr-gateway")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list", "watch"]}
    binding = find(objects, "RoleBinding", "ocr-gateway")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "ocr-gateway", "namespace": "pipelines"}]


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_controller_may_only_scale_what_has_a_name(flavour):
    objects = objects_of(flavour)
    rules = find(objects, "Role", "ocr-controller")["rules"]
    granted = {
        (group, resource, verb): set(rule.get("resourceNames", ()))
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    group, kind = ("machinelearning.seldon.io", "seldondeployments") if flavour == "seldon" else ("apps", "deployments")
    variants = {each["metadata"]["name"] for each in workloads(objects)} - {"ocr-gateway"}
    stages = {"ocr-text-detection-stage", "ocr-text-recognition-stage"}
    assert granted == {
        (group, kind, "list"): set(),
        (group, f"{kind}/scale", "patch"): variants,
        ("apps", "deployments", "get"): {"ocr-gateway"},
        ("", "configmaps", "get"): stages,
        ("", "configmaps", "patch"): stages,
        ("", "pods", "list"): set(),
        ("", "pods/proxy", "get"): set(),
        ("", "events", "create"): set(),
        ("coordination.k8s.io", "leases", "get"): {"ocr-controller"},
        ("coordination.k8s.io", "leases", "update"): {"ocr-controller"},
    }
    (subject,) = find(objects, "RoleBinding", "ocr-controller")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "opd-controller", "namespace": "pipelines"}
    named = find(objects_of(settings=changed(PLAIN, controller_account="mine")), "RoleBinding", "ocr-controller")
    assert named["subjects"][0]["name"] == "mine"


@pytest.mark.parametrize("gateways", [1, 2])
def test_one_of_several_gateways_may_be_evicted_and_the_only_one_does_not_stop_a_drain(gateways):
    budgets = [each for each in objects_of(settings=changed(PLAIN, gateways=gateways)) if each["kind"] == BUDGET]
    of_gateways = [each["spec"] for each in budgets if each["metadata"]["name"] == "ocr-gateway"]
    assert [each["maxUnavailable"] for each in of_gateways] == [1] * (gateways > 1)


def pod_specs(objects):
    return {each["metadata"]["name"]: template_of(each)["spec"] for each in workloads(objects)}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_all_pods_have_the_priority_class_of_the_settings(flavour):
    specs = pod_specs(objects_of(flavour, changed(PLAIN, priority_class="edge.example")))
    assert {each["priorityClassName"] for each in specs.values()} == {"edge.example"}
    assert not any("priorityClassName" in each for each in pod_specs(objects_of(flavour)).values())


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("gateways", [1, 2])
def test_replicas_of_a_variant_and_several_gateways_go_to_different_nodes_where_they_fit(flavour, gateways):
    objects = objects_of(flavour, changed(PLAIN, gateways=gateways))
    everybody = {each["metadata"]["name"]: template_of(each)["metadata"]["labels"] for each in workloads(objects)}
    for name, spec in pod_specs(objects).items():
        if name == "ocr-gateway" and gateways == 1:  # it has nothing to be apart from
            assert "topologySpreadConstraints" not in spec
            continue
        (constraint,) = spec["topologySpreadConstraints"]
        assert (constraint["topologyKey"], constraint["maxSkew"]) == ("kubernetes.io/hostname", 1)
        assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"  # cores come first
        selected = constraint["labelSelector"]["matchLabels"].items()
        assert [other for other, labels in everybody.items() if selected <= labels.items()] == [name]


def test_an_overlay_places_pods_otherwise():
    overlay = Overlay(model={"spec": {"topologySpreadConstraints": None, "priorityClassName": "theirs"}})
    spec = pod_specs(objects_of(settings=changed(PLAIN, overlay=overlay)))["ocr-text-detection-v5-256"]
    assert "topologySpreadConstraints" not in spec and spec["priorityClassName"] == "theirs"


def test_the_config_map_of_a_stage_holds_its_configuration():
    pipeline = load_pipeline("ocr")
    config = stage_config(pipeline, pipeline.tasks[1], StageConfiguration(2, 3, 4), PLAIN)
    assert config["metadata"]["name"] == "ocr-text-recognition-stage"
    assert config["data"] == {"variant": "v6-small-128-ascii", "batch_size": "4"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_scaling_a_workload_changes_nothing_else(flavour):
    pipeline = load_pipeline("ocr")
    wanted = changed(PLAIN, flavour=flavour)
    one = model_workload(pipeline, pipeline.tasks[0], pipeline.tasks[0].variants[3], 1, wanted)
    three = with_replicas(one, 3)
    assert (replicas_of(one), replicas_of(three)) == (1, 3)
    assert three == model_workload(pipeline, pipeline.tasks[0], pipeline.tasks[0].variants[3], 3, wanted)
    assert with_replicas(three, 1) == one


def test_a_pod_drains_and_finishes_the_longest_request_before_it_is_killed():
    wanted = changed(
        PLAIN, drain_seconds=7, gateway_drain_seconds=12, stage=StageSettings(drop_after=20.0, call_timeout=3.5)
    )
    objects = objects_of(settings=wanted)
    model = template_of(find(objects, "Deployment", "ocr-text-detection-v5-256"))["spec"]
    assert model["containers"][0]["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "7"]}}
    # A request that waited almost 20 s is still served, which may take another 3.5 s.
    assert model["terminationGracePeriodSeconds"] == 7 + 24 + 5
    gateway = find(objects, "Deployment", "ocr-gateway")["spec"]
    ends = gateway["template"]["spec"]
    assert ends["containers"][0]["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "12"]}}
    assert ends["terminationGracePeriodSeconds"] == 12 + 24 + 5
    assert gateway["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize(
    "changes", [{"store": "/models"}, {"overlay": Overlay(model={"spec": {"nodeSelector": {"disk": "fast"}}})}]
)
def test_the_hash_of_the_settings_changes_with_the_settings_of_a_pod(changes):
    def hashes(wanted):
        return [
            template_of(each)["metadata"]["annotations"]["opd.io/settings"]
            for each in workloads(objects_of(settings=wanted))
        ]

    pairs = zip(hashes(PLAIN), hashes(changed(PLAIN, **changes)), strict=True)
    assert [old != new for old, new in pairs] == [*[True] * 10, False]


def test_only_replicas_get_the_credentials_of_the_store():
    for workload in workloads(objects_of(settings=FULL)):
        is_model = workload["metadata"]["labels"][names.COMPONENT_LABEL] == "model"
        secret = [{"secretRef": {"name": "opd-store"}}] if is_model else None
        assert server_of(workload).get("envFrom") == secret


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_containers_run_without_privileges(flavour):
    for workload in workloads(objects_of(flavour)):
        assert server_of(workload)["securityContext"] == SECURITY_CONTEXT
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in server_of(workload)["volumeMounts"]}
        assert mounts["/etc/opd"]
        assert not mounts["/tmp"]
        assert not any("hostPath" in volume for volume in template_of(workload)["spec"]["volumes"])


def test_seldon_runs_only_our_container():
    workload = find(objects_of("seldon"), "SeldonDeployment", "ocr-text-detection-v5-256")
    (predictor,) = workload["spec"]["predictors"]
    assert predictor["annotations"] == {"seldon.io/no-engine": "true"}
    assert predictor["graph"] == {"name": "server", "type": "MODEL"}
    assert [container["name"] for container in template_of(workload)["spec"]["containers"]] == ["server"]


def test_flavours_differ_only_in_the_workloads_of_variants_and_the_right_to_scale_them():
    plain, seldon = objects_of("deployment", FULL), objects_of("seldon", FULL)
    for one, other in zip(plain, seldon, strict=True):
        if identity(one) == ("Role", "ocr-controller"):
            assert [a == b for a, b in zip(one["rules"], other["rules"], strict=True)] == [False] * 2 + [True] * 6
        elif other["kind"] == "ValidatingAdmissionPolicy":
            assert one["spec"]["variables"] == other["spec"]["variables"]
        elif other["kind"] == "SeldonDeployment":
            assert template_of(one) == template_of(other)
            assert one["metadata"] == other["metadata"]
        else:
            assert one == other


def test_network_policies_allow_only_the_path_of_requests():
    objects = objects_of(settings=FULL)
    policies = [manifest["spec"] for manifest in objects if manifest["kind"] == "NetworkPolicy"]
    pods = [template_of(workload)["metadata"]["labels"] for workload in workloads(objects)]

    def is_selected(labels, selector):
        return selector["matchLabels"].items() <= labels.items()

    def allows(rules, direction, labels, port):
        return any(
            any(entry["port"] == port for entry in rule["ports"])
            and (
                direction not in rule
                or any(is_selected(labels, peer["podSelector"]) for peer in rule[direction] if "podSelector" in peer)
            )
            for rule in rules
        )

    def may_talk(source, target, port):
        sending = [policy for policy in policies if is_selected(source, policy["podSelector"])]
        receiving = [policy for policy in policies if is_selected(target, policy["podSelector"])]
        assert sending
        assert receiving
        return any(allows(policy["egress"], "to", target, port) for policy in sending) and any(
            allows(policy["ingress"], "from", source, port) for policy in receiving
        )

    def part(labels):
        return labels[names.COMPONENT_LABEL], labels.get(names.TASK_LABEL)

    talking = {(part(one), part(other)) for one in pods for other in pods if may_talk(one, other, 8081)}
    assert talking == {(("gateway", None), ("model", task)) for task in ("text-detection", "text-recognition")}
    assert not any(may_talk(one, other, 8082) for one in pods for other in pods)
    open_to_all = {
        (policy["podSelector"]["matchLabels"][names.COMPONENT_LABEL], port)
        for policy in policies
        for port in (8080, 8081, 8082)
        if allows(policy["ingress"], "from", {"app": "other"}, port)
    }
    assert open_to_all == {("gateway", 8080), ("gateway", 8081)}


def test_extra_objects_are_made_only_on_request():
    assert {manifest["kind"] for manifest in objects_of()} == {
        *("Lease", "ServiceAccount", "Role", "RoleBinding", "PodDisruptionBudget", "ConfigMap", "Service", "Deployment")
    }


def renamed(pipeline="ocr", task="detection", variant="small"):
    variants = (Variant(variant, 0.5, 1, {1: 0.1, 2: 0.2}, 1.0),)
    return Pipeline(pipeline, (Task(task, variants),), 4, 2, 2, ServiceLevel(1.0))


BAD_NAMES = (
    "",
    "Upper",
    "a_b",
    "-a",
    "a-",
    "a.b",
    "../other",
    "other/ocr",
    "a b",
    "ünder",
    "a" * 64,
    "x\n",
    "a" * 10**6,
)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("part", ["pipeline", "task", "variant"])
def test_names_must_be_dns_labels(part, name):
    with pytest.raises(names.BadNameError, match="DNS label") as error:
        objects_of(pipeline=renamed(**{part: name}), configuration=(StageConfiguration(0, 1, 1),))
    assert len(str(error.value)) < 400


def test_combined_names_must_not_be_too_long():
    with pytest.raises(names.BadNameError, match="at most 63"):
        names.check_names(renamed(pipeline="p" * 30, task="t" * 30, variant="v" * 30))


def test_the_name_of_a_pipeline_must_begin_with_a_letter():
    with pytest.raises(names.BadNameError, match="begin with a letter"):
        names.check_names(renamed(pipeline="3d"))


@pytest.mark.parametrize("variant", ["stage", "models"])
def test_two_objects_must_not_share_a_name(variant):
    with pytest.raises(names.BadNameError, match=f"'ocr-detection-{variant}'"):
        names.check_names(renamed(variant=variant))


@pytest.mark.parametrize("stage", [(0, 0, 1), (0, -1, 1), (0, 10**9, 1), (0, 1, 3), (7, 1, 1), (0, 1.5, 1)])
def test_a_configuration_must_be_within_the_limits(stage):
    with pytest.raises(InfeasibleError):
        objects_of(pipeline=ocr_pipeline(), configuration=(StageConfiguration(*stage), StageConfiguration(0, 1, 1)))


@pytest.mark.parametrize("replicas", [-1, 4, 10**9])
def test_a_workload_must_have_an_allowed_number_of_replicas(replicas):
    pipeline = ocr_pipeline(max_replicas=3)
    with pytest.raises(ValueError, match=r"not within 0\.\.3"):
        model_workload(pipeline, pipeline.tasks[0], pipeline.tasks[0].variants[0], replicas, PLAIN)
