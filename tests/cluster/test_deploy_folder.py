"""The folder ``deploy``: kustomize base, components, example and image, as docs/kubernetes.md explains them."""

import json
import re
import shutil
import subprocess
from collections import Counter

import pytest
import yaml
from code_blocks import code_blocks
from deadlines import PATIENCE
from manifest_objects import KUBERNETES, ROOT, check_schema, find, identity, server_of

from opd.cluster.controller import ControllerSettings
from opd.cluster.manifests.pods import SECURITY_CONTEXT
from opd.cluster.manifests.workloads import template_of
from opd.cluster.settings import read_settings
from opd.host import health
from opd.serving.settings import ProcessSettings

DEPLOY = ROOT / "deploy"
EXAMPLE = DEPLOY / "example"
CONTROLLER = DEPLOY / "controller"
COMPONENTS = sorted((DEPLOY / "components").iterdir())

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl has kustomize built in")


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
        yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout)
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
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    return code_blocks(text, language)


@pytest.mark.parametrize("folder", [CONTROLLER, *COMPONENTS, EXAMPLE], ids=lambda folder: folder.name)
def test_kustomizations_refer_to_existing_files_and_use_only_known_fields(folder):
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
def test_the_objects_of_the_controller_match_their_published_schemas(version):
    objects = [manifest for folder in (CONTROLLER, *COMPONENTS) for manifest in assembled(folder)]
    for manifest in objects:
        check_schema(manifest, version)
    assert max(Counter(map(identity, objects)).values()) == 1
    assert {kind for kind, _ in map(identity, assembled(CONTROLLER))} == {*("ServiceAccount", "Deployment", "Service")}


def test_the_namespace_of_the_controller_must_be_named():
    assert "namespace" not in kustomization(CONTROLLER)
    for manifest in assembled(EXAMPLE):
        assert "namespace" not in manifest["metadata"]
    assert kustomization(EXAMPLE)["namespace"] not in ("", "default")


def test_the_controller_gets_its_rights_with_the_pipeline_and_only_node_capacity_adds_to_them():
    (account,) = [each for each in assembled(CONTROLLER) if each["kind"] == "ServiceAccount"]
    assert account["metadata"]["name"] == read_settings(CONTROLLER / "settings.yaml", "pipelines").controller_account
    cluster_wide = [
        each for folder in (CONTROLLER, *COMPONENTS) for each in assembled(folder) if "Cluster" in each["kind"]
    ]
    assert [identity(each) for each in cluster_wide] == [
        ("ClusterRole", "opd-node-capacity"),
        ("ClusterRoleBinding", "opd-node-capacity"),
    ]
    assert cluster_wide[0]["rules"] == [{"apiGroups": [""], "resources": ["nodes", "pods"], "verbs": ["list"]}]


def test_the_pod_of_the_controller_is_secure_and_its_references_match():
    objects = assembled(CONTROLLER)
    deployment = find(objects, "Deployment", "opd-controller")
    pod = template_of(deployment)
    assert server_of(deployment)["securityContext"] == SECURITY_CONTEXT
    assert server_of(deployment)["resources"]["requests"] == server_of(deployment)["resources"]["limits"]
    assert pod["spec"]["serviceAccountName"] == "opd-controller"
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    assert find(objects, "Service", "opd-controller")["spec"]["selector"] == selector
    for binding in (each for folder in COMPONENTS for each in assembled(folder)):
        if binding["kind"] == "ClusterRoleBinding":
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "opd-controller"}]
            assert binding["roleRef"]["kind"] == "ClusterRole"
    generated = {each["name"] for each in kustomization(CONTROLLER)["configMapGenerator"]}
    volumes = {each["configMap"]["name"] for each in pod["spec"]["volumes"] if "configMap" in each}
    assert volumes - {"opd-models"} | {"opd-controller"} == generated


def test_the_settings_of_the_controller_are_valid():
    assert read_settings(CONTROLLER / "settings.yaml", "pipelines").flavour == "deployment"


def test_the_example_has_one_image_and_one_label_for_the_prometheus_operator():
    content, example = kustomization(EXAMPLE), read_settings(EXAMPLE / "settings.yaml", "pipelines")
    (image,) = content["images"]
    base = find(assembled(CONTROLLER), "Deployment", "opd-controller")
    assert image["name"] == server_of(base)["image"].split(":")[0]
    assert f"{image['newName']}:{image['newTag']}" == example.image
    (patch,) = [each for each in content["patches"] if each["target"]["kind"] == "PodMonitor"]
    (operation,) = yaml.safe_load(patch["patch"])
    assert {operation["path"].removeprefix("/metadata/labels/"): operation["value"]} == example.monitoring_labels
    assert example.pod_monitor


def test_the_documentation_shows_the_settings_of_the_example():
    (shown,) = [block for block in documented("yaml") if block.startswith("# settings.yaml")]
    assert yaml.safe_load(shown) == yaml.safe_load((EXAMPLE / "settings.yaml").read_text())


