"""What a user's overlay changes of the pods, and everything it may not be."""

import contextlib
from copy import deepcopy
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_pipelines import ocr_pipeline

from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.names import COMPONENTS, BadNameError
from opd.cluster.overlay import MERGE_KEYS, Overlay, OverlayError, read_overlay
from opd.cluster.settings import FLAVOURS, ClusterSettings
from opd.documents import DocumentError, parse_document
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


def applied(text, component="model"):
    return Overlay(parse_document(text.encode(), "overlay")).apply(component, TEMPLATE)


def server(text, component="model"):
    return applied(text, component)["spec"]["containers"][0]


# --- known answers ---------------------------------------------------------------------------------------------------


def test_an_empty_overlay_changes_nothing(tmp_path):
    path = tmp_path / "overlay.yaml"
    path.write_text("# nothing yet\n")
    assert read_overlay(path) == Overlay()
    assert Overlay().apply("model", TEMPLATE) == TEMPLATE


def test_image_and_pull_policy_are_replaced_and_the_rest_of_the_container_stays():
    changed = server("{all: {spec: {containers: [{name: server, image: 'mine:2', imagePullPolicy: Always}]}}}")
    expected = TEMPLATE["spec"]["containers"][0] | {"image": "mine:2", "imagePullPolicy": "Always"}
    assert changed == expected


def test_a_variable_replaces_the_one_of_its_name_and_another_is_added():
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


def test_mounts_are_told_apart_by_where_they_are():
    mounts = "[{name: models, mountPath: /models}, {name: tmp, mountPath: /tmp, readOnly: true}]"
    changed = server(f"{{all: {{spec: {{containers: [{{name: server, volumeMounts: {mounts}}}]}}}}}}")
    assert changed["volumeMounts"] == [
        {"name": "tmp", "mountPath": "/tmp", "readOnly": True},
        {"name": "models", "mountPath": "/models"},
    ]


def test_other_lists_are_replaced_whole():
    assert server("{all: {spec: {containers: [{name: server, args: [a, b]}]}}}")["args"] == ["a", "b"]


def test_null_takes_a_field_away():
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


def test_a_component_gets_what_is_for_all_and_then_its_own():
    text = "{all: {spec: {priority: 1, hostname: a}}, queue: {spec: {priority: 2}}, model: {spec: {priority: 3}}}"
    assert applied(text, "queue")["spec"]["priority"] == 2
    assert applied(text, "queue")["spec"]["hostname"] == "a"
    assert applied(text, "router")["spec"]["priority"] == 1


def test_what_the_overlay_alone_says_of_a_pod_is_known():
    text = "{all: {spec: {priority: 1, nodeSelector: {a: b}}}, model: {spec: {nodeSelector: {c: d}, priority: null}}}"
    overlay = Overlay(parse_document(text.encode(), "overlay"))
    assert overlay.spec("model") == {"nodeSelector": {"a": "b", "c": "d"}}
    assert overlay.spec("queue") == {"priority": 1, "nodeSelector": {"a": "b"}}
    assert Overlay().spec("model") == {}


def test_labels_and_annotations_of_the_users_own_are_added():
    metadata = applied("{model: {metadata: {labels: {team: vision}, annotations: {a.b/c: 'any text'}}}}")["metadata"]
    assert metadata["labels"] == {"app.kubernetes.io/name": "opd", "team": "vision"}
    assert metadata["annotations"] == {"opd.io/settings": "0", "a.b/c": "any text"}


