"""The model store: where replicas get their variants from, a folder or object storage.

A variant is ``<url>/<task>/<variant>/`` with a manifest (:mod:`opd.serving.models`) that lists the SHA-256 of each of
its files. The manifest is written last, so a variant is there completely or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from opd.paths import project_path
from opd.serving.models import MANIFEST, read_manifest

URL_VARIABLE = "OPD_MODEL_STORE"
"""Environment variable with the URL of the store; without it, the folder ``models/store`` of the project."""

CACHE_VARIABLE = "OPD_MODEL_CACHE"
"""Environment variable with the folder for what was pulled; without it, ``.cache/models`` of the project."""

SCRATCH_PREFIX = ".pull-"
SCRATCH_SECONDS = 3600.0
"""No pull takes longer; a folder of one that is older was left by a replica that was killed."""

S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 3}}
}
"""Seconds and attempts after which object storage is given up, unless the storage options say otherwise."""


class StoreError(RuntimeError):
    """The store cannot be reached or refuses."""


class CorruptVariantError(ValueError):
    """The files of a variant are not those of its manifest."""


def store_url() -> str:
    """The URL of the model store: :data:`URL_VARIABLE`, or ``models/store`` of the project."""
    return os.environ.get(URL_VARIABLE) or str(project_path("models", "store"))


class ModelStore:
    """Variants behind an fsspec URL.

    Args:
        url: a folder or an fsspec URL, such as ``s3://bucket/store``; :func:`store_url` if not given.
        cache: folder that variants of remote stores are pulled into; :data:`CACHE_VARIABLE` if not given.
        storage_options: of the fsspec filesystem. An S3 endpoint and its credentials may also come from
            ``FSSPEC_S3_ENDPOINT_URL`` and the usual ``AWS_`` variables.

    Raises:
        StoreError: if fsspec does not know the URL's protocol, or lacks the package for it.
    """

    def __init__(self, url: str | None = None, cache: Path | None = None, **storage_options: Any) -> None:
        self.url = url or store_url()
        self._cache = cache
        options = {**(S3_OPTIONS if self.url.startswith(("s3://", "s3a://")) else {}), **storage_options}
        with self._named_errors():
            self._files, root = fsspec.core.url_to_fs(self.url, **options)
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)

    def push(self, folder: Path, task: str, variant: str) -> None:
        """Put the variant in ``folder`` into the store; another one of that name is replaced.

        Raises:
            CorruptVariantError: if the files are not those of the manifest.
            ValueError: if a name is not plain.
            StoreError: if the store cannot be written.
        """
        files = verify(folder)
        target = self._folder(task, variant)
        with self._named_errors():
            if self._files.exists(target):
                self._files.rm(target, recursive=True)
            self._files.makedirs(target, exist_ok=True)
            for name in (*files, MANIFEST):
                self._files.put_file(str(folder / name), f"{target}/{name}")

    def pull(self, task: str, variant: str) -> Path:
        """A local folder with the verified variant.

        From a local store this is the store's own folder, from a remote one a copy in the cache. Replicas may pull
        at the same time; none ever sees half a variant.

        Raises:
            KeyError: if there is no such variant, naming those there are.
            CorruptVariantError: if the files are not those of the manifest.
            StoreError: if the store cannot be read.
        """
        source = self._folder(task, variant)
        with self._named_errors():
            self._files.invalidate_cache()
            if not self._files.exists(f"{source}/{MANIFEST}"):
                raise KeyError(
                    f"no variant {variant!r} of task {task!r} in {self.url}; it has {self._listing()} "
                    "(python -m opd.examples.ocr.build makes those of the OCR pipeline)"
                )
        if self._is_local:
            verify(Path(source))
            return Path(source)
        with self._named_errors():
            manifest = self._files.cat_file(f"{source}/{MANIFEST}")
        # Named by content: a variant that is replaced in the store never changes under a replica that reads it.
        target = self._cache_folder() / task / variant / hashlib.sha256(manifest).hexdigest()[:16]
        return target if _is_intact(target) else self._copy(source, manifest, target)

    def variants(self) -> dict[str, list[str]]:
        """The variants of each task.

        Raises:
            StoreError: if the store cannot be read.
        """
        with self._named_errors():
            self._files.invalidate_cache()
            found = sorted(str(path).split("/")[-3:-1] for path in self._files.glob(f"{self._root}/*/*/{MANIFEST}"))
        return {task: [name for other, name in found if other == task] for task, _ in found}

    def _copy(self, source: str, manifest: bytes, target: Path) -> Path:
        """Copy a variant into a folder of its own, verify it there, and only then give it its place."""
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH_PREFIX) as scratch:
            copy = Path(scratch, "copy")
            copy.mkdir()
            (copy / MANIFEST).write_bytes(manifest)
            for name in manifest_files(copy):
                with self._named_errors():
                    if self._files.exists(f"{source}/{name}"):
                        self._files.get_file(f"{source}/{name}", str(copy / name))
            verify(copy, of=f"{'/'.join(source.split('/')[-2:])} in {self.url}")
            return _place(copy, target, Path(scratch, "replaced"))

    def _folder(self, task: str, variant: str) -> str:
        return f"{self._root}/{plain(task)}/{plain(variant)}"

    def _listing(self) -> str:
        return "; ".join(f"{task}: {', '.join(names)}" for task, names in self.variants().items()) or "no variant"

    def _cache_folder(self) -> Path:
        given = self._cache or os.environ.get(CACHE_VARIABLE)
        return Path(given) if given else project_path(".cache", "models")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Every filesystem has exceptions of its own: name the store they come from."""
        try:
            yield
        except (KeyError, CorruptVariantError, StoreError):
            raise
        except Exception as error:
            raise StoreError(
                f"the model store {self.url} cannot be used: {type(error).__name__}: {error}; check {URL_VARIABLE}, "
                "the endpoint and the credentials"
            ) from error


