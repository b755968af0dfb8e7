"""Images and models on the nodes before replicas start: what is made, and that it comes first.

Pulls are emulated: the emulated node only stamps how long they would have taken.
"""

import pytest
from deadlines import PATIENCE, eventually
from manifest_objects import FLAVOURS, FULL, KUBERNETES, PLAIN, changed, check_schema, find, objects_of
from tiny_cluster import settings

from opd.cluster.inputs import deployed_pipeline
from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.manifests.pods import SECURITY_CONTEXT
from opd.cluster.operations import COLUMNS, deploy, status
from opd.cluster.overlay import Overlay
from opd.cluster.pods import requested_cores
from opd.cluster.starts import start_of
from opd.cluster.status import wait_for_prefetch
from opd.profiling.pipelines import load_pipeline

CACHE = {"name": "cache", "hostPath": {"path": "/var/lib/opd", "type": "Directory"}}
"""A volume of the node in place of the cache of each pod."""

VARIANTS = [f"{task.name}/{variant.name}" for task in load_pipeline("ocr").tasks for variant in task.variants]


def prefetch_pod(flavour="deployment", **changes):
    """Metadata and specification of the pods."""
    wanted = changed(PLAIN, prefetch=True, **changes)
    return find(objects_of(flavour, wanted), "DaemonSet", "ocr-prefetch")["spec"]["template"]


def model(**spec):
    """An overlay of the replicas."""
    return Overlay(model={"spec": spec})


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", [Overlay(), model(volumes=[CACHE])])
def test_the_daemon_set_matches_its_published_schema(version, overlay):
    objects = objects_of(settings=changed(FULL, prefetch=True, overlay=overlay, admission=False))
    check_schema(find(objects, "DaemonSet", "ocr-prefetch"), version)
    check_schema(find(objects, "NetworkPolicy", "ocr-prefetch"), version)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_its_container_has_the_image_of_the_replicas_and_only_sleeps(flavour):
    spec = prefetch_pod(flavour)["spec"]
    (container,) = spec["containers"]
    assert (container["image"], container["command"]) == ("registry.example/opd:1.0", ["sleep", "infinity"])
    assert container["securityContext"] == SECURITY_CONTEXT and not spec["automountServiceAccountToken"]
    assert not spec.keys() & {"initContainers", "volumes"} and not container.keys() & {"ports", "env", "volumeMounts"}


@pytest.mark.parametrize("overlay", [Overlay(), model(volumes=[CACHE])])
def test_it_requests_no_cores(overlay):
    assert requested_cores(prefetch_pod(overlay=overlay)) == 0.0


def test_only_its_own_component_selects_its_pods():
    objects = objects_of(settings=changed(FULL, prefetch=True))
    its_labels = find(objects, "DaemonSet", "ocr-prefetch")["spec"]["template"]["metadata"]["labels"]
    assert its_labels["app.kubernetes.io/component"] == "prefetch" and "opd.io/variant" not in its_labels
    selecting = set()
    for each in objects:
        spec = each.get("spec") or {}
        chosen = spec.get("selector") or spec.get("podSelector") or {}
        if (chosen := chosen.get("matchLabels", chosen)) and chosen.items() <= its_labels.items():
            selecting.add(each["kind"])
    assert selecting == {"DaemonSet", "NetworkPolicy", "PodMonitor"}  # it has no port that the PodMonitor could scrape


