"""Rendered pages."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from ocr_pages import CLEAN, WORN
from PIL import Image

from opd.examples.ocr.pages import LINES, PAGE_SIZE, SPLIT_SEEDS, render_pages, write_pages


def test_pages_have_one_size_two_lines_and_boxes_around_the_ink():
    for page in CLEAN:
        image = np.asarray(Image.open(io.BytesIO(page.payload)).convert("L"))
        assert image.shape == PAGE_SIZE[::-1] and len(page.lines) == len(page.boxes) == LINES
        dark = np.argwhere(image < 80)
        outside = np.ones(len(dark), bool)
        for left, top, right, bottom in page.boxes:
            inside = (dark[:, 1] >= left) & (dark[:, 1] <= right) & (dark[:, 0] >= top) & (dark[:, 0] <= bottom)
            assert inside.any()
            outside &= ~inside
        assert not outside.any()


def test_pages_are_determined_by_the_seed_and_splits_differ():
    assert list(render_pages(3, 6)) == WORN[:3]
    texts = {split: {page.text for page in render_pages(20, seed)} for split, seed in SPLIT_SEEDS.items()}
    assert not texts["choose"] & texts["report"]


def test_pages_are_written_and_read(tmp_path: Path):
    write_pages(tmp_path / "pages.parquet", 3, 6)
    table = pd.read_parquet(tmp_path / "pages.parquet")
    assert table["payload"].tolist() == [page.payload for page in WORN[:3]]
    assert table["truth"].tolist() == [page.text for page in WORN[:3]]
    for boxes, page in zip(table["boxes"], WORN, strict=False):
        np.testing.assert_array_equal(np.stack(boxes), page.boxes)