def _sweep(folder: Path) -> None:
    """Remove what replicas that were killed while they pulled have left."""
    for scratch in folder.glob(f"{SCRATCH_PREFIX}*"):
        with suppress(FileNotFoundError):  # its replica, or another one that sweeps, was faster
            if time.time() - scratch.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    try:
        verify(folder)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _place(copy: Path, target: Path, aside: Path) -> Path:
    """Move a verified copy to ``target`` unless another replica was faster; what is broken there is moved away."""
    for _ in range(3):
        try:
            os.rename(copy, target)  # fails if there is a folder with something in it
            return target
        except OSError:
            if _is_intact(target):
                return target
            try:
                os.rename(target, aside)
            except FileNotFoundError:
                continue  # another replica moved it away
            shutil.rmtree(aside)
    raise StoreError(f"{target} is broken again and again; delete the folder and see what writes to it")


def plain(name: str) -> str:
    """``name``, which is one component of a path and not hidden.

    Raises:
        ValueError: if it is not.
    """
    if not name or name.startswith(".") or any(sign in name for sign in "/\\:*?[]") or not name.isprintable():
        raise ValueError(f"{name!r} is no name for a task, variant or file: use letters, digits, '-', '_' and '.'")
    return name


def manifest_files(folder: Path) -> Mapping[str, str]:
    """Name and SHA-256 of each file that the manifest in ``folder`` lists.

    Raises:
        FileNotFoundError: if there is no manifest.
        ValueError: if it is broken, or a name is not plain.
    """
    files = read_manifest(folder)["files"]
    if not isinstance(files, dict):
        raise ValueError(f"{folder / MANIFEST}: files must map names to SHA-256 sums")
    return {plain(name): str(digest) for name, digest in files.items()}


def verify(folder: Path, of: str | None = None) -> Mapping[str, str]:
    """Check every file in ``folder`` against the manifest there.

    Args:
        folder: of the variant.
        of: what the error calls it; the folder if not given.

    Returns:
        :func:`manifest_files`.

    Raises:
        FileNotFoundError: if there is no manifest.
        CorruptVariantError: naming the first file that is missing or differs.
    """
    files = manifest_files(folder)
    for name, expected in files.items():
        found = file_hash(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            raise CorruptVariantError(
                f"{of or folder}: {name} should have the SHA-256 {expected}, but has {found}; put the variant into "
                "the store again"
            )
    return files


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, model_class: str, settings: Mapping[str, Any], **notes: Any) -> None:
    """Make ``folder`` a variant: a manifest of all the files in it.

    Args:
        folder: with the files.
        model_class: as ``module:Class``.
        settings: keyword arguments of the class.
        notes: further entries of the manifest.
    """
    files = {path.name: file_hash(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    manifest = {"class": model_class, "settings": dict(settings), "files": files, **notes}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