def test_it_goes_where_the_overlay_lets_replicas_go_with_their_image_and_rights():
    nodes = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}}
    apart = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
    overlay = Overlay(
        all={"spec": {"imagePullSecrets": [{"name": "registry"}], "tolerations": [{"key": "edge"}]}},
        gateway={"spec": {"nodeSelector": {"kind": "front"}}},
        model={
            "metadata": {"labels": {"example.com/team": "vision"}, "annotations": {"sidecar.istio.io/inject": "false"}},
            "spec": {
                "nodeSelector": {"kind": "edge"},
                "affinity": {"nodeAffinity": nodes, "podAntiAffinity": apart},
                "securityContext": {"fsGroup": 10001},
                "serviceAccountName": "reader",
                "resourceClaims": [{"name": "gpu"}],
                "volumes": [CACHE],
                "initContainers": [{"name": "theirs", "image": "other:1"}],
                "containers": [
                    {
                        "name": "server",
                        "image": "registry.example/opd-cuda:1.0",
                        "env": [{"name": "AWS_REGION", "value": "eu"}],
                        "resources": {"limits": {"nvidia.com/gpu": "1"}},
                    },
                    {"name": "proxy", "image": "proxy:1"},
                ],
            },
        },
    )
    template = prefetch_pod(overlay=overlay, priority_class="edge", pull_policy="Always")
    spec, metadata = template["spec"], template["metadata"]
    (container,), (pulling,) = spec["containers"], spec["initContainers"]
    for each in (container, pulling):
        assert (each["image"], each["imagePullPolicy"]) == ("registry.example/opd-cuda:1.0", "Always")
        assert "nvidia.com/gpu" not in each["resources"]["limits"]
    assert pulling["name"] == "models" and {"name": "AWS_REGION", "value": "eu"} in pulling["env"]
    assert spec["nodeSelector"] == {"kind": "edge"} and spec["tolerations"] == [{"key": "edge"}]
    assert spec["affinity"] == {"nodeAffinity": nodes}
    assert (spec["imagePullSecrets"], spec["priorityClassName"]) == ([{"name": "registry"}], "edge")
    assert (spec["serviceAccountName"], spec["securityContext"]) == ("reader", {"fsGroup": 10001})
    assert metadata["labels"]["example.com/team"] == "vision"
    assert metadata["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert not spec.keys() & {"resourceClaims", "topologySpreadConstraints"}  # it does none of their work


def test_models_are_pulled_to_a_cache_on_the_node():
    spec = prefetch_pod(overlay=model(volumes=[CACHE]), storage_secret="store")["spec"]
    (pulling,) = spec["initContainers"]
    assert pulling["command"] == ["python", "-m", "opd.serving.prefetch"]
    assert pulling["args"] == ["s3://models/store", *VARIANTS]
    assert {"name": "cache", "mountPath": "/cache"} in pulling["volumeMounts"] and CACHE in spec["volumes"]
    assert {"name": "OPD_MODEL_CACHE", "value": "/cache"} in pulling["env"]
    assert pulling["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert pulling["securityContext"] == SECURITY_CONTEXT


def test_no_models_are_pulled_where_they_are_on_the_node_already():
    assert "initContainers" not in prefetch_pod(overlay=model(volumes=[CACHE]), store="/models")["spec"]


def test_emulated_replicas_need_the_image_alone():
    wanted = settings(emulated=True, prefetch=True, store="s3://models/store")
    pipeline = deployed_pipeline(load_pipeline("video"), wanted)
    objects = pipeline_objects(pipeline, pipeline.smallest_configuration(), wanted)
    assert "initContainers" not in find(objects, "DaemonSet", "video-emulated-prefetch")["spec"]["template"]["spec"]


# ------------------------------------------------------------------------------------------------- on a cluster


def deployed(space, **changes):
    """What became of the last object of each kind."""
    done = deploy(space.cluster, space.pipeline, settings(**changes), {}, PATIENCE, print)
    return {(each.after or each.before)["kind"]: each.outcome for each in done}


def image_seconds(space):
    """Of the start of every replica."""
    return {start_of(pod).image for task in ("first", "second") for pod in space.ready_replicas(task)}


@pytest.mark.parametrize("prefetch", [False, True])
def test_emulated_pulls_are_over_when_replicas_start(space, prefetch):
    space.kubelet.pull_seconds = 30.0
    for image in ("opd:1", "opd:2"):  # the second one renews what runs
        deployed(space, prefetch=prefetch, image=image)
        assert max(image_seconds(space)) == (0.0 if prefetch else 30.0)


def test_status_tells_on_how_many_nodes_it_is_done(space):
    deployed(space, prefetch=True)
    found = [dict(zip(COLUMNS, each, strict=True)) for each in status(space.cluster, "tiny").components]
    (row,) = [each for each in found if each["COMPONENT"] == "prefetch"]
    assert (row["READY"], row["TROUBLE"]) == ("1/1", "")


def test_a_prefetch_that_fails_keeps_nothing_from_serving(space):
    space.kubelet.behave("tiny-prefetch", broken="ImagePullBackOff")
    space.deploy(prefetch=True)
    told = []
    eventually(lambda: "ImagePullBackOff" in status(space.cluster, "tiny").components[-1][-1])
    wait_for_prefetch(space.cluster, "tiny", 0.1, told.append)
    assert told[-1].startswith("warning: after 0.1 s the prefetch is done on 0 of 1 nodes: pod 'tiny-prefetch-")
    found = status(space.cluster, "tiny")
    assert found.serves and found.components[-1][3] == "0/1"


def test_it_goes_when_it_is_switched_off_or_the_pipeline_is_deleted(space):
    deployed(space, prefetch=True)
    assert deployed(space)["DaemonSet"] == "deleted" and not space.names("daemonsets")
    deployed(space, prefetch=True)
    assert "tiny-prefetch" in {each.before["metadata"]["name"] for each in space.delete()}
    assert not space.api.objects


def test_an_account_without_the_right_to_daemon_sets_can_deploy_without_a_prefetch(space):
    space.api.refuse("(GET|PATCH) .*daemonsets", 403, 999)
    deployed(space)
    assert status(space.cluster, "tiny").serves
    with pytest.raises(Exception, match="daemonsets|DaemonSet"):
        deployed(space, prefetch=True)
