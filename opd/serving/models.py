"""Models that replicas run: callables that turn a batch of payloads into a batch of answers.

A variant is a folder with a ``manifest.json`` that names the model's class, as ``module:Class``, and its settings. The
other files belong to the class.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

MANIFEST = "manifest.json"


class PayloadError(ValueError):
    """A payload is not valid input for the model."""


class Model(Protocol):
    """A loaded variant; its class is called with the variant's folder and the settings of its manifest."""

    def __call__(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Return one answer for each payload, in their order.

        Raises:
            PayloadError: if a payload is malformed.
        """
        ...


def read_manifest(folder: Path) -> Mapping[str, Any]:
    """Read the manifest of the variant in ``folder``: ``class``, ``settings`` and ``files``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a part is missing.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no variant in {folder}: it has no {MANIFEST}")
    manifest = json.loads(path.read_text())
    missing = {"class", "settings", "files"} - set(manifest if isinstance(manifest, dict) else ())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}; push the variant again")
    return manifest


def load_model(folder: Path) -> Model:
    """Load the variant in ``folder``.

    Raises:
        FileNotFoundError: if it is not a variant.
        ValueError: if the manifest is broken or names no class.
    """
    manifest = read_manifest(folder)
    module, _, name = str(manifest["class"]).partition(":")
    try:
        model_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST}: class {manifest['class']!r} cannot be loaded: {error}") from error
    return model_class(folder, **manifest["settings"])
