"""Objects of the OCR pipeline to test with, and their published schemas.

``python tests/manifest_objects.py`` rewrites the golden files.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jsonschema
import kubernetes_validate
import yaml

from opd.cluster.manifests.pipeline import pipeline_objects
from opd.cluster.manifests.workloads import template_of
from opd.cluster.settings import ClusterSettings, Flavour
from opd.host.documents import as_model
from opd.pipeline import Configuration, Pipeline, StageConfiguration
from opd.profiling.pipelines import load_pipeline

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "tests" / "cluster"

FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

OLDEST, NEWEST = KUBERNETES = ("1.25", "1.37")
"""Versions of Kubernetes whose schemas the objects must match."""

CONFIGURATION = (StageConfiguration(1, 2, 2), StageConfiguration(4, 1, 1))


def changed(settings: ClusterSettings, **changes: Any) -> ClusterSettings:
    """Settings that differ in these values, checked like those of a file."""
    return as_model(ClusterSettings, {**dict(settings), **changes}, "settings")


PLAIN = ClusterSettings(namespace="pipelines", image="registry.example/opd:1.0", store="s3://models/store")
FULL = changed(
    PLAIN,
    storage_secret="opd-store",
    istio_gateway="istio-system/gateway",
    istio_host="ocr.example",
    pod_monitor=True,
    monitoring_labels={"release": "prometheus"},
    network_policy=True,
    gateways=2,
    dashboard=True,
    admission=True,
    alerts=True,
    priority_class="edge-serving",
    prefetch=True,
)


def objects_of(
    flavour: str = "deployment",
    settings: ClusterSettings = PLAIN,
    pipeline: Pipeline | None = None,
    configuration: Configuration = CONFIGURATION,
) -> list[dict]:
    """Objects of a pipeline, the OCR pipeline if none is given."""
    return pipeline_objects(pipeline or load_pipeline("ocr"), configuration, changed(settings, flavour=flavour))


def identity(manifest: dict) -> tuple[str, str]:
    """Kind and name."""
    return manifest["kind"], manifest["metadata"]["name"]


def find(objects: list[dict], kind: str, name: str) -> dict:
    """The object of this kind and name."""
    return {identity(manifest): manifest for manifest in objects}[kind, name]


def workloads(objects: list[dict]) -> list[dict]:
    """Deployments and SeldonDeployments."""
    return [manifest for manifest in objects if manifest["kind"] in ("Deployment", "SeldonDeployment")]


def server_of(workload: dict) -> dict:
    """Our container in the pods of a workload."""
    return template_of(workload)["spec"]["containers"][0]


def golden(flavour: str) -> str:
    """Content of a golden file."""
    return yaml.safe_dump_all(objects_of(flavour, changed(FULL, dashboard=False)), sort_keys=False, width=120)


def golden_file(flavour: str) -> Path:
    """Path of a golden file."""
    return CLUSTER / "golden" / f"ocr-{flavour}.yaml"


# --- schemas ---------------------------------------------------------------------------------------------------------


@cache
def custom_schemas() -> dict[str, tuple[str, dict]]:
    """API version and strict schema of each kind that is not built into Kubernetes.

    The folder in ``OPD_CRDS`` may hold definitions of the resources, whose schemas are used then.
    """
    listed = yaml.safe_load((CLUSTER / "schemas" / "custom_resources.yaml").read_text())
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


def strict(schema: Any) -> Any:
    """A schema that refuses unknown fields, which the API server silently drops."""
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


def check_schema(manifest: dict, version: str = NEWEST) -> None:
    """Raises unless an object matches its schema in a version of Kubernetes."""
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


if __name__ == "__main__":
    for each in FLAVOURS:
        golden_file(each).write_text(golden(each))
