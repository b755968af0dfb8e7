"""OCR variants as they are served, measured on rendered payloads.

``python -m opd.examples.ocr.served`` measures all variants and updates ``opd/examples/ocr/profile.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import typer

from opd.examples.ocr.models import decode_image, encode_image, line_sheet
from opd.examples.ocr.pages import Page, render_pages
from opd.host.paths import package_path
from opd.profiling.profiler import ProfilingOptions, profile_pipeline
from opd.serving.served_variant import ServedVariant

PAYLOAD_SEED = 0
"""Seed of the pages that latencies are measured on."""

PAGES = 32
"""Number of different pages that latencies are measured on."""


def true_sheet(page: Page) -> bytes:
    """Render the line sheet that a perfect detector would make of a page."""
    return encode_image(line_sheet(decode_image(page.payload, "rendered page"), np.array(page.boxes)))


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
