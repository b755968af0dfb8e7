"""Arrays with a description in one file: a NumPy archive that is written completely or not at all.

An archive holds plain arrays, the name of its format and metadata as JSON, and nothing that a reader would execute.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HEADER = "header"
"""Name of the array that holds the format and the metadata."""


class ArchiveError(RuntimeError):
    """A file is missing, damaged or of another format; the message names the file and the reason."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file there replaces ``path`` at the end, or goes if an exception is raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_archive(path: Path, format_name: str, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write an archive, replacing an older one.

    Args:
        path: the file, by convention ``.npz``.
        format_name: name and version of the format, such as ``opd agent 2``.
        metadata: anything that JSON can hold.
        arrays: by name; no arrays of objects.

    Raises:
        TypeError: if JSON cannot hold the metadata.
        ValueError: if an array holds objects.
    """
    header = np.array(json.dumps({"format": format_name, "metadata": metadata}))
    objects = [name for name, array in arrays.items() if array.dtype.hasobject]
    if objects:
        raise ValueError(f"array {objects[0]!r} holds objects; an archive holds numbers and text only")
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, **{HEADER: header}, **arrays)  # type: ignore[arg-type]


def load_archive(path: Path, format_name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and arrays of an archive.

    Args:
        path: the file.
        format_name: name and version of the format that it must have.

    Raises:
        ArchiveError: if the file is missing, damaged or no archive, or has another format.
    """
    if not path.is_file():
        raise ArchiveError(f"there is no file {path}")
    try:
        found, metadata, arrays = _read(path)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{path} is damaged, or not an archive of format {format_name!r} ({error})") from error
    if found != format_name:
        raise ArchiveError(f"{path} has format {found!r}, not {format_name!r}")
    return metadata, arrays


def archive_format(path: Path) -> str:
    """Name and version of the format of an archive; empty if there is none."""
    try:
        return _read(path)[0]
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError):
        return ""


def _read(path: Path) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # compares checksums
    if damaged:
        raise zipfile.BadZipFile(f"{damaged} is damaged")
    with np.load(path, allow_pickle=False) as stored:
        arrays = dict(stored)
    header = json.loads(str(arrays.pop(HEADER)))
    return header["format"], header["metadata"], arrays
