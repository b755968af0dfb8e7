"""Models of the examples, built once; these tests need optional extras of the package."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from importlib.util import find_spec

import pytest
from deadlines import PATIENCE
from filelock import FileLock

from opd.host.paths import package_path, project_path

NEEDED = ("mlserver", "onnxruntime", "torchmetrics", "matplotlib", "safetensors", "tokenizers")
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="session")
def ocr_store():
    """Model store of the OCR pipeline, built once for all tests and kept between runs."""
    from opd.examples.ocr.build import build_store
    from opd.serving.store import ModelStore

    folder = project_path(".cache", "ocr_store")
    folder.mkdir(parents=True, exist_ok=True)
    store = ModelStore(str(folder))
    with FileLock(folder.with_suffix(".lock"), timeout=PATIENCE):  # test processes may build it at the same time
        build_store(store)
    return store


@pytest.fixture(scope="session")
def text_folder():
    """Models of the text example and their measured accuracies, kept as long as its code and these versions stay."""
    from opd.examples.text.build import accuracies, build

    sources = sorted([*package_path("examples", "text").glob("*.py"), package_path("examples", "text", "phrases.yaml")])
    content = [path.read_bytes() for path in sources]
    content += [version(name).encode() for name in ("numpy", "onnxruntime", "scikit-learn", "tokenizers")]
    folder = project_path(".cache", f"text-{hashlib.sha256(b''.join(content)).hexdigest()[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock"), timeout=PATIENCE):
        if not (folder / "accuracies.csv").is_file():
            build(folder, project_path(".cache", "wheels"))
            accuracies(folder).to_csv(folder / "accuracies.csv", index=False)
    return folder
