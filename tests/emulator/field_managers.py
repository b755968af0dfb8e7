"""Who has set which field of an object, as an API server keeps it, and server-side apply.

Lists are fields as a whole: this server does not merge their elements.
"""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from emulator.http_server import Refusal

Path = tuple[str, ...]
Entries = dict[tuple[str, str, str], set[Path]]
"""Paths by manager, operation and subresource."""


def applied(found: dict, manifest: dict, manager: str, force: bool, subresource: str = "") -> dict:
    """The object after server-side apply of a manifest; ``found`` itself if nothing changes."""
    entries, me, wanted = _entries(found), (manager, "Apply", subresource), fields(manifest)
    now, conflicts = fields(found), []
    for path, value in wanted.items():
        if path not in now or now[path] != value:
            others = [entry for entry, paths in entries.items() if entry != me and path in paths]
            conflicts += [f'conflict with "{name}": .{".".join(path)}' for name, *_ in others]
            for entry in others:
                entries[entry] = entries[entry] - {path}
    if conflicts and not force:
        raise Refusal(409, f"Apply failed with {len(conflicts)} conflicts: {', '.join(conflicts)}")
    others_have = set().union(*(paths for entry, paths in entries.items() if entry != me))
    made = deepcopy(found)
    for path in entries.get(me, set()) - wanted.keys() - others_have:
        _remove(made, path)
    for path, value in wanted.items():
        _set(made, path, value)
    entries[me] = set(wanted)
    return _with_entries(found, made, entries)


def updated(found: dict, made: dict, manager: str) -> dict:
    """The object after a write of another kind, which takes every field that it changes."""
    entries, me, before, after = _entries(found), (manager, "Update", ""), fields(found), fields(made)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    entries = {entry: paths - changed for entry, paths in entries.items()}
    entries[me] = entries.get(me, set()) | (changed & after.keys())
    return _with_entries(found, made, entries)


def fields(manifest: dict) -> dict[Path, Any]:
    """Values of all fields that somebody sets, by their path."""
    metadata = {
        name: manifest["metadata"][name] for name in ("labels", "annotations") if manifest["metadata"].get(name)
    }
    content = {n: value for n, value in manifest.items() if n not in ("apiVersion", "kind", "metadata", "status")}
    return dict(_leaves({**content, **({"metadata": metadata} if metadata else {})}, ()))


def _leaves(value: Any, path: Path) -> Any:
    if isinstance(value, dict) and (value or not path):
        for name, each in value.items():
            yield from _leaves(each, (*path, name))
    else:
        yield path, value


def _set(content: dict, path: Path, value: Any) -> None:
    for name in path[:-1]:
        content = content.setdefault(name, {})
    content[path[-1]] = deepcopy(value)


def _remove(content: dict, path: Path) -> None:
    """Remove a field, and what holds nothing then."""
    name, *rest = path
    if rest and name in content:
        _remove(content[name], tuple(rest))
    if not rest or not content.get(name, True):
        content.pop(name, None)


def _entries(found: dict) -> Entries:
    listed = (found.get("metadata") or {}).get("managedFields") or []
    return {
        (each["manager"], each["operation"], each.get("subresource", "")): set(_paths(each["fieldsV1"], ()))
        for each in listed
    }


def _paths(nested: dict, path: Path) -> Any:
    for name, each in nested.items():
        here = (*path, name.removeprefix("f:"))
        yield from _paths(each, here) if each else [here]


def _with_entries(found: dict, made: dict, entries: Entries) -> dict:
    """The object with its entries, those that changed with a new time."""
    before, now, listed = _entries(found), datetime.now(UTC).isoformat(), []
    known = {
        (each["manager"], each["operation"], each.get("subresource", "")): each["time"]
        for each in (found.get("metadata") or {}).get("managedFields") or []
    }
    old, new = fields(found) if found.get("metadata") else {}, fields(made)
    for entry, paths in entries.items():
        if not paths:
            continue
        same = before.get(entry) == paths and all(old.get(path) == new.get(path) for path in paths)
        nested: dict = {}
        for path in sorted(paths):
            here = nested
            for name in path:
                here = here.setdefault(f"f:{name}", {})
        manager, operation, subresource = entry
        described = {"manager": manager, "operation": operation, "time": known[entry] if same else now}
        listed.append({**described, **({"subresource": subresource} if subresource else {}), "fieldsV1": nested})
    if listed:
        made["metadata"]["managedFields"] = listed
    return found if made == found else made