def test_quantities_may_be_numbers_as_people_write_them():
    changed = server("{all: {spec: {containers: [{name: server, resources: {limits: {cpu: 2, memory: 1Gi}}}]}}}")
    assert changed["resources"]["limits"] == {"cpu": 2, "memory": "1Gi"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_pod_of_a_pipeline_gets_its_part(flavour):
    overlay = Overlay(
        {
            "all": {"spec": {"containers": [{"name": "server", "image": "mine:2"}]}},
            "model": {"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}},
        }
    )
    wanted = ClusterSettings("pipelines", "opd:1", "/models", flavour=flavour, overlay=overlay)
    stages = (StageConfiguration(0, 2, 1), StageConfiguration(1, 1, 1))
    plain = pipeline_objects(ocr_pipeline(), stages, replace(wanted, overlay=Overlay()))
    patched = pipeline_objects(ocr_pipeline(), stages, wanted)
    selecting = 0
    for before, after in zip(plain, patched, strict=True):
        text = yaml.safe_dump(after)
        assert "opd:1" not in text
        assert ("mine:2" in text) == (after["kind"] in ("Deployment", "SeldonDeployment"))
        assert before["metadata"] == after["metadata"]
        selecting += "arm64" in text
    assert selecting == 2


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
def test_applying_twice_is_applying_once_and_nothing_given_is_changed(patch):
    overlay, template = Overlay({"all": deepcopy(patch)}), deepcopy(TEMPLATE)
    once = overlay.apply("model", template)
    assert overlay.apply("model", once) == once
    assert template == TEMPLATE
    assert overlay.sections == {"all": patch}


@given(patches)
def test_what_is_made_shares_nothing_with_the_overlay(patch):
    overlay = Overlay({"all": deepcopy(patch)})
    made = overlay.apply("model", TEMPLATE)
    made["spec"].setdefault("nodeSelector", {})["changed"] = "yes"
    for container in made["spec"]["containers"]:
        for variable in container["env"]:
            variable["value"] = "changed"
    assert overlay.sections == {"all": patch}


def test_lists_that_are_replaced_are_not_shared_either():
    overlay = Overlay({"all": {"spec": {"containers": [{"name": "server", "args": ["a"]}]}}})
    overlay.apply("model", TEMPLATE)["spec"]["containers"][0]["args"].append("changed")
    assert overlay.sections["all"]["spec"]["containers"][0]["args"] == ["a"]
    Overlay().apply("model", TEMPLATE)["spec"]["containers"][0]["args"].append("changed")
    assert TEMPLATE["spec"]["containers"][0]["args"] == ["server.json"]


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_an_overlay_or_refused_by_name(content):
    with contextlib.suppress(DocumentError, OverlayError, BadNameError):
        sections = parse_document(content, "overlay")
        Overlay({} if sections is None else sections).apply("model", TEMPLATE)


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
def test_any_structure_is_an_overlay_or_refused_by_name(sections):
    with contextlib.suppress(OverlayError, BadNameError):
        Overlay(sections).apply("model", TEMPLATE)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping of all, router"),
        ("all", "must be a mapping of all, router"),
        ("{models: {}}", "may not set 'models', only all, router"),
        ("{controller: {}}", "may not set 'controller', only all, router, queue, model$"),
        ("{1: {}}", "may not set 1"),
        ("{all: null}", "all must be a mapping"),
        ("{all: {kind: Secret}}", "all may not set 'kind', only metadata, spec"),
        ("{all: {metadata: {namespace: kube-system}}}", "may not set 'namespace', only labels, annotations"),
        ("{all: {metadata: {name: other}}}", "may not set 'name'"),
        ("{all: {metadata: {ownerReferences: []}}}", "may not set 'ownerReferences'"),
        ("{all: {metadata: {labels: {app.kubernetes.io/instance: other}}}}", "belongs to opd"),
        ("{all: {metadata: {labels: {opd.io/task: other}}}}", "belongs to opd"),
        ("{all: {metadata: {annotations: {opd.io/settings: '1'}}}}", "belongs to opd"),
        ("{all: {metadata: {labels: {opd.io/task: null}}}}", "belongs to opd"),
        ("{all: {metadata: {labels: {team: 5}}}}", "must be text"),
        ("{all: {metadata: {labels: {team: two words}}}}", "no label may be"),
        ("{all: {metadata: {labels: {-x-: a}}}}", "is no key"),
        ("{all: {metadata: {labels: [team]}}}", "must be a mapping, not list"),
        ("{all: {metadata: []}}", "must be a mapping"),
        ("{all: {spec: []}}", "must be a mapping"),
        ("{all: {spec: null}}", "may not take our containers away"),
        ("{all: {spec: {containers: null}}}", "may not take our containers away"),
        ("{all: {spec: {namespace: kube-system}}}", "has no field 'namespace'"),
        ("{all: {spec: {nodeSelctor: {a: b}}}}", "has no field 'nodeSelctor'; it has .*nodeSelector"),
        ("{all: {spec: {template: {}}}}", "has no field 'template'"),
        ("{all: {spec: {$patch: replace}}}", r"has no field '\$patch'"),
        ("{all: {spec: {containers: {name: server}}}}", "containers must be a list"),
        ("{all: {spec: {containers: [null]}}}", r"containers\[0\] must be given"),
        ("{all: {spec: {containers: [server]}}}", "must be a mapping, not 'server'"),
        ("{all: {spec: {containers: [{image: 'x:1'}]}}}", "needs a name of its own, but there is None"),
        ("{all: {spec: {containers: [{name: a, image: x}, {name: a}]}}}", "but there is 'a'"),
        ("{all: {spec: {containers: [{name: server, env: [{value: x}]}]}}}", "env: each needs a name"),
        ("{all: {spec: {containers: [{name: server, image: 5}]}}}", "image must be of type str, not 5"),
        (
            "{all: {spec: {containers: [{name: server, env: [{name: A, value: 1}]}]}}}",
            "value must be of type str, not 1",
        ),
        ("{all: {spec: {containers: [{name: server, env: [{name: A, value: yes}]}]}}}", "of type str, not True"),
        ("{all: {spec: {containers: [{name: server, tty: 1}]}}}", "tty must be of type bool"),
        ("{all: {spec: {priority: true}}}", "priority must be of type int, not True"),
        ("{all: {spec: {priority: 1.5}}}", "priority must be of type int"),
        ("{all: {spec: {priority: .inf}}}", "priority must be of type int"),
        ("{all: {spec: {hostname: 2026-01-01}}}", "hostname must be of type str"),
        ("{all: {spec: {nodeSelector: {1: a}}}}", "text as keys"),
        ("{all: {spec: {nodeSelector: {a: 1}}}}", "must be of type str"),
        ("{all: {spec: {volumes: [{name: a, emptyDir: {sizeLimit: .nan}}]}}}", "sizeLimit must be of type"),
    ],
)
def test_overlays_that_are_no_pods_or_touch_what_is_not_the_users_are_refused(text, message):
    with pytest.raises((OverlayError, BadNameError), match=message):
        Overlay(parse_document(text.encode(), "overlay"))


@pytest.mark.parametrize("name", ["Server", "a/b", "a.b", "", "-", "x" * 64])
@pytest.mark.parametrize("kind", ["containers", "initContainers", "volumes"])
def test_containers_and_volumes_are_named_by_dns_labels(kind, name):
    with pytest.raises(BadNameError, match="DNS label"):
        Overlay({"all": {"spec": {kind: [{"name": name}]}}})


def test_what_is_refused_is_not_repeated_at_length():
    with pytest.raises(OverlayError) as error:
        Overlay({"all": {"spec": {"priority": "x" * 50000}}})
    assert len(str(error.value)) < 300
