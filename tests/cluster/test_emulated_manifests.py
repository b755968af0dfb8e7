"""Emulated replicas on a cluster: what their pods are, and the names of what is deployed."""

import json

import pytest
from manifest_objects import FLAVOURS, find, server_of, workloads

from opd.cluster import names
from opd.cluster.inputs import deployed_pipeline
from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.settings import ClusterSettings
from opd.profiling.pipelines import load_pipeline
from opd.serving.emulation.settings import EmulationSettings


def settings_of(flavour="deployment", **changes):
    known = dict(namespace="pipelines", image="registry.example/opd:1.0", store="/unused", flavour=flavour)
    return ClusterSettings(**{**known, "emulated": True, **changes})


def emulated_objects(settings):
    pipeline = deployed_pipeline(load_pipeline("video"), settings)
    return pipeline, pipeline_objects(pipeline, pipeline.smallest_configuration(), settings)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_emulated_replica_is_a_small_pod_with_the_profile_of_its_variant(flavour):
    pipeline, objects = emulated_objects(settings_of(flavour, emulated_noise=0.2))
    replicas = [each for each in workloads(objects) if each["metadata"]["labels"][names.COMPONENT_LABEL] == names.MODEL]
    variants = [(task, variant) for task in pipeline.tasks for variant in task.variants]
    for workload, (task, variant) in zip(replicas, variants, strict=True):
        container = server_of(workload)
        assert container["command"] == ["python", "-m", "opd.serving.emulation"]
        assert container["resources"]["limits"] == {"cpu": "100m", "memory": "256Mi"}
        assert container["readinessProbe"]["httpGet"]["path"] == f"/v2/models/{task.name}/ready"
        mounted = find(objects, "ConfigMap", workload["metadata"]["name"])["data"]["server.json"]
        server = EmulationSettings.model_validate_json(mounted)
        ((name, replica),) = server.replicas.items()
        assert name == variant.name
        assert replica.latency == dict(variant.latency) and replica.startup_seconds == variant.startup_time
        assert (replica.task, replica.noise, replica.grpc_port) == (task.name, 0.2, server.grpc_port)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"http": server.http_port, "grpc": server.grpc_port, "metrics": server.metrics_port}


def test_every_object_says_that_it_is_emulated():
    _, objects = emulated_objects(settings_of())
    assert all(each["metadata"]["name"].startswith("video-emulated") for each in objects)


def test_the_same_settings_give_the_same_pods():
    settings = settings_of()
    first, second = (emulated_objects(settings)[1] for _ in range(2))
    assert json.dumps(first) == json.dumps(second)


def test_real_replicas_stay_as_they_are():
    settings, pipeline = settings_of(emulated=False), load_pipeline("video")
    assert deployed_pipeline(pipeline, settings) is pipeline
