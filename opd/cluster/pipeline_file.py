"""A pipeline that its user describes, for models of their own in the model store, from a YAML file.

.. code-block:: yaml

    name: shop
    capacity: 8          # cores that all replicas may use together
    max_replicas: 4      # of a task
    max_batch_size: 4    # a power of two
    latency_sla: 1.0     # seconds
    tasks:
      - name: detect
        variants:
          - name: small
            accuracy: 0.81
            cores: 1                         # of one replica
            latency: {1: 0.02, 2: 0.03, 4: 0.05}  # seconds of a call, by batch size
            startup_time: 3.0                # seconds

Every key is needed and no other is allowed: where a pipeline runs is said on the command line, never by its file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.cluster.documents import read_document
from opd.cluster.names import check_names
from opd.pipeline import Pipeline, Task, Variant

MOST: Mapping[str, int] = {"capacity": 10_000, "max_replicas": 1000, "max_batch_size": 1024, "cores": 256}
"""Limits of the whole numbers."""

_PIPELINE = ("name", "capacity", "max_replicas", "max_batch_size", "latency_sla", "tasks")
_TASK = ("name", "variants")
_VARIANT = ("name", "accuracy", "cores", "latency", "startup_time")


class PipelineFileError(ValueError):
    """A file describes no pipeline."""


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline that a file describes.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is no plain YAML document, or too large a one.
        PipelineFileError: naming the place, the value and the limit.
        BadNameError: if a name is no DNS label, or two objects of the pipeline would share one.
        InfeasibleError: if no configuration fits the capacity.
    """
    content = read_document(path)
    given = _keys(content, _PIPELINE, str(path))
    tasks = tuple(_task(each, f"{path}: tasks[{n}]") for n, each in enumerate(_list(given, "tasks", str(path))))
    limits = {name: _whole(given, name, str(path)) for name in ("capacity", "max_replicas", "max_batch_size")}
    pipeline = Pipeline(given["name"], tasks, **limits, latency_sla=_number(given, "latency_sla", str(path)))
    check_names(pipeline)
    return pipeline


def _task(content: Any, place: str) -> Task:
    given = _keys(content, _TASK, place)
    variants = _list(given, "variants", place)
    return Task(given["name"], tuple(_variant(each, f"{place}.variants[{n}]") for n, each in enumerate(variants)))


def _variant(content: Any, place: str) -> Variant:
    given = _keys(content, _VARIANT, place)
    latency = given["latency"]
    if not isinstance(latency, Mapping) or not all(type(size) is int for size in latency):
        raise PipelineFileError(f"{place}.latency must map batch sizes to seconds, such as {{1: 0.02, 2: 0.03}}")
    return Variant(
        given["name"],
        _number(given, "accuracy", place),
        _whole(given, "cores", place),
        {size: _number(latency, size, f"{place}.latency") for size in latency},
        _number(given, "startup_time", place),
    )


def _keys(content: Any, keys: Sequence[str], place: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise PipelineFileError(f"{place} must be a mapping of {', '.join(keys)}, not {type(content).__name__}")
    for key in content:
        if key not in keys:
            raise PipelineFileError(f"{place} may not set {key!r}, only {', '.join(keys)}")
    missing = [key for key in keys if key not in content]
    if missing:
        raise PipelineFileError(f"{place} lacks {', '.join(missing)}")
    if not isinstance(content["name"], str):
        raise PipelineFileError(f"{place}.name {content['name']!r} must be text; put it in quotes")
    return content


def _list(given: Mapping[str, Any], key: str, place: str) -> Sequence[Any]:
    if not isinstance(given[key], list) or not given[key]:
        raise PipelineFileError(f"{place}.{key} must be a list of at least one")
    return given[key]


def _whole(given: Mapping[str, Any], key: str, place: str) -> int:
    value = given[key]
    if type(value) is not int or not 1 <= value <= MOST[key]:
        raise PipelineFileError(f"{place}.{key} {value!r} must be a whole number within 1..{MOST[key]}")
    return value


def _number(given: Mapping[Any, Any], key: Any, place: str) -> float:
    value = given[key]
    if type(value) not in (int, float) or not math.isfinite(value):
        raise PipelineFileError(f"{place}.{key} {value!r} must be a finite number")
    return float(value)
