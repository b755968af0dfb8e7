"""Admission by the ValidatingAdmissionPolicies that the API server holds itself, in real CEL.

The checker of an API server knows more of the types of request and variables, and the two libraries are not one: Go's
there, that of C++ here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from emulator.http_server import Refusal

Key = tuple[str, str, str, str]


def check(objects: dict[Key, dict], key: Key, subresource: str, manager: str, made: dict, old: dict | None) -> None:
    """Refuse a change unless every policy that is bound admits it.

    Args:
        objects: of the API server.
        key: version, plural, namespace and name of the object.
        subresource: that is written, empty for the object itself.
        manager: of the fields that are written.
        made: the object, or its Scale, as it would be.
        old: the same as it is; None if it is created.
    """
    bound = {each["spec"]["policyName"] for each in objects.values() if each["kind"].endswith("AdmissionPolicyBinding")}
    for policy in list(objects.values()):
        if policy["kind"] == "ValidatingAdmissionPolicy" and policy["metadata"]["name"] in bound:
            request = {
                "operation": "UPDATE" if old else "CREATE",
                "resource": {"resource": key[1]},
                "subResource": subresource,
                "namespace": key[2],
                "name": key[3],
                "options": {"fieldManager": manager} if manager else {},
            }
            _check_policy(policy, key, {"object": made, "oldObject": old, "request": request})


def _check_policy(policy: dict, key: Key, known: dict[str, Any]) -> None:
    spec = policy["spec"]
    if not _matches(spec["matchConstraints"], key, known["request"]):
        return
    if not all(evaluate(each["expression"], "BOOL", known) for each in spec.get("matchConditions", [])):
        return
    known = {**known, "variables": {}}
    for each in spec.get("variables", []):
        known["variables"][each["name"]] = evaluate(each["expression"], "", known)
    for each in spec["validations"]:
        if not evaluate(each["expression"], "BOOL", known):
            words = evaluate(each["messageExpression"], "STRING", known)
            name = policy["metadata"]["name"]
            raise Refusal(422, f"ValidatingAdmissionPolicy '{name}' with binding '{name}' denied request: {words}")


def _matches(constraints: dict, key: Key, request: dict) -> bool:
    wanted = constraints["namespaceSelector"]["matchLabels"]
    resource = "/".join(filter(None, (key[1], request["subResource"])))
    group, _, version = key[0].rpartition("/")
    return wanted == {"kubernetes.io/metadata.name": key[2]} and any(
        group in rule["apiGroups"]
        and version in rule["apiVersions"]
        and resource in rule["resources"]
        and request["operation"] in rule["operations"]
        and key[3] in rule["resourceNames"]
        for rule in constraints["resourceRules"]
    )


@cache
def _environment() -> Any:
    from cel_expr_python import cel
    from cel_expr_python.ext import ext_strings

    kinds = dict.fromkeys(("object", "oldObject"), cel.Type.DYN)
    maps = dict.fromkeys(("request", "variables"), cel.Type.Map(cel.Type.STRING, cel.Type.DYN))
    return cel.NewEnv(variables={**kinds, **maps}, extensions=[ext_strings.ExtStrings()])


def evaluate(expression: str, kind: str, known: dict[str, Any]) -> Any:
    """The value of an expression, whose type must be the one of this name, any if it is empty."""
    compiled = _environment().compile(expression)
    assert not kind or compiled.return_type().name() == kind, f"{expression} is {compiled.return_type().name()}"
    value = compiled.eval(data=known)
    assert value.type().name() != "ERROR", f"{expression}: {value.value()}"
    return value.plain_value()
