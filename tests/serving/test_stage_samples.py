"""A user's pipeline checked and measured as it is served: samples by stage, mismatches, latency, accuracy."""

from __future__ import annotations

import os

import pandas as pd
import pytest
from small_shop import FILE, shop_stages, write_shop

from opd.host.documents import DocumentError
from opd.profiling.measuring import Effort, as_table, measured_rows
from opd.serving import accuracy, served_variant
from opd.serving.compatibility import find_mismatches
from opd.serving.stage_samples import SampleError, answers_of, load_stage_samples
from opd.serving.store import STORE_URL_VARIABLE
from opd.serving.tensors import tensors_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Folder of the pipeline, its models stored."""
    folder = write_shop(tmp_path_factory.mktemp("shop"))
    shop_stages(folder)
    return folder


# Samples of stages


@pytest.mark.processes
def test_samples_of_a_stage_are_answers_of_the_most_accurate_variant_and_kept(shop):
    stages = shop_stages(shop)
    assert [tensors_of(request)["x"].tolist() for request in stages.of("scale")] == [[[1]], [[-2]], [[3]], [[4]]]
    found = stages.of("sign")
    assert [{name: array.tolist() for name, array in tensors_of(request).items()} for request in found] == [
        {"value": [[1]]},
        {"value": [[-2]]},
        {"value": [[3]]},
        {"value": [[4]]},
    ]
    (kept,) = (shop / "cache").glob("sign-*")
    kept.write_bytes(b"")
    assert stages.of("sign") == []  # what is kept is read and not computed again
    kept.unlink()
    sign = stages.pipeline.tasks[1]
    with pytest.raises(SampleError, match="variant 'strict' of task 'sign' fails on sample 0: .*KeyError: 'value'"):
        answers_of(stages.store, sign, sign.variants[0], stages.samples)


# Latency, start-up and memory


@pytest.mark.processes
def test_a_variant_of_any_stage_is_measured_as_it_is_served(shop, monkeypatch):
    monkeypatch.setattr(served_variant, "STARTS", 2)
    monkeypatch.setenv(STORE_URL_VARIABLE, str(shop / "store"))
    serve = served_variant.served_variants(shop, cache=shop / "cache")
    variant = serve("sign", "plain")
    cells = [(cores, size) for cores in [1, 2][: os.cpu_count()] for size in (1, 2)]
    table = as_table(measured_rows("sign", "plain", variant, cells, Effort(0.0, min_runs=2)))
    assert table["batch_size"].tolist()[:2] == [1, 2]
    assert (table["latency_mean"] > 0).all() and (table["startup_seconds"] > 0.1).all()
    assert table["memory_mb"].between(20, 2000).all()
    assert serve("sign", "strict").fingerprint() != variant.fingerprint() == serve("sign", "plain").fingerprint()


# Mismatches


@pytest.mark.processes
def test_all_mismatches_are_found_and_named(tmp_path):
    file = FILE.replace("{factor: -1.0}", "{factor: 1.0, name: other}").replace("{above: 3.0}", "{alone: true}")
    file = file.replace('name: plain, model: "shop_models:Sign"', 'name: plain, model: "shop_models:Missing"')
    mismatches = find_mismatches(shop_stages(write_shop(tmp_path / "shop", file)))
    texts = [str(each) for each in mismatches]
    assert len(texts) == 3, texts
    adapter, batch, missing = texts
    assert adapter.startswith(
        "task 'sign': the adapter, given the answer of variant 'minus' ('other' FP32 [1, 1], 'rest'"
    )
    assert "there is no tensor 'scaled'; it gets 'other', 'rest'" in adapter
    assert batch.startswith("task 'sign': variant 'strict', given 2 times the answer of variant 'one' ('value' FP32")
    assert "one row at a time" in batch and "set limits.batch_size to 1" in batch
    assert missing.startswith("task 'sign': variant 'plain'") and "no attribute 'Missing'" in missing


# Accuracy


@pytest.mark.processes
def test_accuracy_is_measured_by_variant_and_end_to_end(shop):
    stages = shop_stages(shop)
    labels = accuracy.read_labels(stages.pipeline, shop, stages.samples)
    labelled = accuracy.LabelledPipeline(stages, labels, accuracy.load_metric("sklearn.metrics:accuracy_score"))
    assert labelled.measure_variants().values.tolist() == [["sign", "strict", 0.8, 0.5], ["sign", "plain", 0.7, 1.0]]
    table = labelled.measure_configurations()
    assert {(*row[:2], row[3]) for row in table.values.tolist()} == {
        ("one", "strict", 0.5),
        ("one", "plain", 1.0),
        ("minus", "strict", 0.25),
        ("minus", "plain", 0.0),
    }
    assert table["accuracy_sum"].tolist() == pytest.approx([1.7, 1.3, 1.6, 1.2])
    note = accuracy.order_note(table)
    assert "1 of 6 pairs" in note and "one/strict (sum 1.700, measured 0.500) and one/plain (sum 1.600" in note


def test_labels_of_the_last_task_are_needed_end_to_end(shop):
    labelled = accuracy.LabelledPipeline(shop_stages(shop), {"scale": [1]}, max)
    with pytest.raises(ValueError, match="only scale has labels; end to end, those of 'sign' are needed"):
        labelled.measure_configurations()


def test_orders_that_agree_are_said_to():
    table = pd.DataFrame({"a": ["x", "y", "z"], "accuracy_sum": [1.0, 2.0, 2.0], "measured": [0.1, 0.2, 0.3]})
    assert accuracy.order_note(table) == "Measured accuracy and the sum of Eq. 1 order the configurations alike."


def test_metrics_of_scikit_learn_torchmetrics_and_functions():
    assert accuracy.load_metric("sklearn.metrics:accuracy_score")([1, 0, 1, 1], [1, 1, 1, 1]) == 0.75
    assert accuracy.load_metric("torchmetrics.classification:BinaryAccuracy")([1, 0, 1, 1], [1, 1, 1, 1]) == 0.75
    assert accuracy.load_metric("torchmetrics.text:CharErrorRate")(["ab"], ["ac"]) == 0.5
    with pytest.raises(accuracy.MetricError, match="metric 'nowhere:score' cannot be imported"):
        accuracy.load_metric("nowhere:score")
    with pytest.raises(accuracy.MetricError, match="first label 'a', first answer .*ValueError"):
        accuracy.load_metric("sklearn.metrics:accuracy_score")(["a"], [[0.1, 0.9]])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ("{", "is not JSON"),
        ('["yes"]', "labels of 'sign': 1 entries; write a list with one label for each of 4 samples"),
        ('{"sing": []}', "'sing' is no task; the pipeline has scale, sign"),
        ('{"sign": 3}', "labels of 'sign': int; write a list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, labels, problem):
    folder = write_shop(tmp_path / "shop")
    (folder / "labels.json").write_text(labels)
    with pytest.raises(DocumentError, match=f"(?s)labels.json.*{problem}"):
        accuracy.labelled_pipeline(folder)


def test_an_adapter_that_fails_is_told_once_and_later_ones_are_imported(tmp_path):
    file = FILE.replace("- name: scale", "- name: scale\n    adapter: {pick: [absent]}")
    file = file.replace("{pick: [scaled], rename: {scaled: value}}", "nowhere:f")
    stages = load_stage_samples(write_shop(tmp_path / "shop", file))
    first, second = map(str, find_mismatches(stages))  # no model is reached
    assert first.startswith("task 'scale': the adapter, given sample 0 ('x' FP32 [1, 1]): ")
    assert "there is no tensor 'absent'; it gets 'x'" in first
    assert second.startswith("task 'sign': the adapter, given no request: function 'nowhere:f' cannot be imported: ")
