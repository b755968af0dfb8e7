"""Overlays: changes to the pods, and everything that is refused."""

import contextlib
from copy import deepcopy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from manifest_objects import FLAVOURS
from small_pipelines import ocr_pipeline

from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.names import COMPONENTS
from opd.cluster.overlay import MERGE_KEYS, Overlay, OverlayError, read_overlay
from opd.cluster.settings import ClusterSettings
from opd.host.documents import DocumentError, as_model, parse_document
from opd.pipeline import StageConfiguration

TEMPLATE = {
    "metadata": {"labels": {"app.kubernetes.io/name": "opd"}, "annotations": {"opd.io/settings": "0"}},
    "spec": {
        "containers": [
            {
                "name": "server",
                "image": "opd:1",
                "args": ["server.json"],
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "OMP_NUM_THREADS", "value": "1"}],
                "livenessProbe": {"periodSeconds": 10, "timeoutSeconds": 5},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                "ports": [{"name": "http", "containerPort": 8080}],
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "terminationGracePeriodSeconds": 20,
    },
}


def overlay_of(content):
    return as_model(Overlay, content, "overlay")


def applied(text, component="model"):
    return overlay_of(parse_document(text.encode(), "overlay")).apply(component, TEMPLATE)


def server(text, component="model"):
    return applied(text, component)["spec"]["containers"][0]


# --- known answers ---------------------------------------------------------------------------------------------------


