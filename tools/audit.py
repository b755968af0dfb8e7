"""Compare the pinned packages with published advisories, without a network: ``python tools/audit.py FOLDER``.

FOLDER holds advisories in the OSV format as YAML or JSON, such as a clone of ``pypa/advisory-database``. It says as
much as these advisories are new. Where there is a network, ``pip-audit`` asks for those of the day.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def read_pins(path: Path) -> dict[str, str]:
    """Pinned versions by canonical name."""
    lines = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def advisories(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Advisories in a folder that have not been withdrawn."""
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.json")]):
        content = yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if isinstance(content, Mapping) and "affected" in content and "withdrawn" not in content:
            yield content


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Tell whether an entry ``affected`` of an advisory covers a version: by its list, or by a range of versions."""
    if version in affected.get("versions", ()):
        return True
    return any(
        _in_range(Version(version), each["events"])
        for each in affected.get("ranges", ())
        if each.get("type") in ("ECOSYSTEM", "SEMVER")
    )


def _in_range(version: Version, events: list[Mapping[str, str]]) -> bool:
    """Follow the events of a range, whatever order they are given in, up to the version."""
    bounds = []
    for kind, at in (item for event in events for item in event.items()):
        with suppress(InvalidVersion):
            bounds.append((Version(at), kind))
    inside = False
    for bound, kind in sorted(bounds):
        if kind == "introduced" and version >= bound:
            inside = True
        elif (kind == "fixed" and version >= bound) or (kind == "last_affected" and version > bound):
            inside = False
    return inside


def findings(pins: Mapping[str, str], folder: Path) -> tuple[list[str], int, str]:
    """Advisories that cover a pin, as lines; how many were read; the newest date of one."""
    found, count, newest = set(), 0, ""
    for advisory in advisories(folder):
        count, newest = count + 1, max(newest, str(advisory.get("modified", "")))
        for affected in advisory["affected"]:
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in pins and is_affected(pins[name], affected):
                summary = " ".join(str(advisory.get("summary") or advisory.get("details") or "").split())
                found.add(
                    f"{name} {pins[name]}: {advisory['id']} ({', '.join(advisory.get('aliases', []))}) {summary[:100]}"
                )
    return sorted(found), count, newest


def main() -> int:
    """Print what was found; exit code 1 if anything was, 2 if there were no advisories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="advisories in the OSV format")
    parser.add_argument("--constraints", type=Path, default=CONSTRAINTS, help="pinned packages")
    given = parser.parse_args()
    pins = read_pins(given.constraints)
    found, count, newest = findings(pins, given.folder)
    if not count:
        print(f"error: there is no advisory in {given.folder}; clone pypa/advisory-database and name that folder")
        return 2
    print("\n".join(found) or "no advisory covers a pinned package")
    print(f"{len(pins)} pins, {count} advisories, the newest of {newest[:10]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
