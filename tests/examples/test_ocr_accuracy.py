"""Accuracy of the OCR variants: metrics, measurements and the reported figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ocr_pages import CLEAN, DETECTION, RECIPES, RECOGNITION
from PIL import Image

from opd.examples.ocr import accuracy
from opd.host.paths import project_path
from opd.serving.models import open_object


def test_overlap_of_known_boxes():
    found = np.array([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    truth = np.array([[0.0, 0.0, 10.0, 10.0], [5.0, 0.0, 15.0, 10.0]])
    assert accuracy.overlaps(found, truth) == pytest.approx(np.array([[1.0, 1 / 3], [0.0, 0.0]]))


def test_f1_of_known_boxes():
    one, other = np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([[50.0, 0.0, 60.0, 10.0]])
    both, none = np.concatenate([one, other]), np.empty((0, 4))
    assert accuracy.detection_f1([both], [both]) == 1.0
    assert accuracy.detection_f1([one, none], [both, both]) == pytest.approx(2 / 5)
    assert accuracy.detection_f1([np.concatenate([one, one])], [one]) == pytest.approx(2 / 3)
    assert accuracy.detection_f1([other], [one]) == 0.0


def test_accuracy_of_known_texts():
    assert accuracy.text_accuracy(["sitting"], ["kitten"]) == pytest.approx(1 - 3 / 7)
    assert accuracy.text_accuracy(["ab", "ce"], ["ab", "cd"]) == pytest.approx(0.75)


@pytest.mark.parametrize("name", DETECTION)
def test_every_detector_finds_the_lines_of_clean_pages(name: str, ocr_store):
    assert accuracy.variant_accuracy(open_object(ocr_store.pull("text-detection", name)), CLEAN) >= 0.8


@pytest.mark.parametrize("name", RECOGNITION)
def test_every_recogniser_reads_clean_lines(name: str, ocr_store):
    assert accuracy.variant_accuracy(open_object(ocr_store.pull("text-recognition", name)), CLEAN) >= 0.9


def test_chosen_variants_are_reported_and_not_clearly_beaten():
    table = pd.read_csv(project_path("reports", "ocr", "accuracy.csv"))
    for task, recipes in RECIPES.tasks.items():
        rows = table[table["task"] == task].set_index("variant")
        candidates, reported = rows[rows["split"] == "choose"], rows[rows["split"] == "report"]
        assert list(candidates.index) == list(recipes.candidates)
        assert list(reported.index) == recipes.chosen
        assert set(candidates.index[candidates["chosen"]]) == set(recipes.chosen)
        assert reported["accuracy"].is_monotonic_increasing and reported["accuracy"].iloc[-1] > 0.9
        for name in recipes.chosen:
            own = candidates.loc[name]
            better = (candidates["accuracy"] > own["accuracy"] + 0.02) & (
                candidates["latency_ms"] < 0.9 * own["latency_ms"]
            )
            assert not better.any(), name


def test_accuracy_and_latency_are_measured_and_plotted(ocr_store, tmp_path: Path):
    table = pd.concat(
        [
            accuracy.measure_variants("text-detection", DETECTION[:1], "choose", 4),
            accuracy.measure_variants("text-recognition", RECOGNITION[:1], "choose", 4),
        ]
    )
    assert table["accuracy"].between(0.2, 1.0).all() and (table["latency_ms"] > 0).all() and table["chosen"].all()
    accuracy.plot_accuracy(table, tmp_path / "accuracy.png")
    assert Image.open(tmp_path / "accuracy.png").size[0] > 1000