def test_an_empty_overlay_changes_nothing(tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("# nothing yet\n")
    assert read_overlay(path) == Overlay()
    assert Overlay().apply("model", TEMPLATE) == TEMPLATE


def test_replacing_image_and_pull_policy_keeps_the_rest_of_the_container():
    changed = server("{all: {spec: {containers: [{name: server, image: 'mine:2', imagePullPolicy: Always}]}}}")
    expected = TEMPLATE["spec"]["containers"][0] | {"image": "mine:2", "imagePullPolicy": "Always"}
    assert changed == expected


def test_a_variable_replaces_the_one_of_its_name_or_is_added():
    reference = "{name: HOME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}"
    changed = server(
        f"{{all: {{spec: {{containers: [{{name: server, env: [{reference}, {{name: A, value: b}}]}}]}}}}}}"
    )
    assert changed["env"] == [
        {"name": "HOME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "OMP_NUM_THREADS", "value": "1"},
        {"name": "A", "value": "b"},
    ]


def test_a_volume_replaces_the_one_of_its_name():
    spec = applied("{all: {spec: {volumes: [{name: tmp, hostPath: {path: /scratch}}, {name: m, emptyDir: {}}]}}}")[
        "spec"
    ]
    assert spec["volumes"] == [{"name": "tmp", "hostPath": {"path": "/scratch"}}, {"name": "m", "emptyDir": {}}]


def test_mounts_are_identified_by_their_path():
    mounts = "[{name: models, mountPath: /models}, {name: tmp, mountPath: /tmp, readOnly: true}]"
    changed = server(f"{{all: {{spec: {{containers: [{{name: server, volumeMounts: {mounts}}}]}}}}}}")
    assert changed["volumeMounts"] == [
        {"name": "tmp", "mountPath": "/tmp", "readOnly": True},
        {"name": "models", "mountPath": "/models"},
    ]


def test_other_lists_are_replaced():
    assert server("{all: {spec: {containers: [{name: server, args: [a, b]}]}}}")["args"] == ["a", "b"]


def test_null_removes_a_field():
    changed = server("{all: {spec: {containers: [{name: server, livenessProbe: null, args: null}]}}}")
    assert changed.keys() == TEMPLATE["spec"]["containers"][0].keys() - {"livenessProbe", "args"}


def test_mappings_are_merged():
    changed = server("{all: {spec: {containers: [{name: server, livenessProbe: {timeoutSeconds: 9}}]}}}")
    assert changed["livenessProbe"] == {"periodSeconds": 10, "timeoutSeconds": 9}


def test_a_container_is_added():
    spec = applied("{all: {spec: {containers: [{name: proxy, image: 'envoy:1'}]}}}")["spec"]
    assert [container["name"] for container in spec["containers"]] == ["server", "proxy"]
    with pytest.raises(OverlayError, match="container 'proxy' needs an image"):
        applied("{all: {spec: {containers: [{name: proxy}]}}}")


def test_changes_of_a_component_are_applied_after_those_of_all():
    text = "{all: {spec: {priority: 1, hostname: a}}, gateway: {spec: {priority: 2}}, model: {spec: {priority: 3}}}"
    assert applied(text, "gateway")["spec"]["priority"] == 2
    assert applied(text, "gateway")["spec"]["hostname"] == "a"


def test_the_changes_to_the_spec_of_a_component_can_be_read():
    text = "{all: {spec: {priority: 1, nodeSelector: {a: b}}}, model: {spec: {nodeSelector: {c: d}, priority: null}}}"
    overlay = overlay_of(parse_document(text.encode(), "overlay"))
    assert overlay.spec("model") == {"nodeSelector": {"a": "b", "c": "d"}}
    assert overlay.spec("queue") == {"priority": 1, "nodeSelector": {"a": "b"}}
    assert Overlay().spec("model") == {}


def test_labels_and_annotations_of_the_user_are_added():
    metadata = applied("{model: {metadata: {labels: {team: vision}, annotations: {a.b/c: 'any text'}}}}")["metadata"]
    assert metadata["labels"] == {"app.kubernetes.io/name": "opd", "team": "vision"}
    assert metadata["annotations"] == {"opd.io/settings": "0", "a.b/c": "any text"}


def test_quantities_may_be_numbers():
    changed = server("{all: {spec: {containers: [{name: server, resources: {limits: {cpu: 2, memory: 1Gi}}}]}}}")
    assert changed["resources"]["limits"] == {"cpu": 2, "memory": "1Gi"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_pod_of_a_pipeline_gets_its_changes(flavour):
    overlay = Overlay(
        all={"spec": {"containers": [{"name": "server", "image": "mine:2"}]}},
        model={"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}},
    )
    settings = ClusterSettings(namespace="pipelines", image="opd:1", store="/models", flavour=flavour)
    stages = (StageConfiguration(0, 2, 1), StageConfiguration(1, 1, 1))
    plain = pipeline_objects(ocr_pipeline(), stages, settings)
    patched = pipeline_objects(ocr_pipeline(), stages, settings.model_copy(update={"overlay": overlay}))
    selecting = 0
    for before, after in zip(plain, patched, strict=True):
        text = yaml.safe_dump(after)
        assert "opd:1" not in text
        assert ("mine:2" in text) == (after["kind"] in ("Deployment", "SeldonDeployment"))
        assert before["metadata"] == after["metadata"]
        selecting += "arm64" in text
    assert selecting == sum(len(task.variants) for task in ocr_pipeline().tasks)


# --- properties ------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=5).map(str.lower)
variables = st.lists(
    st.builds(lambda name, value: {"name": name, "value": value}, texts, texts), unique_by=lambda v: v["name"]
)
patches = st.fixed_dictionaries(
    {},
    optional={
        "spec": st.fixed_dictionaries(
            {},
            optional={
                "priority": st.integers(0, 9),
                "nodeSelector": st.dictionaries(texts, texts),
                "containers": st.just([]) | st.builds(lambda env: [{"name": "server", "env": env}], variables),
            },
        ),
        "metadata": st.fixed_dictionaries({}, optional={"labels": st.dictionaries(texts, texts)}),
    },
)


@given(patches)
def test_applying_is_idempotent_and_changes_no_argument(patch):
    overlay, template = Overlay(all=deepcopy(patch)), deepcopy(TEMPLATE)
    once = overlay.apply("model", template)
    assert overlay.apply("model", once) == once
    assert template == TEMPLATE
    assert overlay.sections == {"all": patch}


@given(patches)
def test_results_share_no_parts_with_the_overlay(patch):
    overlay = Overlay(all=deepcopy(patch))
    made = overlay.apply("model", TEMPLATE)
    made["spec"].setdefault("nodeSelector", {})["changed"] = "yes"
    for container in made["spec"]["containers"]:
        for variable in container["env"]:
            variable["value"] = "changed"
    assert overlay.sections == {"all": patch}


def test_replaced_lists_are_not_shared():
    overlay = Overlay(all={"spec": {"containers": [{"name": "server", "args": ["a"]}]}})
    overlay.apply("model", TEMPLATE)["spec"]["containers"][0]["args"].append("changed")
    assert overlay.sections["all"]["spec"]["containers"][0]["args"] == ["a"]
    Overlay().apply("model", TEMPLATE)["spec"]["containers"][0]["args"].append("changed")
    assert TEMPLATE["spec"]["containers"][0]["args"] == ["server.json"]


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_an_overlay_or_refused_with_a_named_error(content):
    with contextlib.suppress(DocumentError, OverlayError):
        sections = parse_document(content, "overlay")
        overlay_of({} if sections is None else sections).apply("model", TEMPLATE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*MERGE_KEYS, "name", "image", "limits", "spec", "labels"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["all", *COMPONENTS]), st.dictionaries(st.sampled_from(["spec", "metadata"]), json_values)
    )
)
def test_any_structure_is_an_overlay_or_refused_with_a_named_error(sections):
    with contextlib.suppress(DocumentError, OverlayError):
        overlay_of(sections).apply("model", TEMPLATE)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping of all, gateway"),
        ("all", "must be a mapping of all, gateway"),
        ("{models: {}}", "models is not a known key; known are all, gateway"),
        ("{controller: {}}", "controller is not a known key; known are all, gateway, model$"),
        ("{1: {}}", r"\[1\] must be text, not 1"),
        ("{all: null}", "all must be a mapping"),
        ("{all: {kind: Secret}}", "all.kind is not a known key; known are metadata, spec"),
        (
            "{all: {metadata: {namespace: kube-system}}}",
            "all.metadata.namespace is not a known key; known are labels, annotations",
        ),
        ("{all: {metadata: {name: other}}}", "all.metadata.name is not a known key"),
        ("{all: {metadata: {ownerReferences: []}}}", "all.metadata.ownerReferences is not a known key"),
        ("{all: {metadata: {labels: {app.kubernetes.io/instance: other}}}}", "belongs to opd"),
        ("{all: {metadata: {labels: {opd.io/task: other}}}}", "belongs to opd"),
        ("{all: {metadata: {annotations: {opd.io/settings: '1'}}}}", "belongs to opd"),
        ("{all: {metadata: {labels: {opd.io/task: null}}}}", "belongs to opd"),
        ("{all: {metadata: {labels: {team: 5}}}}", "must be text"),
        ("{all: {metadata: {labels: {team: two words}}}}", "cannot be the value of a label"),
        ("{all: {metadata: {labels: {-x-: a}}}}", "is not a valid key"),
        ("{all: {metadata: {labels: [team]}}}", "labels must be a mapping, not a list"),
        ("{all: {metadata: []}}", "must be a mapping"),
        ("{all: {spec: []}}", "must be a mapping"),
        ("{all: {spec: null}}", "must not remove our containers"),
        ("{all: {spec: {containers: null}}}", "must not remove our containers"),
        ("{all: {spec: {namespace: kube-system}}}", "all.spec: unknown field 'namespace'"),
        ("{all: {spec: {nodeSelctor: {a: b}}}}", "unknown field 'nodeSelctor'; known are .*nodeSelector"),
        ("{all: {spec: {template: {}}}}", "unknown field 'template'"),
        ("{all: {spec: {$patch: replace}}}", r"unknown field '\$patch'"),
        ("{all: {spec: {containers: {name: server}}}}", "containers must be a list"),
        ("{all: {spec: {containers: [null]}}}", r"containers\[0\] must be a mapping, not nothing"),
        ("{all: {spec: {containers: [server]}}}", "must be a mapping, not 'server'"),
        ("{all: {spec: {containers: [{image: 'x:1'}]}}}", "needs a name of its own, but there is None"),
        ("{all: {spec: {containers: [{name: a, image: x}, {name: a}]}}}", "but there is 'a'"),
        ("{all: {spec: {containers: [{name: server, env: [{value: x}]}]}}}", "env: each needs a name"),
        ("{all: {spec: {containers: [{name: server, image: 5}]}}}", "image must be text, .*, not 5"),
        (
            "{all: {spec: {containers: [{name: server, env: [{name: A, value: 1}]}]}}}",
            "value must be text, .*, not 1",
        ),
        (
            "{all: {spec: {containers: [{name: server, env: [{name: A, value: yes}]}]}}}",
            "value must be text, .*, not true",
        ),
        ("{all: {spec: {containers: [{name: server, tty: 1}]}}}", "tty must be true or false, not 1"),
        ("{all: {spec: {priority: true}}}", "priority must be a whole number, not true"),
        ("{all: {spec: {priority: 1.5}}}", "priority must be a whole number"),
        ("{all: {spec: {priority: .inf}}}", "priority must be a whole number"),
        ("{all: {spec: {hostname: 2026-01-01}}}", "hostname must be text"),
        ("{all: {spec: {nodeSelector: {1: a}}}}", r"nodeSelector\[1\] must be text"),
        ("{all: {spec: {nodeSelector: {a: 1}}}}", "nodeSelector.a must be text"),
        (
            "{all: {spec: {volumes: [{name: a, emptyDir: {sizeLimit: .nan}}]}}}",
            "sizeLimit: must be a finite number or text, not nan",
        ),
    ],
)
def test_overlays_that_do_not_fit_a_pod_or_touch_our_labels_are_refused(text, message):
    with pytest.raises(DocumentError, match=message):
        overlay_of(parse_document(text.encode(), "overlay"))


@pytest.mark.parametrize("name", ["Server", "a/b", "a.b", "", "-", "x" * 64])
@pytest.mark.parametrize("kind", ["containers", "initContainers", "volumes"])
def test_names_of_containers_and_volumes_must_be_dns_labels(kind, name):
    with pytest.raises(DocumentError, match="DNS label"):
        overlay_of({"all": {"spec": {kind: [{"name": name}]}}})


def test_errors_shorten_long_values():
    with pytest.raises(DocumentError) as error:
        overlay_of({"all": {"spec": {"priority": "x" * 50000}}})
    assert len(str(error.value)) < 300
