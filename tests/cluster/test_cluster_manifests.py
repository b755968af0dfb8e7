"""The objects of a pipeline against published schemas, golden files and what must hold for all of them.

``python tests/test_cluster_manifests.py`` writes the golden files anew.
"""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline, pipelines

from opd.cluster import names
from opd.cluster.manifests.dashboard import dashboard, dashboard_text
from opd.cluster.manifests.pipeline import pipeline_objects, stage_config
from opd.cluster.manifests.pods import SECURITY_CONTEXT, cpu
from opd.cluster.manifests.servers import DISCOVERING_QUEUE
from opd.cluster.manifests.workloads import model_workload, replicas_of, with_replicas
from opd.cluster.overlay import Overlay
from opd.cluster.record import ControllerMetrics
from opd.cluster.settings import FLAVOURS, ClusterSettings, SettingsError, read_settings
from opd.pipeline import InfeasibleError, Pipeline, StageConfiguration, Task, Variant, used_cores
from opd.profiling.catalogue import load_pipeline
from opd.serving import metrics
from opd.serving.server import ServerSettings
from opd.serving.stage_queue import StageSettings
from opd.solvers import random_configuration

TESTS = Path(__file__).parent
DEPLOY = TESTS.parents[1] / "deploy"
KUBERNETES = ("1.25", "1.37")
"""Oldest and newest version whose schemas the objects must suit."""

PLAIN = ClusterSettings("pipelines", "registry.example/opd:1.0", "s3://models/store")
FULL = replace(
    PLAIN,
    storage_secret="opd-store",
    istio_gateway="istio-system/gateway",
    istio_host="ocr.example",
    pod_monitor=True,
    monitoring_labels={"release": "prometheus"},
    network_policy=True,
    control_plane_blocks=("10.0.0.0/24",),
    dashboard=True,
)
CONFIGURATION = (StageConfiguration(1, 2, 2), StageConfiguration(4, 1, 1))


def objects_of(flavour="deployment", wanted=PLAIN, pipeline=None, configuration=CONFIGURATION):
    return pipeline_objects(pipeline or load_pipeline("ocr"), configuration, replace(wanted, flavour=flavour))


def identity(manifest):
    return manifest["kind"], manifest["metadata"]["name"]


def found(objects, kind, name):
    return {identity(manifest): manifest for manifest in objects}[kind, name]


def template_of(manifest):
    spec = manifest["spec"]
    return spec["predictors"][0]["componentSpecs"][0] if manifest["kind"] == "SeldonDeployment" else spec["template"]


def workloads(objects):
    return [manifest for manifest in objects if manifest["kind"] in ("Deployment", "SeldonDeployment")]


def server_of(manifest):
    return template_of(manifest)["spec"]["containers"][0]


def golden(flavour):
    return yaml.safe_dump_all(objects_of(flavour, replace(FULL, dashboard=False)), sort_keys=False, width=120)


# --- schemas ---------------------------------------------------------------------------------------------------------


@cache
def custom_schemas():
    """Of each kind that Kubernetes does not know by itself: API version and strict schema."""
    listed = yaml.safe_load((TESTS / "schemas" / "custom_resources.yaml").read_text())
    schemas = {kind: (each["apiVersion"], each["spec"]) for kind, each in listed.items()}
    for path in sorted(Path(os.environ.get("OPD_CRDS", os.devnull)).glob("*.y*ml")):
        for definition in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            if definition and definition.get("kind") == "CustomResourceDefinition":
                spec = definition["spec"]
                kind = spec["names"]["kind"]
                for version in spec["versions"]:
                    name = f"{spec['group']}/{version['name']}"
                    if kind in schemas and schemas[kind][0] == name:
                        published = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
                        schemas[kind] = (name, strict(published))
    return schemas


