"""The model store, a folder or object storage from which replicas pull their variants.

A variant is a folder ``<url>/<task>/<variant>/`` with a manifest (:mod:`opd.serving.manifest`) that lists the SHA-256
of every file. The manifest is uploaded last, so a variant is either complete or absent.
"""

from __future__ import annotations

import hashlib
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

from opd.host.archive import written_whole
from opd.host.documents import as_model
from opd.host.errors import reason_of
from opd.host.paths import project_path
from opd.serving.manifest import MANIFEST, Manifest, plain, read_manifest

STORE_URL_VARIABLE = "OPD_MODEL_STORE"
"""Environment variable with the URL of the store; by default the folder ``models/store`` of the project."""

CACHE_VARIABLE = "OPD_MODEL_CACHE"
"""Environment variable with the folder for pulled variants; by default ``.cache/models`` of the project."""

SCRATCH_PREFIX = ".pull-"
"""Prefix of the folders that variants are pulled into."""

SCRATCH_SECONDS = 3600.0
"""Longer than any pull takes; an older folder was left by a replica that was killed."""

S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 3}}
}
"""Timeouts in seconds and attempts for object storage, unless the storage options set others."""


class StoreError(RuntimeError):
    """The store cannot be reached or refuses a request."""


class CorruptVariantError(ValueError):
    """The files of a variant do not match its manifest."""


def store_url(project: Path | None = None) -> str:
    """URL of the model store: :data:`STORE_URL_VARIABLE`, or ``models/store`` of a project (default: ours)."""
    return os.environ.get(STORE_URL_VARIABLE) or str((project or project_path()) / "models" / "store")


