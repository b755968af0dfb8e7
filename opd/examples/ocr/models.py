"""Models of the OCR pipeline: text detection and text recognition.

Detection passes a *line sheet* to recognition: one PNG, :data:`LINE_WIDTH` pixels wide, with one row of
:data:`LINE_HEIGHT` pixels for every line of text, top to bottom. A line is scaled to the height of its row, squeezed
if it is then wider than the row, and padded with grey on the right. A page without text gives a single grey row,
which is read as an empty line. So one payload in gives one payload out, and the cost of a request depends only on its
number of lines.

The networks are those of PP-OCR (PaddlePaddle, Apache-2.0) in ONNX form; both run on a single thread.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from scipy import ndimage

from opd.serving.models import PayloadError

PAYLOAD = "payload"
"""Name of the only tensor of requests and answers: BYTES, one element a row."""

LINE_HEIGHT = 48
"""Height in pixels of a row of a line sheet, as PP-OCR's recognisers expect."""

LINE_WIDTH = 224
"""Width in pixels of a line sheet."""

MAX_LINES = 16
"""Largest number of lines on a line sheet; of a page with more, the most certain ones are passed on."""

MAX_PIXELS = 4_000_000
"""Images with more pixels are refused before they are decoded."""

GREY = (128, 128, 128)
"""Zero after normalisation: the padding that the recognisers were trained with."""

TEXT_PROBABILITY = 0.3
"""Threshold from which a pixel of the detector's map belongs to text."""

BOX_PROBABILITY = 0.7
"""Threshold of a region's mean from which it is a line; like :data:`GROWTH`, tuned on pages of split ``choose``."""

GROWTH = 1.0
"""Detectors mark a shrunken core of each line; it grows by this factor times its area over its perimeter."""

BLANK = 0
"""Class of "no character" in connectionist temporal classification."""


def open_session(path: Path) -> ort.InferenceSession:
    """Load a network to run on one thread, which sleeps when idle."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def decode_image(payload: bytes, name: str) -> Image.Image:
    """Decode a JPEG or PNG file to an RGB image.

    Raises:
        PayloadError: if it is not such an image, damaged, or larger than :data:`MAX_PIXELS`; the error names ``name``.
    """
    try:
        image = Image.open(io.BytesIO(payload), formats=("JPEG", "PNG"))
        if image.width * image.height > MAX_PIXELS:
            raise PayloadError(f"{name} has {image.width} x {image.height} pixels; at most {MAX_PIXELS} are allowed")
        return image.convert("RGB")
    except PayloadError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PayloadError(f"{name} is not a readable JPEG or PNG ({len(payload)} bytes): {error}") from error


def encode_image(image: Image.Image) -> bytes:
    """Encode an image as PNG, as fast as possible."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def normalised(images: Sequence[Image.Image], mean: Sequence[float], deviation: Sequence[float]) -> np.ndarray:
    """Normalise images of one size.

    Args:
        images: RGB.
        mean: of each channel as a fraction of white, in the network's order.
        deviation: likewise.

    Returns:
        (images, 3, height, width) float32, with channels in the order blue, green, red.
    """
    planes = np.stack([np.asarray(image)[..., ::-1].transpose(2, 0, 1) for image in images]).astype(
        np.float32, order="C"
    )
    spread = np.array(deviation, dtype=np.float32).reshape(3, 1, 1)
    planes *= 1 / (255 * spread)
    planes -= np.array(mean, dtype=np.float32).reshape(3, 1, 1) / spread
    return planes


def payloads_of(inputs: Mapping[str, np.ndarray]) -> list[bytes]:
    """Return the payloads of a batch.

    Raises:
        PayloadError: if it is anything but one tensor of BYTES with one element a row.
    """
    payloads = inputs.get(PAYLOAD)
    if payloads is None or len(inputs) > 1:
        raise PayloadError(f"the request has the tensors {', '.join(map(repr, inputs))}; send one, {PAYLOAD!r}")
    if payloads.dtype != object or payloads.size != len(payloads):
        raise PayloadError(
            f"tensor {PAYLOAD!r} has shape {list(payloads.shape)} and elements of type {payloads.dtype}; send BYTES of "
            "shape [n], one encoded image a row"
        )
    return payloads.ravel().tolist()


