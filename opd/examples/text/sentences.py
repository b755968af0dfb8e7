"""Embeddings of text by MiniLM, a sentence encoder.

The class is served as it is: constructed with the folder of its files, and called with arrays by name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

OUTPUT = "predict"
"""Name of the embedding; that of MLServer's scikit-learn runtime, so that both kinds of variants fit the next stage."""

TOKENS = 128
"""Longer texts are cut."""


class SentenceEncoder:
    """A network and its tokenizer.

    Args:
        folder: with ``model.onnx`` and ``tokenizer.json``.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(TOKENS)
        self._tokenizer.enable_padding()
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])

    def encode(self, texts: list[str]) -> np.ndarray:
        """(texts, 384) float32: sentences of length 1."""
        encodings = self._tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(each, what) for each in encodings]) for what in ("ids", "attention_mask"))
        return self._session.run(None, {"ids": ids, "mask": mask})[0]


class MiniLM:
    """Embeds texts: encodes them, and projects the sentences onto the components that all variants share.

    Args:
        folder: as of :class:`SentenceEncoder`, with ``projection.npz``.
    """

    def __init__(self, folder: Path) -> None:
        self._encoder = SentenceEncoder(folder)
        with np.load(folder / "projection.npz") as projection:
            self._weights, self._offset = projection["weights"], projection["offset"]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed ``text``, one element a row."""
        texts = [text.decode(errors="replace") for text in inputs["text"].ravel()]
        return {OUTPUT: self._encoder.encode(texts) @ self._weights + self._offset}
