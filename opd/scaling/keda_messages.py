"""The messages of KEDA's external scalers: a description of ``externalscaler.proto`` (github.com/kedacore/keda).

Only what KEDA asks of a scaler of type ``external`` is here. A test compares it with the published file.
"""

from __future__ import annotations

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

PACKAGE = "externalscaler"
SERVICE = f"{PACKAGE}.ExternalScaler"

_TEXT, _TRUTH, _WHOLE, _NUMBER = Field.TYPE_STRING, Field.TYPE_BOOL, Field.TYPE_INT64, Field.TYPE_DOUBLE
_METADATA = "ScaledObjectRef.ScalerMetadataEntry"

# Of every message the fields in the order of their numbers, from 1: name, and type or name of a message. A name in
# brackets stands for several.
_MESSAGES: dict[str, dict[str, int | str | list[str]]] = {
    "ScaledObjectRef": {"name": _TEXT, "namespace": _TEXT, "scalerMetadata": [_METADATA]},
    "IsActiveResponse": {"result": _TRUTH},
    "MetricSpec": {"metricName": _TEXT, "targetSize": _WHOLE, "targetSizeFloat": _NUMBER},
    "GetMetricSpecResponse": {"metricSpecs": ["MetricSpec"]},
    "GetMetricsRequest": {"scaledObjectRef": "ScaledObjectRef", "metricName": _TEXT},
    "MetricValue": {"metricName": _TEXT, "metricValue": _WHOLE, "metricValueFloat": _NUMBER},
    "GetMetricsResponse": {"metricValues": ["MetricValue"]},
}


def _described() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="opd/externalscaler.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            several = isinstance(kind, list)
            added = message.field.add(name=field, number=number)
            added.label = Field.LABEL_REPEATED if several else Field.LABEL_OPTIONAL
            if isinstance(kind, int):
                added.type = kind  # type: ignore[assignment]
            else:
                added.type = Field.TYPE_MESSAGE
                added.type_name = f".{PACKAGE}.{kind[0] if isinstance(kind, list) else kind}"
    entry = file.message_type[0].nested_type.add(name=_METADATA.rpartition(".")[2])
    entry.options.map_entry = True
    for number, field in enumerate(("key", "value"), start=1):
        entry.field.add(name=field, number=number, type=_TEXT, label=Field.LABEL_OPTIONAL)
    return file


# A pool of its own, so that a process may load the published file as well.
_CLASSES = message_factory.GetMessages([_described()], pool=descriptor_pool.DescriptorPool())

ScaledObjectRef = _CLASSES[f"{PACKAGE}.ScaledObjectRef"]
IsActiveResponse = _CLASSES[f"{PACKAGE}.IsActiveResponse"]
MetricSpec = _CLASSES[f"{PACKAGE}.MetricSpec"]
GetMetricSpecResponse = _CLASSES[f"{PACKAGE}.GetMetricSpecResponse"]
GetMetricsRequest = _CLASSES[f"{PACKAGE}.GetMetricsRequest"]
MetricValue = _CLASSES[f"{PACKAGE}.MetricValue"]
GetMetricsResponse = _CLASSES[f"{PACKAGE}.GetMetricsResponse"]
