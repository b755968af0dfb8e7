"""Train the models of the tabular example, and write its sample requests and labels.

    python -m opd.examples.tabular.build FOLDER

The rows are the scans of handwritten digits that scikit-learn carries, 64 readings each, of which three in ten are made
missing at random. A third of the rows is held out: samples, labels and accuracies are of these.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from opd.examples.tabular.acceptance import Judge, Threshold, features

MISSING_SHARE = 0.3

MISSING = -1.0
"""Stands for a missing reading, because JSON has no NaN."""

LARGEST_READING = 16.0
SAMPLES = 100
"""Requests written as samples, one row each."""

LEAST_PROBABILITY = 0.8
"""Probability from which the variant ``threshold`` accepts."""


class Rows:
    """Readings with and without gaps, and labels, of the training rows and of the held-out ones."""

    def __init__(self) -> None:
        complete, labels = load_digits(return_X_y=True)
        gaps = np.random.default_rng(0).random(complete.shape) < MISSING_SHARE
        training, held_out = train_test_split(np.arange(len(labels)), test_size=1 / 3, random_state=0, stratify=labels)
        self.training, self.held_out = training, held_out
        self.complete, self.labels, self.gaps = complete, labels, gaps
        self.readings = np.where(gaps, MISSING, complete)


def train(rows: Rows) -> dict[str, dict[str, Any]]:
    """Train the variants of all stages that are models of scikit-learn, by task and variant.

    Classifiers learn from rows restored by the best imputer, and the judge from classifications of rows that the
    classifier was not trained on.
    """
    known, labels = rows.readings[rows.training], rows.labels[rows.training]
    restore = {
        "mean": SimpleImputer(missing_values=MISSING),
        "knn-200": KNNImputer(missing_values=MISSING).fit(known[:200]),
        "knn-1198": KNNImputer(missing_values=MISSING),
    }
    for name in ("mean", "knn-1198"):
        restore[name].fit(known)
    restored = restore["knn-1198"].transform(known)
    machine = CalibratedClassifierCV(SVC(C=10.0), ensemble=False)
    recognise = {
        "bayes": GaussianNB(),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "svm": machine,
    }
    for model in recognise.values():
        model.fit(restored, labels)
    unseen = cross_val_predict(machine, restored, labels, method="predict_proba")
    right = unseen.argmax(axis=1) == labels
    accept = {"judge": LogisticRegression(C=10.0).fit(features(unseen), right)}
    return {"restore": restore, "recognise": recognise, "accept": accept}


def accuracies(rows: Rows, models: Mapping[str, Mapping[str, Any]], folder: Path) -> pd.DataFrame:
    """Measure every variant on the held-out rows, with the best variant of the stages before it.

    Returns:
        Columns ``task``, ``variant`` and ``accuracy``: of ``restore`` one minus the root mean square error of the
        restored readings by the largest reading; of ``recognise`` the share of right classes; of ``accept`` the share
        of rows that were accepted and right, or referred and wrong.
    """
    gaps, complete, labels = (part[rows.held_out] for part in (rows.gaps, rows.complete, rows.labels))
    found = []
    for name, imputer in models["restore"].items():
        restored = imputer.transform(rows.readings[rows.held_out])
        error = np.sqrt(np.mean((restored - complete)[gaps] ** 2)) / LARGEST_READING
        found.append(("restore", name, 1.0 - error))
    for name, classifier in models["recognise"].items():
        found.append(("recognise", name, classifier.score(restored, labels)))
    probabilities = models["recognise"]["svm"].predict_proba(restored)
    right = probabilities.argmax(axis=1) == labels
    for name, decide in (
        ("threshold", Threshold(folder, LEAST_PROBABILITY)),
        ("judge", Judge(folder / "judge.joblib")),
    ):
        accepted = decide({"probabilities": probabilities})["accepted"]
        found.append(("accept", name, float(np.mean(accepted == right))))
    return pd.DataFrame(found, columns=["task", "variant", "accuracy"])


def build(folder: Path) -> pd.DataFrame:
    """Write models into ``variants/``, and samples with their labels into ``samples/``; return the accuracies."""
    rows = Rows()
    models = train(rows)
    variants, samples = folder / "variants", folder / "samples"
    for target in (variants, samples):
        target.mkdir(parents=True, exist_ok=True)
    for variants_of_task in models.values():
        for name, model in variants_of_task.items():
            joblib.dump(model, variants / f"{name}.joblib", compress=3)
    chosen = rows.held_out[:SAMPLES]
    requests = [
        {"inputs": [{"name": "readings", "datatype": "FP64", "shape": [1, 64], "data": row.tolist()}]}
        for row in rows.readings[chosen]
    ]
    (samples / "requests.json").write_text(json.dumps(requests) + "\n")
    (samples / "labels.json").write_text(json.dumps(rows.labels[chosen].tolist()) + "\n")
    return accuracies(rows, models, variants)


if __name__ == "__main__":
    print(build(Path(sys.argv[1])).to_string(index=False))
