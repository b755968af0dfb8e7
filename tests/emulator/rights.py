"""Rights by the Roles and RoleBindings that the API server holds itself."""

from __future__ import annotations

from collections.abc import Iterable

from emulator.http_server import Refusal

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


def verb_of(method: str, name: str, watches: bool) -> str:
    """The verb of a request."""
    return VERBS.get(method) or ("watch" if watches else "get" if name else "list")


def check(
    objects: Iterable[dict], account: str, namespace: str, group: str, resource: str, verb: str, name: str
) -> None:
    """Refuse unless a Role that is bound to a ServiceAccount of the namespace allows it."""
    here = [each for each in objects if each["metadata"].get("namespace") == namespace]
    bound = {
        each["roleRef"]["name"]
        for each in here
        if each["kind"] == "RoleBinding" and any(subject["name"] == account for subject in each["subjects"])
    }
    for role in (each for each in here if each["kind"] == "Role" and each["metadata"]["name"] in bound):
        for rule in role["rules"]:
            named = "resourceNames" not in rule or name in rule["resourceNames"]
            if group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"] and named:
                return
    raise Refusal(403, f'User "{account}" cannot {verb} resource "{resource}" in API group "{group}": {name!r}')
