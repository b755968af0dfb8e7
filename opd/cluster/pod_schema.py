"""Whether something is part of a pod: the fields and types that the Kubernetes client knows.

The API server has the last word; this finds a misspelt field or a text where a number belongs before it is asked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_LIST = re.compile(r"[Ll]ist\[(.*)\]")
_MAP = re.compile(r"[Dd]ict[\[(]str, (.*)[\])]")

_PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "object": (int, str),  # a port or a share: a number or a text
}

_QUANTITIES = ("limits", "requests", "overhead", "sizeLimit")
"""Fields that the client calls text, and whose values may be numbers."""


class SchemaError(ValueError):
    """Something is no part of a pod."""


def check_pod_spec(spec: Any, place: str) -> None:
    """Raise unless every field of a partial pod specification exists and has the right type; null is any type.

    Args:
        spec: a mapping.
        place: where it is, for people.

    Raises:
        SchemaError: naming the field, and what it should be.
    """
    _check(spec, "V1PodSpec", place)


def _check(value: Any, kind: str, place: str) -> None:
    if value is None:
        return
    if listed := _LIST.fullmatch(kind):
        _require(isinstance(value, list), place, "a list", value)
        for number, element in enumerate(value):
            _require(element is not None, f"{place}[{number}]", "given", element)
            _check(element, listed[1], f"{place}[{number}]")
    elif mapped := _MAP.fullmatch(kind):
        _require(isinstance(value, Mapping), place, "a mapping", value)
        quantities = place.endswith(_QUANTITIES)
        for key, element in value.items():
            _require(isinstance(key, str), place, "a mapping with text as keys", key)
            _check(element, "object" if quantities else mapped[1], f"{place}.{key}")
    elif kind in _PLAIN:
        _check_plain(value, "object" if place.endswith(_QUANTITIES) else kind, place)
    else:
        _check_model(value, kind, place)


def _check_model(value: Any, kind: str, place: str) -> None:
    from kubernetes.client import models  # takes seconds, and most pods are not patched

    model = getattr(models, kind)
    _require(isinstance(value, Mapping), place, "a mapping", value)
    kinds = {model.attribute_map[name]: kind for name, kind in model.openapi_types.items()}
    for key, element in value.items():
        if key not in kinds:
            raise SchemaError(f"{place} has no field {key!r}; it has {', '.join(sorted(kinds))}")
        _check(element, kinds[key], f"{place}.{key}")


def _check_plain(value: Any, kind: str, place: str) -> None:
    right = isinstance(value, _PLAIN[kind]) and (kind == "bool" or not isinstance(value, bool))
    _require(right and not (isinstance(value, float) and not math.isfinite(value)), place, f"of type {kind}", value)


def _require(right: bool, place: str, what: str, value: Any) -> None:
    if not right:
        shown = repr(value)
        raise SchemaError(f"{place} must be {what}, not {shown if len(shown) < 80 else shown[:80] + '...'}")
