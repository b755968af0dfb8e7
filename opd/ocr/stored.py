"""Variants of the model store as the profiler measures them: on rendered payloads.

``python -m opd.ocr.stored`` measures all those of the catalogue and puts them into ``data/profiles.csv``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd

from opd.ocr.models import decode_image, encode_image, line_sheet
from opd.ocr.pages import Page, render_pages
from opd.paths import project_path
from opd.profiles import STORED, load_catalogue, load_profiles, measure_tasks, save_profiles
from opd.serving.models import Model, load_model
from opd.serving.store import ModelStore

PAYLOAD_SEED = 0
"""Of the pages that latencies are measured on."""


def true_sheet(page: Page) -> bytes:
    """The line sheet that a perfect detector would make of a page."""
    return encode_image(line_sheet(decode_image(page.payload, "rendered page"), np.array(page.boxes)))


@dataclass(frozen=True)
class StoredVariant:
    """What :func:`opd.profiles.measure` needs of a variant in the model store.

    Attributes:
        task: ``text-detection`` or ``text-recognition``.
        variant: name in the store.
    """

    task: str
    variant: str

    def load(self, seed: int) -> tuple[Model, float]:
        """The model as a new replica gets it, and the CPU seconds to pull, load and answer once.

        Args:
            seed: not needed, as the weights are real.

        Raises:
            KeyError: if the store has no such variant.
        """
        payloads = self.inputs(1)
        start = time.thread_time()
        model = load_model(ModelStore().pull(self.task, self.variant))
        model(payloads)
        return model, time.thread_time() - start

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Nothing to set: the models run on one thread.

        Raises:
            ValueError: if more are asked for.
        """
        if count != 1:
            raise ValueError(f"{self.task}/{self.variant} runs on one thread and cannot be measured on {count} cores")
        yield

    def inputs(self, batch_size: int) -> list[bytes]:
        """Payloads of as many rendered pages: the pages for detection, their line sheets for recognition."""
        pages = render_pages(batch_size, PAYLOAD_SEED)
        return [page.payload if self.task == "text-detection" else true_sheet(page) for page in pages]

    def infer(self, model: Model, inputs: Sequence[bytes]) -> list[bytes]:
        """One call of the model."""
        return model(inputs)


def main() -> None:
    """The command line: rows of other tasks stay as they are."""
    content = load_catalogue()
    tasks = [
        name
        for name, task in content["tasks"].items()
        if all(variant["architecture"].startswith(STORED) for variant in task["variants"].values())
    ]
    table = measure_tasks(tasks, content, cell_seconds=1.0, min_runs=20, max_runs=100)
    others = load_profiles().query("task not in @tasks")
    save_profiles(pd.concat([others, table]), project_path("data", "profiles.csv"))


if __name__ == "__main__":
    main()
