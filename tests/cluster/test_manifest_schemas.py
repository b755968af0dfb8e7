"""Objects of a pipeline against published schemas and golden files, for the OCR pipeline and for any other."""

import json
import re
from collections import Counter

import jsonschema
import kubernetes_validate
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_objects import (
    CLUSTER,
    FLAVOURS,
    FULL,
    KUBERNETES,
    OLDEST,
    changed,
    check_schema,
    custom_schemas,
    find,
    golden,
    golden_file,
    identity,
    objects_of,
    server_of,
    workloads,
)
from small_pipelines import pipelines

from opd.cluster import names
from opd.cluster.manifests.pods import cpu
from opd.cluster.manifests.workloads import replicas_of
from opd.cluster.resources import resource_of
from opd.pipeline import used_cores
from opd.solvers import random_configuration


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_every_object_matches_its_published_schema(flavour, version):
    objects = objects_of(flavour, changed(FULL, admission=version != OLDEST))  # which needs 1.30
    for manifest in objects:
        check_schema(manifest, version)
    assert {kind for kind, _ in map(identity, objects)} >= {*custom_schemas()} - {"SeldonDeployment", "RayCluster"}


def test_the_replicas_of_a_seldon_deployment_are_where_its_scale_subresource_sets_them():
    listed = yaml.safe_load((CLUSTER / "schemas" / "custom_resources.yaml").read_text())
    workload = find(objects_of("seldon"), "SeldonDeployment", "ocr-text-detection-v5-256")
    assert listed["SeldonDeployment"]["scale"] == ".spec.replicas" and workload["spec"]["replicas"] == 2
    (predictor,) = workload["spec"]["predictors"]  # whose own replicas would take precedence
    assert "replicas" not in predictor and "replicas" not in predictor["componentSpecs"][0]


def test_the_schemas_reject_wrong_objects():
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
            check_schema(manifest)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_objects_of_the_ocr_pipeline_match_the_golden_file(flavour):
    assert golden(flavour) == golden_file(flavour).read_text(), (
        "if this change is intended, run `python tests/manifest_objects.py` and review the difference"
    )


def test_the_content_is_the_same_every_time():
    assert json.dumps(objects_of("seldon", FULL)) == json.dumps(objects_of("seldon", FULL))


def test_objects_share_no_parts():
    """Only then can a manifest be changed by itself, and written to YAML without references."""
    text = yaml.safe_dump_all(objects_of("seldon", FULL))
    assert not re.search(r"(: |- )[&*]id\d", text)


@given(pipeline=pipelines(), seed=st.integers(0, 2**32 - 1), flavour=st.sampled_from(FLAVOURS))
@settings(max_examples=8)  # a validation takes tens of milliseconds
def test_any_feasible_configuration_gives_valid_objects_in_one_namespace_that_request_its_cost(pipeline, seed, flavour):
    configuration = random_configuration(pipeline, np.random.default_rng(seed))
    objects = objects_of(flavour, FULL, pipeline, configuration)
    kinds = {
        (manifest["kind"], manifest["metadata"]["labels"].get(names.COMPONENT_LABEL)): manifest for manifest in objects
    }
    for manifest in kinds.values():
        check_schema(manifest)
    for manifest in objects:
        assert manifest["metadata"]["labels"][names.INSTANCE_LABEL] == pipeline.name
        if resource_of(manifest).namespaced:
            assert manifest["metadata"]["namespace"] == FULL.namespace
            assert names.check_name("object", manifest["metadata"]["name"])
        else:
            assert "namespace" not in manifest["metadata"]
            assert manifest["metadata"]["labels"][names.NAMESPACE_LABEL] == FULL.namespace
    assert max(Counter(map(identity, objects)).values()) == 1
    requested = 0.0
    for workload in workloads(objects):
        resources = server_of(workload)["resources"]
        assert resources["requests"] == resources["limits"]
        requested += replicas_of(workload) * millicores(resources["requests"]["cpu"]) / 1000
    overhead = FULL.gateways * FULL.gateway_millicores / 1000
    assert requested == pytest.approx(used_cores(pipeline, configuration) + overhead)


def millicores(text):
    return int(text[:-1]) if text.endswith("m") else 1000 * int(text)


@given(st.integers(1, 10**6))
def test_cpu_is_written_in_the_notation_of_kubernetes(amount):
    assert millicores(cpu(amount)) == amount
