"""Description of the machine that measures: hardware and versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "numpy", "onnxruntime")
"""Packages that determine the speed of a model; their versions are part of the description."""


def hardware(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Describe this machine: processor, cores, operating system, and versions of Python and packages.

    Args:
        packages: to list in addition to :data:`PACKAGES`.

    Returns:
        Facts by name; the version of a package that is not installed is None.
    """
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = lines[0].split(":", 1)[1].strip() if lines else processor
    return {
        "processor": processor,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        **versions((*PACKAGES, *packages)),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Versions of Python and packages by name; that of a package that is not installed is None."""
    return {"python": platform.python_version(), **{package: _version(package) for package in packages}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
