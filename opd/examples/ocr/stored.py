"""Variants of the model store as the profiler measures them: served, on rendered payloads.

``python -m opd.examples.ocr.stored`` measures all those of the catalogue and puts them into the package's
``profiles.csv``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from opd.examples.ocr.models import decode_image, encode_image, line_sheet
from opd.examples.ocr.pages import Page, render_pages
from opd.paths import package_path
from opd.profiling.catalogue import load_catalogue
from opd.profiling.measuring import Effort, measure_all_variants
from opd.profiling.profiles import load_profiles, save_profiles
from opd.serving.models import load_model
from opd.serving.store import ModelStore, store_url

PAYLOAD_SEED = 0
"""Of the pages that latencies are measured on."""

PAGES = 32
"""Different pages that latencies are measured on."""

START_SECONDS = 30.0
CALL_SECONDS = 10.0


def true_sheet(page: Page) -> bytes:
    """The line sheet that a perfect detector would make of a page."""
    return encode_image(line_sheet(decode_image(page.payload, "rendered page"), np.array(page.boxes)))


@dataclass(frozen=True)
class StoredVariant:
    """A variant of the model store as :class:`opd.profiling.measuring.Measurable`: a replica that serves it.

    A call is what a stage's queue waits for: beyond the model's own time that is gRPC, MLServer, and waking up a
    process that has slept.

    Attributes:
        task: ``text-detection`` or ``text-recognition``.
        variant: name in the store.
        clock: seconds of the time that passes, by which a call is timed.
        pause: seconds between two calls, as under light load.
        max_cores: cores that the models use.
    """

    task: str
    variant: str
    clock = staticmethod(time.perf_counter)
    pause: ClassVar[float] = 0.1
    max_cores: ClassVar[int] = 1

    @contextmanager
    def loaded(self, seed: int) -> Iterator[tuple[Callable[[Sequence[bytes]], list[bytes]], float]]:
        """A replica of the variant, in a process of its own.

        Args:
            seed: not needed, as the weights are real.

        Yields:
            What answers a batch, and the CPU seconds to pull and load the variant and answer once.

        Raises:
            KeyError: if the store has no such variant.
            StartError: if the replica does not come up.
        """
        from opd.serving.client import Client  # needs MLServer, which only measuring does
        from opd.serving.processes import model_process, running

        seconds = self._load_seconds()
        with TemporaryDirectory() as folder, asyncio.Runner() as runner:
            process = model_process("replica", "ocr", self.task, self.variant, store_url(), Path(folder))
            with running(process, START_SECONDS):
                client = runner.run(_connected(Client, process.grpc_address, self.task))
                try:
                    yield lambda payloads: runner.run(client.infer(payloads, 0.0, CALL_SECONDS)), seconds
                finally:
                    runner.run(client.close())

    def _load_seconds(self) -> float:
        payloads = next(self.inputs(1))
        start = time.thread_time()
        load_model(ModelStore().pull(self.task, self.variant))(payloads)
        return time.thread_time() - start

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        """Nothing to set: the models run on one thread.

        Raises:
            ValueError: if more are asked for.
        """
        if count != 1:
            raise ValueError(f"{self.task}/{self.variant} runs on one thread and cannot be measured on {count} cores")
        yield

    def inputs(self, batch_size: int) -> Iterator[list[bytes]]:
        """Batches of different rendered pages, again and again: pages for detection, line sheets for recognition."""
        pages = list(render_pages(PAGES, PAYLOAD_SEED))
        payloads = cycle([page.payload if self.task == "text-detection" else true_sheet(page) for page in pages])
        while True:
            yield [next(payloads) for _ in range(batch_size)]

    def infer(self, model: Callable[[Sequence[bytes]], list[bytes]], inputs: Iterator[list[bytes]]) -> list[bytes]:
        """One call of the replica."""
        return model(next(inputs))


async def _connected(client: Callable[[str, str], Any], address: str, task: str) -> Any:
    return client(address, task)  # a channel belongs to the event loop that runs when it is made


def main() -> None:
    """The command line: rows of other tasks stay as they are."""
    catalogue = load_catalogue()
    tasks = catalogue.pipeline("ocr").tasks
    table = measure_all_variants(tasks, catalogue, Effort(1.0, min_runs=20, max_runs=100))
    others = load_profiles().query("task not in @tasks")
    save_profiles(pd.concat([others, table]), package_path("examples", "profiles.csv"))


if __name__ == "__main__":
    main()
