"""Requests for emulated pipelines."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from opd.serving.contents import PAYLOAD

REQUESTS = 16
"""Different requests in the file of samples."""


def emulated_samples(folder: Path) -> Path:
    """Write requests for emulated pipelines: texts, which the pipeline returns.

    Returns:
        The file, see :mod:`opd.serving.samples`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "emulated_requests.parquet"
    texts = [f"emulated request {number}".encode() for number in range(REQUESTS)]
    pd.DataFrame({PAYLOAD: texts}).to_parquet(path, index=False)
    return path
