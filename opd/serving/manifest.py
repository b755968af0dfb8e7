"""The manifest of a variant: which runtime loads it, with which settings, and the SHA-256 of every file.

It is the file ``manifest.json`` in the variant's folder. Names of files are relative, with ``/`` between folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from opd.host.documents import DocumentModel, as_model, read_json

MANIFEST = "manifest.json"

CODE = "code"
"""Subfolder with Python modules of a variant; it is on the import path while the variant is loaded."""


def plain(name: str) -> str:
    """Return ``name`` if it is a single path component that is not hidden.

    Raises:
        ValueError: if it is not.
    """
    if not name or name.startswith(".") or any(sign in name for sign in "/\\:*?[]") or not name.isprintable():
        raise ValueError(f"{name!r} is not a valid name; use letters, digits, '-', '_' and '.'")
    return name


def plain_path(name: str) -> str:
    """Return ``name`` if it is a relative path whose components are all :func:`plain`, so it cannot leave its folder.

    Raises:
        ValueError: if it is not.
    """
    for part in name.split("/"):
        try:
            plain(part)
        except ValueError as error:
            raise ValueError(f"file {name!r}: {error}") from error
    return name


class Manifest(DocumentModel):
    """Content of :data:`MANIFEST`."""

    runtime: str = Field(pattern=r"^\w+(\.\w+)+$", examples=["mlserver_sklearn.SKLearnModel"])
    """import path of an MLServer runtime"""
    settings: dict[str, Any] = {}
    """parameters of MLServer's model settings; ``uri`` is relative to the variant's folder"""
    files: dict[
        Annotated[str, AfterValidator(plain_path)], Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    ]
    """SHA-256 by name of the file"""
    origin: Any = None
    """what the variant was made of, for those who rebuild it"""

    @property
    def document(self) -> str:
        """Content of the file."""
        return json.dumps(self.model_dump(), indent=2) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the variant in ``folder``.

    Raises:
        FileNotFoundError: if there is none.
        DocumentError: if it is broken.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no variant in {folder}: it has no {MANIFEST}")
    return as_model(Manifest, read_json(path, "store the variant again"), str(path))