def answers_of(payloads: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Return the answer to a batch, one element a row."""
    answers = np.empty(len(payloads), dtype=object)
    answers[:] = payloads
    return {PAYLOAD: answers}


class TextDetector:
    """Text detection: turns pages into line sheets.

    Args:
        folder: of the variant, with ``model.onnx``.
        size: width and height in pixels that every page is scaled to, both multiples of 32.
    """

    def __init__(self, folder: Path, *, size: Sequence[int]) -> None:
        if len(size) != 2 or any(side <= 0 or side % 32 for side in size):
            raise ValueError(f"size is {size}, but must be a width and a height that are multiples of 32")
        self.size = (int(size[0]), int(size[1]))
        self.session = open_session(folder / "model.onnx")
        self.input = self.session.get_inputs()[0].name

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make one line sheet (PNG) of each page (JPEG or PNG), see :meth:`sheets`."""
        return answers_of(self.sheets(payloads_of(inputs)))

    def sheets(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Make one line sheet of each page, in one run of the network.

        Raises:
            PayloadError: naming the first element that is not an image.
        """
        pages = [decode_image(payload, f"element {index}") for index, payload in enumerate(payloads)]
        boxes = self.detect(pages)
        return [encode_image(line_sheet(page, lines)) for page, lines in zip(pages, boxes, strict=True)]

    def detect(self, pages: Sequence[Image.Image]) -> list[np.ndarray]:
        """Find the lines of each page, top to bottom: (lines, 4) left, top, right, bottom in pixels of the page."""
        scaled = [page.resize(self.size, Image.Resampling.BILINEAR) for page in pages]
        inputs = normalised(scaled, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        (maps,) = self.session.run(None, {self.input: inputs})
        results = []
        for page, probability in zip(pages, maps[:, 0], strict=True):
            factors = np.array(page.size) / self.size
            results.append(text_boxes(probability) * np.tile(factors, 2))
        return results


def text_boxes(probability: np.ndarray) -> np.ndarray:
    """Find lines in a probability map of text, the output of differentiable binarisation (DB) detectors.

    Args:
        probability: (height, width).

    Returns:
        (lines, 4) left, top, right, bottom, in pixels of the map, top to bottom.
    """
    labels, count = ndimage.label(probability > TEXT_PROBABILITY, np.ones((3, 3)))
    if not count:
        return np.empty((0, 4))
    score = ndimage.mean(probability, labels, np.arange(1, count + 1))
    found = [
        (certainty, rows.start, columns.start, rows.stop, columns.stop)
        for certainty, (rows, columns) in zip(score, ndimage.find_objects(labels), strict=True)
        if certainty >= BOX_PROBABILITY and min(rows.stop - rows.start, columns.stop - columns.start) >= 3
    ]
    found = sorted(sorted(found, reverse=True)[:MAX_LINES], key=lambda line: (line[1] + line[3], line[2]))
    return np.array([_grown(*line[1:], *probability.shape) for line in found]).reshape(-1, 4)


def _grown(top: int, left: int, bottom: int, right: int, height: int, width: int) -> tuple[float, float, float, float]:
    across, down = right - left, bottom - top
    margin = GROWTH * across * down / (2 * (across + down))
    return max(left - margin, 0), max(top - margin, 0), min(right + margin, width), min(bottom + margin, height)


def line_sheet(page: Image.Image, boxes: np.ndarray) -> Image.Image:
    """Draw the lines of a page, one per row; a single grey row if there are none.

    Args:
        page: RGB.
        boxes: (lines, 4) left, top, right, bottom in pixels of the page.
    """
    sheet = Image.new("RGB", (LINE_WIDTH, LINE_HEIGHT * max(len(boxes), 1)), GREY)
    for row, box in enumerate(boxes):
        left, top, right, bottom = (float(value) for value in box)
        width = round(LINE_HEIGHT * (right - left) / (bottom - top))
        size = (min(max(width, 1), LINE_WIDTH), LINE_HEIGHT)
        line = page.resize(size, Image.Resampling.BILINEAR, (left, top, right, bottom))
        sheet.paste(line, (0, row * LINE_HEIGHT))
    return sheet


class TextRecogniser:
    """Text recognition: turns line sheets into text.

    Args:
        folder: of the variant, with ``model.onnx`` and ``characters.txt``: one character per line, in the order of the
            network's classes after the blank.
        width: in pixels that every line is scaled to.
    """

    def __init__(self, folder: Path, *, width: int = LINE_WIDTH) -> None:
        if width <= 0 or width % 8:
            raise ValueError(f"width is {width}, but must be a positive multiple of 8")
        self.width = width
        self.characters = (folder / "characters.txt").read_text(encoding="utf-8").split("\n")[:-1]
        self.session = open_session(folder / "model.onnx")
        self.input = self.session.get_inputs()[0].name

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Read the text of each line sheet, see :meth:`texts`."""
        return answers_of(self.texts(payloads_of(inputs)))

    def texts(self, payloads: Sequence[bytes]) -> list[bytes]:
        """Read the text of each line sheet, UTF-8 with newlines between lines, in one run of the network.

        Raises:
            PayloadError: naming the first element that is not a line sheet.
        """
        sheets = [decode_sheet(payload, f"element {index}") for index, payload in enumerate(payloads)]
        rows = [(sheet, top) for sheet in sheets for top in range(0, sheet.height, LINE_HEIGHT)]
        texts = self.read([sheet.crop((0, top, sheet.width, top + LINE_HEIGHT)) for sheet, top in rows])
        ends = np.cumsum([sheet.height // LINE_HEIGHT for sheet in sheets])
        starts = [0, *ends[:-1].tolist()]
        return ["\n".join(texts[start:end]).encode() for start, end in zip(starts, ends, strict=True)]

    def read(self, lines: Sequence[Image.Image]) -> list[str]:
        """Read the text of each row."""
        size = (self.width, LINE_HEIGHT)
        scaled = [line if line.size == size else line.resize(size, Image.Resampling.BILINEAR) for line in lines]
        (scores,) = self.session.run(None, {self.input: normalised(scaled, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))})
        return [decode_text(classes, self.characters) for classes in scores.argmax(axis=2)]


def decode_sheet(payload: bytes, name: str) -> Image.Image:
    """Decode a line sheet.

    Raises:
        PayloadError: if it is not an image, or has another shape; the error names ``name``.
    """
    sheet = decode_image(payload, name)
    lines, rest = divmod(sheet.height, LINE_HEIGHT)
    if sheet.width != LINE_WIDTH or rest or not 1 <= lines <= MAX_LINES:
        raise PayloadError(
            f"{name} is {sheet.width} x {sheet.height} pixels; a line sheet is {LINE_WIDTH} wide and "
            f"{LINE_HEIGHT} high for each of 1 to {MAX_LINES} lines"
        )
    return sheet


def decode_text(classes: np.ndarray, characters: Sequence[str]) -> str:
    """Decode the likeliest class at each position: merge repetitions, then drop blanks.

    Args:
        classes: (positions,) 0 for the blank, i for ``characters[i - 1]``.
        characters: in the order of the classes.
    """
    changed = np.append(True, classes[1:] != classes[:-1])
    return "".join(characters[index - 1] for index in classes[changed & (classes != BLANK)])
