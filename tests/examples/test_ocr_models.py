"""Text detection and recognition: decoding, line sheets, clean pages and malformed payloads."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from deadlines import PATIENCE
from hypothesis import given
from hypothesis import strategies as st
from ocr_pages import CLEAN, DETECTION, RECOGNITION, WORN
from PIL import Image

from opd.examples.ocr import models
from opd.examples.ocr.pages import PAGE_SIZE, Page
from opd.serving.models import PayloadError, open_object


@pytest.fixture(scope="module")
def detector(ocr_store) -> models.TextDetector:
    return open_object(ocr_store.pull("text-detection", DETECTION[-1]))


@pytest.fixture(scope="module")
def recogniser(ocr_store) -> models.TextRecogniser:
    return open_object(ocr_store.pull("text-recognition", RECOGNITION[-1]))


def png(size: tuple[int, int], colour: tuple[int, int, int] = (255, 255, 255)) -> bytes:
    return models.encode_image(Image.new("RGB", size, colour))


# Known answers


def test_greedy_decoding_merges_repetitions_and_drops_blanks():
    characters = ["a", "b", " "]
    assert models.decode_text(np.array([0, 1, 1, 0, 1, 2, 2, 3, 0]), characters) == "aab "
    assert models.decode_text(np.array([0, 0, 0]), characters) == ""
    assert models.decode_text(np.array([2]), characters) == "b"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_greedy_decoding_agrees_with_its_definition(classes: list[int]):
    merged = [c for index, c in enumerate(classes) if index == 0 or c != classes[index - 1]]
    expected = "".join("abc"[c - 1] for c in merged if c)
    assert models.decode_text(np.array(classes), "abc") == expected


def test_boxes_are_found_for_clear_lines_but_not_for_faint_ones():
    probability = np.zeros((100, 200), np.float32)
    probability[60:70, 20:60] = 0.9
    probability[10:20, 100:180] = 0.9
    probability[40:50, 20:60] = 0.4
    grown = [10 * 80 / 180, 10 * 40 / 100]  # area over perimeter
    expected = [
        [100 - grown[0], 10 - grown[0], 180 + grown[0], 20 + grown[0]],
        [20 - grown[1], 60 - grown[1], 60 + grown[1], 70 + grown[1]],
    ]
    assert models.text_boxes(probability) == pytest.approx(np.array(expected))
    assert models.text_boxes(np.zeros((32, 32))).shape == (0, 4)


def test_no_more_lines_are_found_than_fit_on_a_sheet():
    probability = np.zeros((400, 100), np.float32)
    for row in range(0, 400, 10):
        probability[row : row + 5, 10:90] = 0.8
    assert len(models.text_boxes(probability)) == models.MAX_LINES


def test_a_line_is_scaled_to_its_row_and_padded_with_grey():
    page = Image.new("RGB", (100, 100), (200, 0, 0))
    sheet = np.asarray(models.line_sheet(page, np.array([[0.0, 0.0, 40.0, 20.0], [0.0, 0.0, 100.0, 5.0]])))
    assert sheet.shape == (2 * models.LINE_HEIGHT, models.LINE_WIDTH, 3)
    assert (sheet[:48, :96] == (200, 0, 0)).all() and (sheet[:48, 96:] == models.GREY).all()
    assert (sheet[48:] == (200, 0, 0)).all()


# Trained models


@pytest.mark.parametrize("page", CLEAN, ids=lambda page: page.text.replace("\n", " "))
def test_a_clean_page_is_read_without_errors(page: Page, detector, recogniser):
    assert recogniser.texts(detector.sheets([page.payload])) == [page.text.encode()]


def test_a_batch_answers_like_its_elements(detector, recogniser):
    pages = [page.payload for page in WORN]
    sheets = detector.sheets(pages)
    assert sheets == [detector.sheets([page])[0] for page in pages]
    assert recogniser.texts(sheets) == [recogniser.texts([sheet])[0] for sheet in sheets]
    assert len({models.decode_sheet(sheet, "sheet").height for sheet in [*sheets, png((224, 48))]}) > 1


def test_a_page_without_text_is_read_as_an_empty_line(detector, recogniser):
    (sheet,) = detector.sheets([png(PAGE_SIZE)])
    assert Image.open(io.BytesIO(sheet)).size == (models.LINE_WIDTH, models.LINE_HEIGHT)
    assert recogniser.texts([sheet]) == [b""]


def test_pages_of_another_size_are_read(detector, recogniser):
    image = Image.open(io.BytesIO(CLEAN[0].payload))
    larger = models.encode_image(image.resize((1024, 512)))
    assert recogniser.texts(detector.sheets([larger])) == [CLEAN[0].text.encode()]


# Malformed payloads and settings


@pytest.mark.parametrize(
    "payload", [b"", b"no image", CLEAN[0].payload[:500], png((64, 64))[:60], b"GIF89a" + bytes(50)]
)
def test_a_malformed_payload_is_named(payload: bytes, detector, recogniser):
    with pytest.raises(PayloadError, match="element 1 is not a readable JPEG or PNG"):
        detector.sheets([CLEAN[0].payload, payload])
    with pytest.raises(PayloadError, match="element 1 is not a readable JPEG or PNG"):
        recogniser.texts([png((models.LINE_WIDTH, models.LINE_HEIGHT)), payload])


@pytest.mark.parametrize("size", [(3000, 3000), (20_000, 20_000)])
def test_an_image_with_too_many_pixels_is_refused(size: tuple[int, int], detector):
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    with pytest.raises(PayloadError, match="element 0"):
        detector.sheets([file.getvalue()])


@pytest.mark.parametrize("size", [(224, 47), (225, 48), (224, 48 * 17)])
def test_an_image_that_is_not_a_line_sheet_is_refused(size: tuple[int, int], recogniser):
    with pytest.raises(PayloadError, match="element 0 is .* a line sheet is 224 wide"):
        recogniser.texts([png(size)])


@given(st.integers(0, 2**32 - 1))
def test_a_damaged_file_is_decoded_or_refused(seed: int):
    rng = np.random.default_rng(seed)
    payload = bytearray(WORN[0].payload if seed % 2 else png((64, 64)))
    for position in rng.integers(len(payload), size=8):
        payload[position] = rng.integers(256)
    with contextlib.suppress(PayloadError):
        assert models.decode_image(bytes(payload), "element 0").mode == "RGB"


def test_settings_that_do_not_fit_the_network_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="multiples of 32"):
        models.TextDetector(tmp_path, size=[500, 250])
    with pytest.raises(ValueError, match="multiple of 8"):
        models.TextRecogniser(tmp_path, width=100)


# Dependencies


def test_models_import_neither_torch_nor_the_renderer():
    code = "import sys, opd.examples.ocr.models; print({'torch', 'pandas', 'matplotlib', 'onnx'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.strip() == "set()"