def strict(schema):
    """A schema of a definition that refuses what the API server would silently leave out."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: {name: strict(each) for name, each in value.items()} if key == "properties" else strict(value)
        for key, value in schema.items()
    }
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def validate(manifest, version):
    if manifest["kind"] not in custom_schemas():
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    api_version, schema = custom_schemas()[manifest["kind"]]
    assert manifest["apiVersion"] == api_version
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(manifest["spec"], schema)
    if manifest["kind"] == "SeldonDeployment":
        pod = {"apiVersion": "v1", "kind": "Pod", **template_of(manifest)}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_object_suits_its_published_schema(flavour, version):
    objects = objects_of(flavour, FULL)
    for manifest in objects:
        validate(manifest, version)
    assert {kind for kind, _ in map(identity, objects)} >= {*custom_schemas()} - {"SeldonDeployment"}


def test_the_schemas_refuse_what_is_wrong():
    for kind, path, wrong in (
        ("SeldonDeployment", ("predictors", 0, "replica"), 1),
        ("SeldonDeployment", ("predictors", 0, "componentSpecs", 0, "spec", "containers", 0, "imagePullPolicy"), 1),
        ("VirtualService", ("http", 0, "retries", "attempt"), 1),
        ("DestinationRule", ("trafficPolicy", "loadBalancer", "simple"), "FASTEST"),
        ("PodMonitor", ("podMetricsEndpoints", 0, "interval"), "1 second"),
        ("Deployment", ("template", "spec", "containers", 0, "securityContexts"), {}),
    ):
        manifest = next(each for each in objects_of("seldon", FULL) if each["kind"] == kind)
        *parents, last = path
        place = manifest["spec"]
        for key in parents:
            place = place[key]
        place[last] = wrong
        with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
            validate(manifest, KUBERNETES[-1])


# --- golden files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_ocr_pipeline_is_what_its_golden_file_says(flavour):
    assert golden(flavour) == (TESTS / "golden" / f"ocr-{flavour}.yaml").read_text(), (
        "if the change is meant, run `python tests/test_cluster_manifests.py` and look at the difference"
    )


def test_content_does_not_depend_on_when_it_is_made():
    assert json.dumps(objects_of("seldon", FULL)) == json.dumps(objects_of("seldon", FULL))


def test_nobody_shares_a_part_with_another():
    """A manifest can be changed, and written without references, only if it is a tree of its own."""
    text = yaml.safe_dump_all(objects_of("seldon", FULL))
    assert not re.search(r"(: |- )[&*]id\d", text)


# --- what is in them -------------------------------------------------------------------------------------------------


def test_the_settings_of_every_server_are_what_the_server_reads():
    objects = objects_of()
    for workload in workloads(objects):
        mounted = found(objects, "ConfigMap", workload["metadata"]["name"])
        server = ServerSettings(**json.loads(mounted["data"]["server.json"]))
        component = workload["metadata"]["labels"][names.COMPONENT_LABEL]
        assert server.kind == (DISCOVERING_QUEUE if component == names.QUEUE else component)
        ports = {port["name"]: port["containerPort"] for port in server_of(workload)["ports"]}
        assert ports == {"http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}
        assert server_of(workload)["readinessProbe"]["httpGet"]["path"] == f"/v2/models/{server.name}/ready"
        if component == names.QUEUE:
            StageSettings(**server.parameters["settings"])


def test_the_router_knows_the_queues_in_order_by_the_names_of_their_services():
    objects = objects_of()
    router = json.loads(found(objects, "ConfigMap", "ocr-router")["data"]["server.json"])
    assert router["parameters"]["stages"] == [
        {"task": "text-detection", "address": "ocr-text-detection-queue.pipelines.svc:8081"},
        {"task": "text-recognition", "address": "ocr-text-recognition-queue.pipelines.svc:8081"},
    ]
    for task in ("text-detection", "text-recognition"):
        service = found(objects, "Service", f"ocr-{task}-queue")["spec"]
        pod = template_of(found(objects, "Deployment", f"ocr-{task}-queue"))
        assert service["selector"].items() <= pod["metadata"]["labels"].items()
        assert {port["name"]: port["port"] for port in service["ports"]}["grpc"] == 8081


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_queue_finds_the_replicas_of_its_task_and_no_others(flavour):
    objects = objects_of(flavour)
    for task in ("text-detection", "text-recognition"):
        server = json.loads(found(objects, "ConfigMap", f"ocr-{task}-queue")["data"]["server.json"])
        discover = server["parameters"]["discover"]
        wanted = dict(part.split("=") for part in discover["selector"].split(","))
        selected = [
            manifest["metadata"]["labels"][names.TASK_LABEL]
            for manifest in workloads(objects)
            if wanted.items() <= template_of(manifest)["metadata"]["labels"].items()
        ]
        assert selected == [task]
        assert discover["namespace"] == "pipelines"
        assert discover["port"] == 8081
        assert found(objects, "ConfigMap", discover["stage"])["data"].keys() == {"variant", "replicas", "batch_size"}


def test_only_queues_may_ask_the_api_server_and_only_for_what_they_need():
    objects = objects_of()
    for workload in workloads(objects):
        pod, component = template_of(workload)["spec"], workload["metadata"]["labels"][names.COMPONENT_LABEL]
        assert pod["automountServiceAccountToken"] == (component == "queue")
        assert pod.get("serviceAccountName") == ("ocr-queue" if component == "queue" else None)
    (rule,) = found(objects, "Role", "ocr-queue")["rules"]
    assert rule == {"apiGroups": [""], "resources": ["configmaps", "pods"], "verbs": ["get", "list", "watch"]}
    binding = found(objects, "RoleBinding", "ocr-queue")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "ocr-queue", "namespace": "pipelines"}]


def test_the_stage_says_what_runs_in_words():
    pipeline = load_pipeline("ocr")
    config = stage_config(pipeline, pipeline.tasks[1], StageConfiguration(2, 3, 4), PLAIN)
    assert config["metadata"]["name"] == "ocr-text-recognition-stage"
    assert config["data"] == {"variant": "v6-small-128-ascii", "replicas": "3", "batch_size": "4"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_workload_is_scaled_without_touching_anything_else(flavour):
    pipeline = load_pipeline("ocr")
    wanted = replace(PLAIN, flavour=flavour)
    one = model_workload(pipeline, pipeline.tasks[0], pipeline.tasks[0].variants[3], 1, wanted)
    three = with_replicas(one, 3)
    assert (replicas_of(one), replicas_of(three)) == (1, 3)
    assert three == model_workload(pipeline, pipeline.tasks[0], pipeline.tasks[0].variants[3], 3, wanted)
    assert with_replicas(three, 1) == one


def test_a_pod_drains_longer_than_it_may_be_sent_to_and_less_than_until_it_is_killed():
    wanted = replace(PLAIN, drain_seconds=7, stage=StageSettings(drop_after=20.0, call_timeout=3.5))
    objects = objects_of(wanted=wanted)
    model = template_of(found(objects, "Deployment", "ocr-text-detection-v5-256"))["spec"]
    assert model["containers"][0]["lifecycle"]["preStop"] == {"exec": {"command": ["sleep", "7"]}}
    # A request that waited almost 20 s is not given up, and then may take another 3.5 s.
    assert model["terminationGracePeriodSeconds"] == 7 + 24 + 5
    queue = found(objects, "Deployment", "ocr-text-detection-queue")["spec"]
    assert "lifecycle" not in queue["template"]["spec"]["containers"][0]
    assert queue["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    "changes", [{"store": "/models"}, {"overlay": Overlay({"model": {"spec": {"nodeSelector": {"disk": "fast"}}}})}]
)
def test_pods_start_anew_when_their_settings_change_and_their_hash_says_so(changes):
    def hashes(wanted):
        return [
            template_of(each)["metadata"]["annotations"]["opd.io/settings"]
            for each in workloads(objects_of(wanted=wanted))
        ]

    changed = [old != new for old, new in zip(hashes(PLAIN), hashes(replace(PLAIN, **changes)), strict=True)]
    assert changed == [False, False, True, True, False]


def test_credentials_of_the_store_reach_only_replicas():
    for workload in workloads(objects_of(wanted=FULL)):
        is_model = workload["metadata"]["labels"][names.COMPONENT_LABEL] == "model"
        secret = [{"secretRef": {"name": "opd-store"}}] if is_model else None
        assert server_of(workload).get("envFrom") == secret


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_containers_have_no_privilege(flavour):
    for workload in workloads(objects_of(flavour)):
        assert server_of(workload)["securityContext"] == SECURITY_CONTEXT
        mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in server_of(workload)["volumeMounts"]}
        assert mounts["/etc/opd"]
        assert not mounts["/tmp"]
        assert not any("hostPath" in volume for volume in template_of(workload)["spec"]["volumes"])


def test_seldon_runs_our_container_alone():
    workload = found(objects_of("seldon"), "SeldonDeployment", "ocr-text-detection-v5-256")
    (predictor,) = workload["spec"]["predictors"]
    assert predictor["annotations"] == {"seldon.io/no-engine": "true"}
    assert predictor["graph"] == {"name": "server", "type": "MODEL"}
    assert [container["name"] for container in template_of(workload)["spec"]["containers"]] == ["server"]


def test_flavours_differ_in_nothing_but_the_workloads_of_variants():
    plain, seldon = objects_of("deployment", FULL), objects_of("seldon", FULL)
    for one, other in zip(plain, seldon, strict=True):
        if other["kind"] == "SeldonDeployment":
            assert template_of(one) == template_of(other)
            assert one["metadata"] == other["metadata"]
        else:
            assert one == other


def test_network_policies_let_requests_through_and_nothing_across():
    objects = objects_of(wanted=FULL)
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
    router = ("router", None)
    queues = [("queue", task) for task in ("text-detection", "text-recognition")]
    models = [("model", task) for _, task in queues]
    expected = {(router, queue) for queue in queues} | set(zip(queues, models, strict=True))
    assert talking == expected
    assert not any(may_talk(one, other, 8082) for one in pods for other in pods)
    open_to_all = {
        (policy["podSelector"]["matchLabels"][names.COMPONENT_LABEL], port)
        for policy in policies
        for port in (8080, 8081, 8082)
        if allows(policy["ingress"], "from", {"app": "other"}, port)
    }
    assert open_to_all == {("router", 8080), ("router", 8081)}


def test_extras_are_made_only_when_asked_for():
    assert {manifest["kind"] for manifest in objects_of()} == {
        *("ServiceAccount", "Role", "RoleBinding", "PodDisruptionBudget", "ConfigMap", "Service", "Deployment")
    }


# --- what holds for every pipeline -----------------------------------------------------------------------------------


@given(pipeline=pipelines(), seed=st.integers(0, 2**32 - 1), flavour=st.sampled_from(FLAVOURS))
@settings(max_examples=8)  # a validation takes tens of milliseconds
def test_any_feasible_configuration_gives_valid_objects_of_one_namespace_that_request_what_it_costs(
    pipeline, seed, flavour
):
    configuration = random_configuration(pipeline, np.random.default_rng(seed))
    objects = objects_of(flavour, FULL, pipeline, configuration)
    kinds = {
        (manifest["kind"], manifest["metadata"]["labels"].get(names.COMPONENT_LABEL)): manifest for manifest in objects
    }
    for manifest in kinds.values():
        validate(manifest, KUBERNETES[-1])
    for manifest in objects:
        assert manifest["metadata"]["namespace"] == FULL.namespace
        assert manifest["metadata"]["labels"][names.INSTANCE_LABEL] == pipeline.name
        assert names.check_name("object", manifest["metadata"]["name"])
    assert max(Counter(map(identity, objects)).values()) == 1
    requested = 0.0
    for workload in workloads(objects):
        resources = server_of(workload)["resources"]
        assert resources["requests"] == resources["limits"]
        requested += replicas_of(workload) * millicores(resources["requests"]["cpu"]) / 1000
    overhead = (FULL.router_millicores + len(pipeline.tasks) * FULL.queue_millicores) / 1000
    assert requested == pytest.approx(used_cores(pipeline, configuration) + overhead)


def millicores(text):
    return int(text[:-1]) if text.endswith("m") else 1000 * int(text)


@given(st.integers(1, 10**6))
def test_cpu_is_written_as_kubernetes_reads_it(amount):
    assert millicores(cpu(amount)) == amount


# --- refused ---------------------------------------------------------------------------------------------------------


def renamed(pipeline="ocr", task="detection", variant="small"):
    variants = (Variant(variant, 0.5, 1, {1: 0.1, 2: 0.2}, 1.0),)
    return Pipeline(pipeline, (Task(task, variants),), 4, 2, 2, 1.0)


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
def test_names_that_are_no_dns_labels_are_refused(part, name):
    with pytest.raises(names.BadNameError, match="DNS label") as error:
        objects_of(pipeline=renamed(**{part: name}), configuration=(StageConfiguration(0, 1, 1),))
    assert len(str(error.value)) < 400


def test_names_that_become_too_long_together_are_refused():
    with pytest.raises(names.BadNameError, match="at most 63"):
        names.check_names(renamed(pipeline="p" * 30, task="t" * 30, variant="v" * 30))


def test_a_pipeline_whose_services_could_not_be_named_is_refused():
    with pytest.raises(names.BadNameError, match="begin with a letter"):
        names.check_names(renamed(pipeline="3d"))


@pytest.mark.parametrize("variant", ["queue", "stage", "models"])
def test_names_that_two_objects_would_share_are_refused(variant):
    with pytest.raises(names.BadNameError, match=f"'ocr-detection-{variant}'"):
        names.check_names(renamed(variant=variant))


@pytest.mark.parametrize("stage", [(0, 0, 1), (0, -1, 1), (0, 10**9, 1), (0, 1, 3), (7, 1, 1), (0, 1.5, 1)])
def test_a_configuration_beyond_the_limits_is_refused(stage):
    with pytest.raises(InfeasibleError):
        objects_of(pipeline=ocr_pipeline(), configuration=(StageConfiguration(*stage), StageConfiguration(0, 1, 1)))


@pytest.mark.parametrize("replicas", [-1, 4, 10**9])
def test_a_workload_with_absurd_replicas_is_refused(replicas):
    pipeline = ocr_pipeline(max_replicas=3)
    with pytest.raises(ValueError, match=r"not within 0\.\.3"):
        model_workload(pipeline, pipeline.tasks[0], pipeline.tasks[0].variants[0], replicas, PLAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"namespace": ""}, "namespace '' is no DNS label"),
        ({"namespace": "a/b"}, "no DNS label"),
        ({"namespace": None}, "must be of type str"),
        ({"image": "opd"}, "image 'opd' is malformed"),
        ({"image": "opd:1.0 --privileged"}, "malformed"),
        ({"store": "models"}, "store 'models' is malformed"),
        ({"flavour": "helm"}, "not one of deployment, seldon"),
        ({"pull_policy": "Sometimes"}, "not one of Always"),
        ({"storage_secret": "../secret"}, "no DNS label"),
        ({"router_millicores": 0}, "not within 1"),
        ({"model_memory": "-1Gi"}, "malformed"),
        ({"model_memory": "1e9"}, "malformed"),
        ({"grpc_port": 8080}, "must differ"),
        ({"grpc_port": 80}, "1024 or more"),
        ({"grpc_port": True}, "must be of type int"),
        ({"metrics_port": 70000}, "not within 1..65535"),
        ({"api_server_ports": ("443",)}, "must be of type"),
        ({"drain_seconds": 10**6}, "not within 0..300"),
        ({"apply_seconds": float("nan")}, "not within"),
        ({"istio_gateway": "a/b/c"}, "neither name nor namespace/name"),
        ({"istio_host": "ocr_example"}, "malformed"),
        ({"control_plane_blocks": ("everywhere",)}, "control_plane_blocks"),
        ({"monitoring_labels": {"app.kubernetes.io/name": "mine"}}, "belongs to opd"),
        ({"monitoring_labels": {"release": "two words"}}, "no label may be"),
    ],
)
def test_settings_out_of_their_range_are_refused(change, message):
    with pytest.raises((SettingsError, names.BadNameError), match=message):
        replace(PLAIN, **change)


def test_images_with_ports_tags_and_digests_are_taken():
    for image in ("opd:1.0", "localhost:5000/opd:dev", "a.b/c/opd@sha256:" + "0" * 64, "a/opd:1@sha256:" + "0" * 64):
        assert replace(PLAIN, image=image).image == image


def test_settings_are_read_from_a_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "{image: 'opd:1', store: /models, stage: {batch_timeout: 0.5}, store_ports: [80], "
        "overlay: {model: {spec: {priority: 1}}}}"
    )
    expected = ClusterSettings(
        "here",
        "opd:1",
        "/models",
        stage=StageSettings(batch_timeout=0.5),
        store_ports=(80,),
        overlay=Overlay({"model": {"spec": {"priority": 1}}}),
    )
    assert read_settings(path, "here") == expected


def test_with_a_pod_monitor_series_are_told_apart_by_their_namespace():
    assert PLAIN.series_labels == {}
    assert replace(PLAIN, pod_monitor=True).series_labels == {"namespace": "pipelines"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping"),
        ("{image: 'opd:1'}", "lacks store"),
        ("{image: 'opd:1', store: /m, colour: red}", "may not set 'colour'"),
        ("{image: 'opd:1', store: /m, namespace: kube-system}", "is for namespace 'kube-system', not 'here'"),
        (
            "{image: 'opd:1', store: /m, stage: {batch_size: 0}}",
            "batch_size must be at least 1, not 0",
        ),
        ("{image: 'opd:1', store: /m, stage: {batch_size: many}}", "stage"),
        ("{image: 'opd:1', store: /m, router_millicores: '5'}", "must be of type int"),
    ],
)
def test_a_file_of_other_settings_is_refused(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_settings(path, "here")


# --- dashboard -------------------------------------------------------------------------------------------------------


def test_the_dashboard_file_is_the_one_that_is_made():
    assert (DEPLOY / "grafana" / "opd.json").read_text() == dashboard_text(), (
        "if the change is meant, run `python -m opd.cluster.manifests.dashboard > deploy/grafana/opd.json`"
    )


def test_the_dashboard_shows_only_metrics_that_are_served():
    served = {
        f"{sample}{part}"
        for sample in vars(metrics).values()
        if isinstance(sample, str)
        for part in ("", "_total", "_bucket", "_sum", "_count")
    }
    for family in ControllerMetrics("ocr").registry.collect():  # a counter's family has no _total
        served |= {family.name, f"{family.name}_total"}
    panels = dashboard()["panels"]
    asked = {word for panel in panels for target in panel["targets"] for word in re.findall(r"opd_\w+", target["expr"])}
    assert asked <= served
    assert len(asked) > 10
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)


def test_grafana_finds_the_dashboard_of_each_pipeline_by_a_label():
    config = found(objects_of(wanted=FULL), "ConfigMap", "ocr-dashboard")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = config["data"].values()
    assert json.loads(text) == dashboard("ocr")
    assert dashboard("ocr")["uid"] != dashboard("video")["uid"]


# --- deploy ----------------------------------------------------------------------------------------------------------


def kustomization(folder):
    return yaml.safe_load((folder / "kustomization.yaml").read_text())


def assembled(folder):
    """The resources of a kustomization, its bases' and components' included, in the namespace it sets."""
    content = kustomization(folder)
    resources = []
    for entry in [*content.get("resources", []), *content.get("components", [])]:
        path = folder / entry
        assert path.exists(), f"{folder} names {entry}, which is not there"
        resources += assembled(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    return resources


def rendered(folder):
    """The objects that kustomize makes of a folder."""
    command = ["kubectl", "kustomize", str(folder)]
    return list(
        yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    )


def example_with(folder, changes):
    """A copy of the example, in a copy of the whole, with other or more entries in its kustomization."""
    shutil.copytree(DEPLOY, folder / "deploy")
    content = kustomization(EXAMPLE)
    for key, value in changes.items():
        if key == "configMapGenerator":
            names_given = {each["name"] for each in value}
            content[key] = [each for each in content[key] if each["name"] not in names_given] + value
        else:
            content[key] = content[key] + value if isinstance(value, list) else value
    made = folder / "deploy" / "example"
    (made / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return made


def documented(language):
    """Blocks of code of the how-to."""
    text = (TESTS.parents[1] / "docs" / "kubernetes.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


EXAMPLE = DEPLOY / "example"
CONTROLLER = DEPLOY / "controller"
COMPONENTS = sorted((DEPLOY / "components").iterdir())


@pytest.mark.parametrize("folder", [CONTROLLER, *COMPONENTS, EXAMPLE], ids=lambda folder: folder.name)
def test_kustomizations_name_what_there_is_and_set_only_what_kustomize_knows(folder):
    content = kustomization(folder)
    is_component = folder in COMPONENTS
    version, kind = ("v1alpha1", "Component") if is_component else ("v1beta1", "Kustomization")
    assert content["apiVersion"] == f"kustomize.config.k8s.io/{version}"
    assert content["kind"] == kind
    known = {"apiVersion", "kind", "namespace", "resources", "components", "configMapGenerator", "labels", "images"}
    assert set(content) <= known | {"patches"}
    for generated in content.get("configMapGenerator", []):
        assert all((folder / file).is_file() for file in generated.get("files", []))
    listed = {entry for entry in content["resources"] if entry.endswith(".yaml")}
    others = {file for generated in content.get("configMapGenerator", []) for file in generated.get("files", [])}
    assert {path.name for path in folder.glob("*.yaml")} == listed | others | {"kustomization.yaml"}


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_controllers_objects_suit_their_published_schemas(version):
    objects = [manifest for folder in (CONTROLLER, *COMPONENTS) for manifest in assembled(folder)]
    for manifest in objects:
        validate(manifest, version)
    assert max(Counter(map(identity, objects)).values()) == 1
    assert {kind for kind, _ in map(identity, assembled(CONTROLLER))} == {
        *("ServiceAccount", "Role", "RoleBinding", "Deployment", "Service")
    }


def test_the_controller_lands_only_in_a_namespace_that_is_named():
    assert "namespace" not in kustomization(CONTROLLER)
    for manifest in assembled(EXAMPLE):
        assert "namespace" not in manifest["metadata"]
    assert kustomization(EXAMPLE)["namespace"] not in ("", "default")


def test_the_controller_may_do_no_more_than_it_needs():
    rules = found(assembled(CONTROLLER), "Role", "opd-controller")["rules"]
    granted = {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    everything = {"get", "list", "create", "update", "delete"}
    assert granted == {
        ("apps", "deployments"): everything,
        ("machinelearning.seldon.io", "seldondeployments"): everything,
        ("", "configmaps"): {"get", "update"},
        ("", "pods"): {"list"},
        ("", "pods/proxy"): {"get"},
        ("", "events"): {"create"},
        ("coordination.k8s.io", "leases"): {"get", "create", "update"},
    }
    cluster_wide = [
        each for folder in (CONTROLLER, *COMPONENTS) for each in assembled(folder) if "Cluster" in each["kind"]
    ]
    assert [identity(each) for each in cluster_wide] == [
        ("ClusterRole", "opd-node-capacity"),
        ("ClusterRoleBinding", "opd-node-capacity"),
    ]
    assert cluster_wide[0]["rules"] == [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list"]}]


def test_the_controllers_pod_is_as_secure_as_the_others_and_its_parts_fit():
    objects = assembled(CONTROLLER)
    deployment = found(objects, "Deployment", "opd-controller")
    pod = template_of(deployment)
    assert server_of(deployment)["securityContext"] == SECURITY_CONTEXT
    assert server_of(deployment)["resources"]["requests"] == server_of(deployment)["resources"]["limits"]
    assert pod["spec"]["serviceAccountName"] == "opd-controller"
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    assert found(objects, "Service", "opd-controller")["spec"]["selector"] == selector
    for role in ("Role", "ClusterRole"):
        for binding in (each for folder in (CONTROLLER, *COMPONENTS) for each in assembled(folder)):
            if binding["kind"] == f"{role}Binding":
                assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "opd-controller"}]
                assert binding["roleRef"]["kind"] == role
    generated = {each["name"] for each in kustomization(CONTROLLER)["configMapGenerator"]}
    volumes = {each["configMap"]["name"] for each in pod["spec"]["volumes"] if "configMap" in each}
    assert volumes - {"opd-models"} | {"opd-controller"} == generated


def test_the_controllers_settings_are_settings():
    assert read_settings(CONTROLLER / "settings.yaml", "pipelines").flavour == "deployment"


def test_the_example_has_one_image_and_one_label_for_the_prometheus_operator():
    content, example = kustomization(EXAMPLE), read_settings(EXAMPLE / "settings.yaml", "pipelines")
    (image,) = content["images"]
    base = found(assembled(CONTROLLER), "Deployment", "opd-controller")
    assert image["name"] == server_of(base)["image"].split(":")[0]
    assert f"{image['newName']}:{image['newTag']}" == example.image
    (patch,) = [each for each in content["patches"] if each["target"]["kind"] == "PodMonitor"]
    (operation,) = yaml.safe_load(patch["patch"])
    assert {operation["path"].removeprefix("/metadata/labels/"): operation["value"]} == example.monitoring_labels
    assert example.pod_monitor


def test_the_how_to_shows_the_settings_of_the_example():
    (shown,) = [block for block in documented("yaml") if block.startswith("# settings.yaml")]
    assert yaml.safe_load(shown) == yaml.safe_load((EXAMPLE / "settings.yaml").read_text())


needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl has kustomize built in")


@needs_kubectl
def test_kustomize_builds_the_example_into_one_namespace():
    namespace = kustomization(EXAMPLE)["namespace"]
    objects = rendered(EXAMPLE)
    for manifest in objects:
        validate(manifest, KUBERNETES[-1])
        assert not manifest["kind"].startswith("Cluster")
        assert manifest["metadata"]["namespace"] == namespace
        for subject in manifest.get("subjects", []):
            assert subject["namespace"] == namespace
    assert {identity(each) for each in assembled(EXAMPLE)} <= set(map(identity, objects))
    controller = found(objects, "Deployment", "opd-controller")
    pod = template_of(controller)["spec"]
    assert "--read-nodes" not in server_of(controller)["args"]
    referred = {each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
    referred |= {each["configMapRef"]["name"] for each in pod["containers"][0]["envFrom"]}
    generated = {name for kind, name in map(identity, objects) if kind == "ConfigMap"}
    assert referred - {"opd-models"} == generated
    assert found(objects, "PodMonitor", "opd-controller")["metadata"]["labels"]["release"] == "prometheus"
    (settings_data,) = [each["data"] for each in objects if "settings.yaml" in each.get("data", {})]
    assert settings_data == {"settings.yaml": (EXAMPLE / "settings.yaml").read_text()}


@needs_kubectl
def test_node_capacity_makes_the_controller_read_nodes_and_a_suffix_tells_namespaces_apart(tmp_path):
    changes = {"components": ["../components/node-capacity"], "namespace": "others", "nameSuffix": "-others"}
    objects = rendered(example_with(tmp_path, changes))
    controller = found(objects, "Deployment", "opd-controller-others")
    assert "--read-nodes" in server_of(controller)["args"]
    binding = found(objects, "ClusterRoleBinding", "opd-node-capacity-others")
    account = template_of(controller)["spec"]["serviceAccountName"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "others"}]
    assert found(objects, "ClusterRole", binding["roleRef"]["name"]) and found(objects, "ServiceAccount", account)


@needs_kubectl
def test_the_controller_gets_a_pipeline_file_as_the_how_to_says(tmp_path):
    (block,) = [block for block in documented("yaml") if "opd-pipeline" in block]
    folder = example_with(tmp_path, yaml.safe_load(block))
    (folder / "pipeline.yaml").write_text("name: mine\n")
    objects = rendered(folder)
    controller = found(objects, "Deployment", "opd-controller")
    (config,) = [each for each in objects if each["metadata"]["name"].startswith("opd-pipeline-")]
    assert config["data"] == {"pipeline.yaml": "name: mine\n"}
    volumes = template_of(controller)["spec"]["volumes"]
    (volume,) = [each["name"] for each in volumes if each.get("configMap", {}).get("name") == identity(config)[1]]
    (mount,) = [each["mountPath"] for each in server_of(controller)["volumeMounts"] if each["name"] == volume]
    (variables,) = [each["data"] for each in objects if "OPD_PIPELINE" in each.get("data", {})]
    assert variables["OPD_PIPELINE"] == f"{mount}/pipeline.yaml"
    assert variables["OPD_POLICY"] == "agent"
    assert len(volumes) == 4 and len(server_of(controller)["volumeMounts"]) == 4


# --- image -----------------------------------------------------------------------------------------------------------


def instructions():
    """Keyword and argument of every instruction of the Dockerfile."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_image_runs_as_the_user_of_the_pods_and_is_pinned():
    parts = instructions()
    bases = [argument.split()[0] for keyword, argument in parts if keyword == "FROM"]
    defaults = dict(argument.split("=", 1) for keyword, argument in parts if keyword == "ARG")
    for base in bases:
        name, tag = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], base).split(":")
        assert name == "python"
        assert re.match(r"3\.1[12]-slim", tag)
    users = [argument for keyword, argument in parts if keyword == "USER"]
    user = f"{SECURITY_CONTEXT['runAsUser']}:{SECURITY_CONTEXT['runAsGroup']}"
    assert users == [user]
    assert [keyword for keyword, _ in parts].index("USER") > max(
        place for place, (keyword, _) in enumerate(parts) if keyword in ("RUN", "COPY")
    )
    installs = [argument for keyword, argument in parts if keyword == "RUN" and "pip install" in argument]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]
    assert ".[serving,cluster]" in installs[0]


def test_the_image_is_built_of_what_is_there_and_sent_to_the_engine():
    ignored = (TESTS.parents[1] / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [
        source
        for keyword, argument in instructions()
        if keyword == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    ]
    assert all((TESTS.parents[1] / source).exists() for source in copied)
    assert set(copied) == sent


if __name__ == "__main__":
    for each in FLAVOURS:
        (TESTS / "golden" / f"ocr-{each}.yaml").write_text(golden(each))
