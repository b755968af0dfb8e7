"""Measuring variants: real measurements, and what they refuse."""

from __future__ import annotations

import os

import pandas as pd
import pytest
from profile_tables import CATALOGUE, REFERENCE

from opd.examples.ocr.served import OcrVariant
from opd.profiling import measuring, profiles
from opd.profiling.architectures import ARCHITECTURES
from opd.profiling.measuring import Effort, measure_variant, measure_within_budget, resolve_architecture

SERVED = "opd.examples.ocr.served:OcrVariant"
BERT_TINY = ARCHITECTURES["bert-tiny"]


# ------------------------------------------------------------------------------------------- what is measured


def test_an_architecture_is_a_key_or_a_class_of_any_module():
    assert resolve_architecture("bert-tiny", "sentiment", "bert-tiny") is BERT_TINY
    assert resolve_architecture(SERVED, "text-recognition", "small") == OcrVariant("text-recognition", "small")


def test_the_error_for_an_unknown_architecture_lists_the_known_ones():
    with pytest.raises(KeyError, match="unknown architecture 'bert-titan'.*bert-tiny.*module:Class"):
        resolve_architecture("bert-titan", "sentiment", "bert-titan")


@pytest.mark.parametrize("architecture", ["nowhere:Model", "opd.examples.ocr.served:Missing", "opd:1x", ":"])
def test_the_error_for_a_class_that_cannot_be_imported_names_the_variant(architecture: str):
    message = f"architecture '{architecture}' of variant 'small' of task 'first' cannot be imported"
    with pytest.raises(ImportError, match=message):
        resolve_architecture(architecture, "first", "small")


def test_measured_cores_are_limited_by_machine_and_model():
    assert measuring.measured_cores(OcrVariant("text-recognition", "small")) == (1,)
    assert measuring.measured_cores(BERT_TINY) == ((1,) if os.cpu_count() == 1 else (1, 2))


@pytest.mark.parametrize("key", ["bert-mini-qa", "resnet-18"])
def test_an_architecture_answers_every_request_of_a_batch(key: str):
    architecture = ARCHITECTURES[key]
    output = architecture.infer(architecture.build().eval(), architecture.inputs(2))
    assert len(output[0]) == 2


# ---------------------------------------------------------------------------------------------- real measurements


def test_an_architecture_can_be_measured():
    measured = measure_variant("sentiment", "bert-tiny", BERT_TINY, [1, 4], [1], Effort(0.2, 3, 50))
    assert measured[["cores", "batch_size"]].values.tolist() == [[1, 1], [1, 4]]
    assert (measured["latency_mean"] > 0).all() and (measured["latency_p99"] >= measured["latency_mean"]).all()
    assert measured["runs"].between(3, 50).all() and (measured["kind"] == "measured").all()
    assert (measured["load_seconds"] > measured["latency_mean"].iloc[0]).all()
    assert len(profiles.compare_latencies(measured, REFERENCE)) == len(measured)


def test_all_variants_of_a_task_are_measured_and_saved(tmp_path):
    small = CATALOGUE.tasks["sentiment"].model_copy(
        update={"variants": dict(list(CATALOGUE.tasks["sentiment"].variants.items())[:2])}
    )
    catalogue = CATALOGUE.model_copy(update={"tasks": {"sentiment": small}})
    effort = Effort(0.0, min_runs=1)
    table = measuring.measure_all_variants(["sentiment"], catalogue, effort, save=tmp_path / "profiles.csv")
    assert list(dict.fromkeys(table["variant"])) == ["bert-tiny", "bert-mini"]
    assert set(table["batch_size"]) == set(CATALOGUE.batch_sizes("sentiment"))
    saved = profiles.load_profiles(tmp_path / "profiles.csv")
    pd.testing.assert_frame_equal(saved, table[profiles.COLUMNS], rtol=1e-4)


def test_a_short_budget_covers_the_first_variant_and_lists_the_others():
    measured, left_out = measure_within_budget("audio-sentiment", 1e-9, max_batch_size=1)
    names = ["s2t-small", "s2t-medium", "s2t-large", "wav2vec2-large"]
    assert set(measured["variant"]) == {names[0]} and set(measured["batch_size"]) == {1}
    assert left_out[:3] == ["sentiment/bert-tiny", "speech-recognition/s2t-medium", "sentiment/bert-mini"]
    assert len(left_out) == 9


def test_stages_take_turns():
    turns = measuring._variants_in_turns(CATALOGUE, "nlp")
    assert turns[:4] == [
        ("language-identification", "distilbert-multilingual"),
        ("translation", "opus-mt"),
        ("summarisation", "distilbart-1-1"),
        ("language-identification", "xlm-roberta-base"),
    ]
    assert turns[6:] == [("summarisation", name) for name in list(CATALOGUE.tasks["summarisation"].variants)[2:]]


# ------------------------------------------------------------------------------------------------------- errors


def test_a_budget_of_zero_is_refused():
    with pytest.raises(ValueError, match="profile_seconds is 0"):
        measure_within_budget("video", 0)


def test_measuring_on_more_cores_than_the_machine_has_is_refused():
    with pytest.raises(ValueError, match="cannot measure on 4096 cores"):
        measure_variant("sentiment", "bert-tiny", BERT_TINY, [1], [4096])
