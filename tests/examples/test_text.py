"""The text example: tickets, the network, embeddings, and the accuracies in its pipeline file."""

from __future__ import annotations

import json

import joblib
import numpy as np
import onnxruntime as ort
import pandas as pd
import pytest

from opd.examples.text import build, minilm
from opd.examples.text import synthetic_tickets as tickets
from opd.examples.text.sentences import OUTPUT, MiniLM, SentenceEncoder
from opd.profiling.pipeline_file import read_pipeline_file

FILE = read_pipeline_file("text")
EMBEDDINGS = [variant.name for variant in FILE.tasks[0].variants]
CLASSIFIERS = [variant.name for variant in FILE.tasks[1].variants]


def embedded(folder, name: str, texts: list[str]) -> np.ndarray:
    """(texts, components) of a built variant."""
    if name == "tfidf":
        return joblib.load(folder / "variants" / "tfidf.joblib").predict(texts)
    return MiniLM(folder / "variants" / name)({"text": np.array([text.encode() for text in texts], object)})[OUTPUT]


# Tickets


def test_a_ticket_depends_on_its_seed_and_place_alone():
    few, many = (tickets.make_tickets(count, seed=3, held_out=True) for count in (5, 40))
    assert (few.texts, few.queues) == (many.texts[:5], many.queues[:5])
    assert few.texts != tickets.make_tickets(5, seed=4, held_out=True).texts
    assert len(set(many.queues)) == 8


def test_training_tickets_use_known_phrases_only(monkeypatch):
    monkeypatch.setattr(tickets, "TYPING_ERRORS", 0.0)

    def share_of(phrase: str, held_out: bool) -> float:
        return np.mean([phrase in text for text in tickets.make_tickets(1500, seed=5, held_out=held_out).texts])

    assert share_of("I am shut out of my profile", False) == 0.0 < share_of("I am shut out of my profile", True)
    assert share_of("my account is locked", True) > 0.0


def test_typing_errors_are_as_frequent_as_stated(monkeypatch):
    wrong = "".join(tickets.make_tickets(400, seed=6, held_out=False).texts)
    monkeypatch.setattr(tickets, "TYPING_ERRORS", 0.0)
    right = tickets.make_tickets(400, seed=6, held_out=False).texts
    assert not any("{" in text for text in right)
    assert abs(len(wrong) - len("".join(right))) < 0.01 * len(wrong)  # as many letters are doubled as left out
    assert wrong != "".join(right)


# The network


@pytest.mark.parametrize("layers", [1, 3])
def test_the_network_is_that_of_transformers(layers: int):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    sizes = {"hidden_size": minilm.UNITS, "num_attention_heads": minilm.HEADS, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=50, num_hidden_layers=3, initializer_range=0.2, **sizes)
    torch.manual_seed(0)
    model = transformers.BertModel(config, add_pooling_layer=False).eval().half().float()  # as exact as stored weights
    ids = np.random.default_rng(0).integers(1, 50, (3, 11))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        hidden = model(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True).hidden_states[layers].numpy()
    expected = (hidden * mask[:, :, None]).sum(axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    network = minilm.network({name: array.numpy() for name, array in model.state_dict().items()}, layers)
    session = ort.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"ids": ids, "mask": mask})
    np.testing.assert_allclose(found, expected, atol=2e-3)


# What build makes


def test_texts_of_one_meaning_are_near(text_folder):
    encoder = SentenceEncoder(text_folder / "variants" / "minilm-6")
    here, same, other = encoder.encode(["where is my parcel", "the package has not arrived", "I forgot my password"])
    assert here @ same > 2 * (here @ other)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_a_batch_is_embedded_like_its_elements(text_folder, name: str):
    texts = ["hello", "where is my kettle, I ordered it two weeks ago", "", "word " * 1000]
    batch = embedded(text_folder, name, texts)
    assert batch.shape == (4, build.COMPONENTS)
    single = np.concatenate([embedded(text_folder, name, [text]) for text in texts])
    np.testing.assert_allclose(batch, single, atol=1e-4)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_every_classifier_takes_every_embedding(text_folder, embedding: str, classifier: str):
    known = tickets.make_tickets(60, seed=1, held_out=False)
    model = joblib.load(text_folder / "variants" / f"{classifier}.joblib")
    assert model.score(embedded(text_folder, embedding, known.texts), known.queues) > 0.6  # an eighth by chance


def test_the_pipeline_file_has_the_measured_accuracies(text_folder):
    measured = pd.read_csv(text_folder / "accuracies.csv")
    stated = [(task.name, each.name, each.accuracy.value) for task in FILE.tasks for each in task.variants]
    assert measured[["task", "variant"]].values.tolist() == [[task, name] for task, name, _ in stated]
    np.testing.assert_allclose(measured["accuracy"], [accuracy for *_, accuracy in stated], atol=0.01)
    for _, rows in measured.groupby("task"):
        assert rows["accuracy"].is_monotonic_increasing


def test_samples_have_labels(text_folder):
    requests, labels = (json.loads((text_folder / str(name)).read_text()) for name in (FILE.samples, FILE.labels))
    assert len(requests) == len(labels) == build.SAMPLES
    held_out = tickets.make_tickets(build.HELD_OUT, seed=2, held_out=True)
    assert labels == held_out.queues[: len(labels)]
    assert [request["inputs"][0]["data"][0] for request in requests] == held_out.texts[: len(labels)]
