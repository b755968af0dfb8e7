"""Settings of a cluster: valid, invalid, and read from a file."""

import pytest
from manifest_objects import PLAIN, changed

from opd.cluster.overlay import Overlay
from opd.cluster.settings import ClusterSettings, read_settings
from opd.host.documents import DocumentError
from opd.serving.settings import StageSettings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"namespace": ""}, "namespace: name '' is not a DNS label"),
        ({"namespace": "a/b"}, "not a DNS label"),
        ({"namespace": None}, "namespace must be text"),
        ({"image": "opd"}, "image: 'opd' is malformed; give something like registry"),
        ({"image": "opd:1.0 --privileged"}, "malformed"),
        ({"store": "models"}, "store: 'models' is malformed"),
        ({"flavour": "helm"}, "must be 'deployment' or 'seldon', not 'helm'"),
        ({"pull_policy": "Sometimes"}, "must be 'Always', 'IfNotPresent' or 'Never', not 'Sometimes'"),
        ({"priority_class": "High"}, "priority_class: 'High' is malformed; give something like edge-serving"),
        ({"storage_secret": "../secret"}, "storage_secret: '../secret' is malformed"),
        ({"gateway_millicores": 0}, "gateway_millicores must be at least 1, not 0"),
        ({"model_memory": "-1Gi"}, "malformed"),
        ({"model_memory": "1e9"}, "malformed"),
        ({"grpc_port": 8080}, "must differ"),
        ({"grpc_port": 80}, r"grpc_port must be at least 1024, not 80 .*not run as root"),
        ({"grpc_port": True}, "grpc_port must be a whole number, not true"),
        ({"metrics_port": 70000}, "metrics_port must be at most 65535, not 70000"),
        ({"api_server_ports": ["443"]}, r"api_server_ports\[0\] must be a whole number, not '443'"),
        ({"drain_seconds": 10**6}, "drain_seconds must be at most 300"),
        ({"apply_seconds": float("nan")}, "apply_seconds must be a finite number"),
        ({"istio_gateway": "a/b/c"}, "istio_gateway: 'a/b/c' is malformed; give something like istio-system/gateway"),
        ({"istio_host": "ocr_example"}, "malformed"),
        ({"gateways": 0}, "gateways must be at least 1, not 0"),
        ({"monitoring_labels": {"app.kubernetes.io/name": "mine"}}, "belongs to opd"),
        ({"monitoring_labels": {"release": "two words"}}, "cannot be the value of a label"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    with pytest.raises(DocumentError, match=message):
        changed(PLAIN, **change)


def test_images_may_have_ports_tags_and_digests():
    for image in ("opd:1.0", "localhost:5000/opd:dev", "a.b/c/opd@sha256:" + "0" * 64, "a/opd:1@sha256:" + "0" * 64):
        assert changed(PLAIN, image=image).image == image


def test_settings_are_read_from_a_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "{image: 'opd:1', store: /models, stage: {batch_timeout: 0.5}, store_ports: [80], "
        "overlay: {model: {spec: {priority: 1}}}}"
    )
    expected = ClusterSettings(
        namespace="here",
        image="opd:1",
        store="/models",
        stage=StageSettings(batch_timeout=0.5),
        store_ports=[80],
        overlay=Overlay(model={"spec": {"priority": 1}}),
    )
    assert read_settings(path, "here") == expected


def test_with_a_pod_monitor_the_namespace_identifies_the_series():
    assert PLAIN.series_labels == {}
    assert changed(PLAIN, pod_monitor=True).series_labels == {"namespace": "pipelines"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a mapping"),
        ("{image: 'opd:1'}", "store .*is missing"),
        ("{image: 'opd:1', store: /m, colour: red}", "colour .*is not a known key"),
        ("{image: 'opd:1', store: /m, namespace: kube-system}", "is for namespace 'kube-system', not 'here'"),
        (
            "{image: 'opd:1', store: /m, stage: {batch_size: 0}}",
            "batch_size .*must be at least 1, not 0",
        ),
        ("{image: 'opd:1', store: /m, stage: {batch_size: many}}", "stage"),
        (
            "{image: 'opd:1', store: /m, gateway_millicores: '5'}",
            "gateway_millicores .* must be a whole number, not '5'",
        ),
    ],
)
def test_a_file_with_wrong_settings_is_refused(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(DocumentError, match=message):
        read_settings(path, "here")


def test_all_problems_of_a_file_are_reported_at_once_with_their_lines(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "image: opd\nstore: /models\ndrain_seconds: 301\nstage: {max_queue: 0}\n"
        "overlay:\n  all:\n    spec: {priority: high, nodeSelctor: {}}\n"
        "  model:\n    spec: {containers: [{image: 5}]}\n"
    )
    with pytest.raises(DocumentError) as error:
        read_settings(path, "here", {"flavour": "helm"})
    lines = str(error.value).splitlines()
    assert lines[0] == f"{path} has 6 problems:"
    expected = [
        "image (line 1): 'opd' is malformed",
        "flavour (line 1) must be 'deployment' or 'seldon', not 'helm'",
        "stage.max_queue (line 4) must be at least 1, not 0",
        "drain_seconds (line 3) must be at most 300, not 301",
        "overlay.all.spec (line 7): unknown field 'nodeSelctor'; known are activeDeadlineSeconds, ",
        "overlay.model.spec.containers[0].image (line 9) must be text",
    ]
    for line, beginning in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"- {beginning}")
