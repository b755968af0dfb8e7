"""OCR variants as they are served, measured on rendered payloads.

``python -m opd.examples.ocr.served`` measures all variants and updates ``opd/examples/ocr/profile.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from opd.examples.ocr.accuracy import true_sheet
from opd.examples.ocr.pages import render_pages
from opd.host.paths import package_path
from opd.profiling.profiler import ProfilingOptions, profile_pipeline
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


app = typer.Typer(add_completion=False)


@app.command()
def main(
    again: Annotated[bool, typer.Option("--again", help="Measure again what was measured before.")] = False,
) -> None:
    """Measure the variants of the OCR pipeline as they are served, and update its profile."""
    profile_pipeline("ocr", package_path("examples", "ocr", "profile.csv"), OcrVariant, ProfilingOptions(again=again))


if __name__ == "__main__":
    app()
