"""OCR variants as they are served, measured on rendered payloads.

``python -m opd.examples.ocr.served`` measures all variants of the catalogue and updates ``opd/examples/profiles.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from opd.examples.ocr.accuracy import true_sheet
from opd.examples.ocr.pages import render_pages
from opd.host.paths import package_path
from opd.profiling.catalogue import load_catalogue
from opd.profiling.measuring import Effort, measure_all_variants
from opd.profiling.profiles import load_profiles, save_profiles
from opd.serving.served_variant import ServedVariant

PAYLOAD_SEED = 0
"""Seed of the pages that latencies are measured on."""

PAGES = 32
"""Number of different pages that latencies are measured on."""


class OcrVariant(ServedVariant):
    """A variant of text detection or text recognition."""

    def payloads(self) -> Sequence[bytes]:
        """Pages for detection, line sheets for recognition."""
        pages = render_pages(PAGES, PAYLOAD_SEED)
        return [page.payload if self.task == "text-detection" else true_sheet(page) for page in pages]


def main() -> None:
    """Measure the variants; profiles of other tasks stay as they are."""
    catalogue = load_catalogue()
    tasks = catalogue.pipeline("ocr").tasks
    table = measure_all_variants(tasks, catalogue, Effort(1.0, min_runs=20, max_runs=100))
    others = load_profiles().query("task not in @tasks")
    save_profiles(pd.concat([others, table]), package_path("examples", "profiles.csv"))


if __name__ == "__main__":
    main()
