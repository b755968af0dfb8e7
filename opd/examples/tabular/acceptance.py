"""The last stage of the pipeline: accept the recognised class, or refer the row to a person.

Both classes are served as they are: constructed with the file or folder of the variant and its settings, and called
with arrays by name.
"""

from __future__ import annotations

from pathlib import Path

import joblib
import numpy as np


def _answer(probabilities: np.ndarray, accepted: np.ndarray) -> dict[str, np.ndarray]:
    return {"digit": probabilities.argmax(axis=1).astype(np.int64), "accepted": accepted}


class Threshold:
    """Accepts a row if the likeliest class is likely enough.

    Args:
        folder: of the variant; it has no files.
        least: probability from which a row is accepted.
    """

    def __init__(self, folder: Path, least: float) -> None:
        self._least = least

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Decide about ``probabilities`` (rows, classes)."""
        probabilities = inputs["probabilities"]
        return _answer(probabilities, probabilities.max(axis=1) >= self._least)


class Judge:
    """Accepts a row if a model trained on the classifier's mistakes expects no mistake.

    Args:
        file: of the variant, a model of scikit-learn.
    """

    def __init__(self, file: Path) -> None:
        self._model = joblib.load(file)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Decide about ``probabilities`` (rows, classes)."""
        probabilities = inputs["probabilities"]
        return _answer(probabilities, self._model.predict(features(probabilities)).astype(bool))


def features(probabilities: np.ndarray) -> np.ndarray:
    """(rows, classes) inputs of the model of :class:`Judge`: the probabilities in descending order."""
    return -np.sort(-probabilities, axis=1)
