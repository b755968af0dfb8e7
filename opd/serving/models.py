"""What a replica runs: any callable that turns a batch of payloads into a batch of answers.

A variant is a folder with a ``manifest.json`` that names the class, as ``module:Class``, and its settings; the other
files are the class's own.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

MANIFEST = "manifest.json"


class PayloadError(ValueError):
    """A payload is not what the model takes."""


class Model(Protocol):
    """A loaded variant; its class is called with the variant's folder and the settings of its manifest."""

    def __call__(self, payloads: Sequence[bytes]) -> list[bytes]:
        """One answer to each payload, in their order.

        Raises:
            PayloadError: if a payload is malformed.
        """
        ...


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of the variant in ``folder``: ``class``, ``settings`` and ``files``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it lacks a part.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no variant in {folder}: it holds no {MANIFEST}")
    manifest = json.loads(path.read_text())
    missing = {"class", "settings", "files"} - set(manifest if isinstance(manifest, dict) else ())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; put the variant into the store again")
    return manifest


def load_model(folder: Path) -> Model:
    """The variant in ``folder``, ready to answer.

    Raises:
        FileNotFoundError: if it holds no variant.
        ValueError: if the manifest is broken or names no class.
    """
    manifest = read_manifest(folder)
    module, _, name = str(manifest["class"]).partition(":")
    try:
        model_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} names the class {manifest['class']!r}: {error}") from error
    return model_class(folder, **manifest["settings"])