@needs_kubectl
def test_kustomize_renders_the_example_into_one_namespace():
    namespace = kustomization(EXAMPLE)["namespace"]
    objects = rendered(EXAMPLE)
    for manifest in objects:
        check_schema(manifest)
        assert not manifest["kind"].startswith("Cluster")
        assert manifest["metadata"]["namespace"] == namespace
        for subject in manifest.get("subjects", []):
            assert subject["namespace"] == namespace
    assert {identity(each) for each in assembled(EXAMPLE)} <= set(map(identity, objects))
    controller = find(objects, "Deployment", "opd-controller")
    pod = template_of(controller)["spec"]
    assert "--read-nodes" not in server_of(controller)["args"]
    referred = {each["configMap"]["name"] for each in pod["volumes"] if "configMap" in each}
    referred |= {each["configMapRef"]["name"] for each in pod["containers"][0]["envFrom"]}
    generated = {name for kind, name in map(identity, objects) if kind == "ConfigMap"}
    assert referred - {"opd-models"} == generated
    assert find(objects, "PodMonitor", "opd-controller")["metadata"]["labels"]["release"] == "prometheus"
    (settings_data,) = [each["data"] for each in objects if "settings.yaml" in each.get("data", {})]
    assert settings_data == {"settings.yaml": (EXAMPLE / "settings.yaml").read_text()}


@needs_kubectl
def test_node_capacity_makes_the_controller_read_nodes_and_a_suffix_separates_namespaces(tmp_path):
    changes = {"components": ["../components/node-capacity"], "namespace": "others", "nameSuffix": "-others"}
    objects = rendered(example_with(tmp_path, changes))
    controller = find(objects, "Deployment", "opd-controller-others")
    assert "--read-nodes" in server_of(controller)["args"]
    binding = find(objects, "ClusterRoleBinding", "opd-node-capacity-others")
    account = template_of(controller)["spec"]["serviceAccountName"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "others"}]
    assert find(objects, "ClusterRole", binding["roleRef"]["name"]) and find(objects, "ServiceAccount", account)


@needs_kubectl
def test_the_controller_gets_a_pipeline_file_as_documented(tmp_path):
    (block,) = [block for block in documented("yaml") if "opd-pipeline" in block]
    folder = example_with(tmp_path, yaml.safe_load(block))
    (folder / "pipeline.yaml").write_text("name: mine\n")
    (folder / "profile.csv").write_text("task,variant\n")
    objects = rendered(folder)
    controller = find(objects, "Deployment", "opd-controller")
    (config,) = [each for each in objects if each["metadata"]["name"].startswith("opd-pipeline-")]
    assert config["data"] == {"pipeline.yaml": "name: mine\n", "profile.csv": "task,variant\n"}
    volumes = template_of(controller)["spec"]["volumes"]
    (volume,) = [each["name"] for each in volumes if each.get("configMap", {}).get("name") == identity(config)[1]]
    (mount,) = [each["mountPath"] for each in server_of(controller)["volumeMounts"] if each["name"] == volume]
    (variables,) = [each["data"] for each in objects if "OPD_PIPELINE" in each.get("data", {})]
    assert variables["OPD_PIPELINE"] == f"{mount}/pipeline.yaml"
    assert variables["OPD_POLICY"] == "agent"
    assert len(volumes) == 4 and len(server_of(controller)["volumeMounts"]) == 4


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_ray_cluster_matches_its_published_schema_and_shares_the_project(version):
    claim, cluster = yaml.safe_load_all((DEPLOY / "ray-cluster.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for manifest in (claim, cluster):
        check_schema(manifest, version)
    head, workers = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    (pinned,) = re.findall(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["spec"]["rayVersion"] == pinned
    for group in (head, *workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        check_schema(pod, version)
        spec, (container,) = pod["spec"], pod["spec"]["containers"]
        assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": spec["volumes"][0]["name"], "mountPath": "/work"}]
        assert spec["securityContext"]["runAsUser"] == SECURITY_CONTEXT["runAsUser"]


def instructions():
    """Keyword and argument of every instruction of the Dockerfile."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_image_is_pinned_and_runs_as_the_user_of_the_pods():
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
    installs = [
        argument for keyword, argument in parts if keyword == "RUN" and re.search(r"\bpip .*install ", argument)
    ]
    assert len(installs) == 1
    assert "-c constraints.txt" in installs[0]
    assert ".[${EXTRAS}]" in installs[0] and defaults["EXTRAS"] == "servers,cluster"


def test_the_image_has_a_health_check_that_asks_at_the_port_of_the_servers():
    (check,) = [argument for keyword, argument in instructions() if keyword == "HEALTHCHECK"]
    command = json.loads(check.partition("CMD ")[2])
    assert command == ["python", "-m", health.__name__]
    assert health.PORT == ProcessSettings.model_fields["http_port"].default == ControllerSettings.port
    assert {"/v2/health/live", "/healthz"} == set(health.PATHS)


def test_the_image_copies_existing_files_that_dockerignore_lets_through():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = [
        source
        for keyword, argument in instructions()
        if keyword == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in copied)
    assert set(copied) == sent