class ModelStore:
    """Variants behind an fsspec URL.

    Args:
        url: folder or fsspec URL, such as ``s3://bucket/store``; by default :func:`store_url`.
        cache: folder for variants pulled from remote stores; by default that of :data:`CACHE_VARIABLE`.
        storage_options: options of the fsspec filesystem. An S3 endpoint and its credentials may also come from
            ``FSSPEC_S3_ENDPOINT_URL`` and the usual ``AWS_`` variables.

    Raises:
        StoreError: if fsspec does not support the URL's protocol, or the package for it is missing.
    """

    def __init__(self, url: str | None = None, cache: Path | None = None, **storage_options: Any) -> None:
        self.url = url or store_url()
        self._cache = cache
        options = {**(S3_OPTIONS if self.url.startswith(("s3://", "s3a://")) else {}), **storage_options}
        with self._named_errors():
            self._files, root = fsspec.core.url_to_fs(self.url, **options)
        self._root = str(root).rstrip("/")
        self._is_local = isinstance(self._files, LocalFileSystem)

    def push(self, folder: Path, task: str, variant: str) -> bool:
        """Upload the variant in ``folder``, see :meth:`put`.

        Raises:
            CorruptVariantError: if the files do not match the manifest.
        """
        files = verify(folder)
        return self.put({name: folder / name for name in files}, read_manifest(folder), task, variant)

    def put(self, files: Mapping[str, Path], manifest: Manifest, task: str, variant: str) -> bool:
        """Upload a variant, replacing one of the same name unless that is the same.

        Args:
            files: local files by their name in the manifest.
            manifest: manifest of the variant.
            task: name of the task.
            variant: name of the variant.

        Returns:
            whether anything was written.

        Raises:
            ValueError: if a name is not plain.
            StoreError: if the store cannot be written.
        """
        target, content = self._folder(task, variant), manifest.document.encode()
        with self._named_errors():
            if self._has(target, content):
                return False
            if self._files.exists(target):
                self._files.rm(target, recursive=True)
            for name, path in files.items():
                self._files.makedirs(f"{target}/{name}".rpartition("/")[0], exist_ok=True)
                self._files.put_file(str(path), f"{target}/{name}")
            self._files.makedirs(target, exist_ok=True)
            self._write_manifest(f"{target}/{MANIFEST}", content)
        return True

    def _write_manifest(self, path: str, content: bytes) -> None:
        """Write a manifest whole or not at all, as object storage does, also where the disk is full."""
        if not self._is_local:
            self._files.pipe_file(path, content)
            return
        with written_whole(Path(path)) as unfinished:
            unfinished.write_bytes(content)

    def _has(self, folder: str, manifest: bytes) -> bool:
        """Check whether the store has this variant, intact as far as can be told without downloading it."""
        self._files.invalidate_cache()
        if not self._files.exists(f"{folder}/{MANIFEST}") or self._files.cat_file(f"{folder}/{MANIFEST}") != manifest:
            return False
        if self._is_local:
            return _is_intact(Path(folder))
        return all(self._files.exists(f"{folder}/{name}") for name in Manifest.model_validate_json(manifest).files)

    def pull(self, task: str, variant: str) -> Path:
        """Return a local folder with the verified variant.

        For a local store this is the store's own folder, for a remote one a copy in the cache. Replicas may pull
        concurrently; none ever sees an incomplete variant.

        Raises:
            KeyError: if the store does not have the variant; names those it has.
            CorruptVariantError: if the files do not match the manifest.
            StoreError: if the store cannot be read.
        """
        source = self._folder(task, variant)
        with self._named_errors():
            self._files.invalidate_cache()
            if not self._files.exists(f"{source}/{MANIFEST}"):
                raise KeyError(
                    f"no variant {variant!r} of task {task!r} in {self.url}; it has {self._listing()}; push the "
                    f"variant, or set {STORE_URL_VARIABLE} to the store that has it"
                )
            manifest = self._files.cat_file(f"{source}/{MANIFEST}")
        if self._is_local:
            verify(Path(source))
            return Path(source)
        # Named by content, so that replacing a variant in the store does not change it under a replica that reads it.
        target = self._cache_folder() / task / variant / hashlib.sha256(manifest).hexdigest()[:16]
        return target if _is_intact(target) else self._copy(source, manifest, target)

    def variants(self) -> dict[str, list[str]]:
        """Return the names of the variants of each task.

        Raises:
            StoreError: if the store cannot be read.
        """
        with self._named_errors():
            self._files.invalidate_cache()
            found = sorted(str(path).split("/")[-3:-1] for path in self._files.glob(f"{self._root}/*/*/{MANIFEST}"))
        return {task: [name for other, name in found if other == task] for task, _ in found}

    def _copy(self, source: str, manifest: bytes, target: Path) -> Path:
        """Download a variant into a scratch folder, verify it there, and then move it to ``target``."""
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=SCRATCH_PREFIX) as scratch:
            copy = Path(scratch, "copy")
            copy.mkdir()
            (copy / MANIFEST).write_bytes(manifest)
            for name in read_manifest(copy).files:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
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
        return Path(self._cache or os.environ.get(CACHE_VARIABLE) or project_path(".cache", "models"))

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Turn the exceptions of every filesystem into :class:`StoreError`, which names the store."""
        try:
            yield
        except (KeyError, CorruptVariantError, StoreError):
            raise
        except Exception as error:
            raise StoreError(
                f"the model store {self.url} cannot be used: {reason_of(error)}; check "
                f"{STORE_URL_VARIABLE}, the endpoint and the credentials"
            ) from error


def _sweep(folder: Path) -> None:
    """Remove scratch folders of replicas that were killed while they pulled."""
    for scratch in folder.glob(f"{SCRATCH_PREFIX}*"):
        with suppress(FileNotFoundError):  # removed meanwhile by its own replica or by another one
            if time.time() - scratch.stat().st_mtime > SCRATCH_SECONDS:
                shutil.rmtree(scratch, ignore_errors=True)


def _is_intact(folder: Path) -> bool:
    try:
        verify(folder)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _place(copy: Path, target: Path, aside: Path) -> Path:
    """Move a verified copy to ``target`` unless another replica already has; a damaged variant there is removed."""
    for _ in range(3):
        try:
            os.rename(copy, target)  # fails if the folder exists and is not empty
            return target
        except OSError:
            if _is_intact(target):
                return target
            try:
                os.rename(target, aside)
            except FileNotFoundError:
                continue  # another replica removed it
            shutil.rmtree(aside)
    raise StoreError(f"{target} keeps getting damaged; delete the folder and find out what writes to it")


def verify(folder: Path, of: str | None = None) -> Mapping[str, str]:
    """Check every file in ``folder`` against the manifest there.

    Args:
        folder: folder of the variant.
        of: name of the variant in errors; by default the folder.

    Returns:
        SHA-256 by name of the file.

    Raises:
        FileNotFoundError: if there is no manifest.
        DocumentError: if the manifest is broken.
        CorruptVariantError: if a file is missing, differs or is linked from outside; names the first.
    """
    files = read_manifest(folder).files
    for name, expected in files.items():
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise CorruptVariantError(f"{of or folder}: {name} is a link out of the folder; copy the file into it")
        found = file_hash(folder / name) if (folder / name).is_file() else "no file"
        if found != expected:
            raise CorruptVariantError(
                f"{of or folder}: {name} should have the SHA-256 {expected}, but has {found}; push the variant again"
            )
    return files


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, runtime: str, settings: Mapping[str, Any], origin: Any = None) -> None:
    """Turn ``folder`` into a variant by adding a manifest of all its files.

    Args:
        folder: folder with the files, in subfolders as well.
        runtime: import path of the MLServer runtime.
        settings: parameters of the runtime's settings.
        origin: what the variant was made of.

    Raises:
        DocumentError: if a name or setting is not valid.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    (folder / MANIFEST).write_text(manifest_of(files, runtime, settings, origin).document)


def manifest_of(files: Mapping[str, Path], runtime: str, settings: Mapping[str, Any], origin: Any = None) -> Manifest:
    """Make the manifest of some files by their names in the variant; otherwise like :func:`write_manifest`."""
    hashes = {name: file_hash(path) for name, path in files.items()}
    content = {"runtime": runtime, "settings": dict(settings), "files": hashes, "origin": origin}
    return as_model(Manifest, content, MANIFEST)
