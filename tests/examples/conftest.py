"""Model store of the OCR pipeline; these tests need optional extras of the package."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from deadlines import PATIENCE
from filelock import FileLock

from opd.host.paths import project_path

NEEDED = ("mlserver", "onnxruntime", "torchmetrics", "matplotlib")
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
