"""Rendered pages with known text, like the labels, signs and receipts that a small edge camera sees.

The pages are synthetic: text, fonts, colours and wear are drawn from a seed. All pages have the same size and two lines
of text, so every request of a live run is the same amount of work.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PAGE_SIZE = (512, 256)
"""Width and height of every page in pixels."""

LINES = 2
"""Lines of text on every page."""

SPLIT_SEEDS = {"choose": 11, "report": 22}
"""Seeds of the pages that variants are chosen on, and of the pages that their accuracy is reported on."""

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
)
"""TrueType files in matplotlib."""

MARGIN = 0.12
"""Margin of a true box around the ink as a fraction of its height, about as annotators draw them."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of the page."""


@dataclass(frozen=True)
class Page:
    """A rendered page.

    Attributes:
        payload: JPEG file.
        lines: of text, top to bottom.
        boxes: upright box around each line, with :data:`MARGIN`.
    """

    payload: bytes
    lines: tuple[str, ...]
    boxes: tuple[Box, ...]

    @property
    def text(self) -> str:
        """The lines joined by newlines."""
        return "\n".join(self.lines)


def render_pages(count: int, seed: int, wear: float = 1.0) -> Iterator[Page]:
    """Render pages; page i of a seed does not depend on the number of pages.

    Args:
        count: number of pages.
        seed: of text, fonts and wear.
        wear: 0 for black on white without rotation, blur, noise or shade; 1 for the worn pages of the accuracy figures.
    """
    for index in range(count):
        yield render_page(np.random.default_rng([seed, index]), wear)


def render_page(rng: np.random.Generator, wear: float = 1.0) -> Page:
    """Render one page with random text; ``wear`` as in :func:`render_pages`."""
    paper = _colour(rng, 255 - 110 * wear, 255)
    image = Image.new("RGB", PAGE_SIZE, paper)
    if wear:
        _clutter(image, rng)
    lines = tuple(random_text(rng) for _ in range(LINES))
    boxes = tuple(_draw_line(image, line, index, rng, wear) for index, line in enumerate(lines))
    if wear:
        image = _worn(image, rng, wear)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(95 - int(60 * wear), 96)))
    return Page(file.getvalue(), lines, boxes)


def random_text(rng: np.random.Generator) -> str:
    """Draw a line of 4 to 10 characters: a made-up word, a price, a code, a time, or a word and a number."""
    number = int(rng.integers(10, 1000))
    kinds = (
        lambda: _word(rng, 3),
        lambda: _word(rng, 4).upper()[:9],
        lambda: _word(rng, 2).capitalize() + f" {number}",
        lambda: f"${number}.{rng.integers(100):02d}",
        lambda: f"{_capitals(rng, 2)}-{rng.integers(10_000):04d}",
        lambda: f"{_capitals(rng, 1)}{rng.integers(100_000):05d}{_capitals(rng, 1)}",
        lambda: f"{rng.integers(24):02d}:{rng.integers(60):02d}",
        lambda: f"{number}/{rng.integers(1000, 10_000)}",
    )
    return kinds[rng.integers(len(kinds))]()


def _word(rng: np.random.Generator, syllables: int) -> str:
    return "".join(
        str(rng.choice(list("bcdfghjklmnprstvwz"))) + str(rng.choice(list("aeiouy"))) for _ in range(syllables)
    ) + str(rng.choice(["", "l", "n", "r", "s", "t"]))


def _capitals(rng: np.random.Generator, count: int) -> str:
    return "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"), count))


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def _colour(rng: np.random.Generator, low: float, high: float) -> tuple[int, int, int]:
    red, green, blue = rng.uniform(low, high, 3).astype(int).tolist()
    return red, green, blue


def _clutter(image: Image.Image, rng: np.random.Generator) -> None:
    """Draw patches, rules and bar codes, as on labels and shelves."""
    draw = ImageDraw.Draw(image)
    width, height = PAGE_SIZE
    for _ in range(rng.integers(0, 4)):
        left, top = int(rng.integers(width - 60)), int(rng.integers(height - 30))
        size = rng.integers([40, 10], [width // 2, height // 2])
        draw.rectangle((left, top, left + int(size[0]), top + int(size[1])), _colour(rng, 120, 255))
    if rng.random() < 0.4:
        left, top = int(rng.integers(width - 80)), int(rng.integers(height - 40))
        for stripe in np.flatnonzero(rng.random(60) < 0.5).tolist():
            draw.rectangle((left + stripe, top, left + stripe, top + 24), _colour(rng, 60, 120))
    for _ in range(rng.integers(0, 4)):
        ends = [(int(rng.integers(width)), int(rng.integers(height))) for _ in range(2)]
        draw.line(ends, _colour(rng, 60, 200), int(rng.integers(1, 4)))


def _draw_line(image: Image.Image, text: str, index: int, rng: np.random.Generator, wear: float) -> Box:
    """Draw a line somewhere in its own horizontal band of the page, and return its box."""
    width, height = PAGE_SIZE[0], PAGE_SIZE[1] // LINES
    font = _font(str(rng.choice(FONTS)), int(rng.integers(32 - int(22 * wear), 44 - int(15 * wear))))
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), text, 255, font)
    mask = mask.rotate(wear * rng.uniform(-4, 4), Image.Resampling.BICUBIC, expand=True)
    x = int(rng.integers(4, max(5, width - mask.width - 4)))
    y = index * height + int(rng.integers(6, max(7, height - mask.height - 6)))
    shade = np.array(image.crop((x, y, x + mask.width, y + mask.height))).reshape(-1, 3).mean(0)
    ink = np.clip(shade - rng.uniform(255 - 210 * wear, 255 - 80 * wear), 0, 255) * rng.uniform(1 - 0.4 * wear, 1, 3)
    image.paste(tuple(int(value) for value in ink), (x, y), mask)
    left, top, right, bottom = mask.point(lambda value: 255 * (value > 64)).getbbox() or (0, 0, *mask.size)
    margin = MARGIN * (bottom - top)
    return x + left - margin, y + top - margin, x + right + margin, y + bottom + margin


def _worn(image: Image.Image, rng: np.random.Generator, wear: float) -> Image.Image:
    """Add blur, uneven light and sensor noise."""
    image = image.filter(ImageFilter.GaussianBlur(wear * rng.uniform(0, 1.3)))
    across, down = np.meshgrid(*(np.linspace(-1, 1, size) for size in PAGE_SIZE))
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 - 0.5 * wear * rng.random() * (1 + across * np.cos(angle) + down * np.sin(angle)) / 2
    noise = rng.normal(0, wear * rng.uniform(2, 14), (*PAGE_SIZE[::-1], 3))
    return Image.fromarray(np.clip(np.array(image) * light[..., None] + noise, 0, 255).astype(np.uint8))


def write_pages(path: Path, count: int, seed: int) -> None:
    """Write rendered pages to Parquet: ``payload`` (bytes), ``truth`` (lines joined by newlines), ``boxes``."""
    rows = [
        {"payload": page.payload, "truth": page.text, "boxes": [list(box) for box in page.boxes]}
        for page in render_pages(count, seed)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path, index=False)
