"""Requests from JSON and Parquet files, and the errors of those that are wrong."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.host.documents import DocumentError
from opd.serving import batching
from opd.serving.batching import check_request
from opd.serving.contents import DATATYPES, TensorError
from opd.serving.json_requests import array_of
from opd.serving.samples import read_samples
from opd.serving.tensors import tensors_of

TENSOR = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4.5]}


def written(folder, content):
    path = folder / "requests.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_requests_are_read_whole(tmp_path):
    words = {
        "name": "word",
        "shape": [2],
        "datatype": "BYTES",
        "data": ["é", ""],
        "parameters": {"content_type": "str"},
    }
    request = {
        "id": "7",
        "inputs": [TENSOR, words],
        "parameters": {"top": 3, "exact": True, "unit": "s"},
        "outputs": [{"name": "score"}],
    }
    found, other = read_samples(written(tmp_path, [request, {"inputs": [TENSOR]}]))
    np.testing.assert_array_equal(tensors_of(found)["x"], np.float32([[1, 2], [3, 4.5]]))
    assert tensors_of(found)["word"].tolist() == ["é".encode(), b""]
    assert found.inputs[1].parameters["content_type"].string_param == "str"
    assert (found.id, found.parameters["top"].int64_param, found.parameters["exact"].bool_param) == ("7", 3, True)
    assert [output.name for output in found.outputs] == ["score"]
    assert not other.id and not other.parameters


def test_payloads_of_a_parquet_file_become_requests(tmp_path):
    path = tmp_path / "pages.parquet"
    pd.DataFrame({"payload": [b"one", b"two"], "truth": "?"}).to_parquet(path)
    assert [tensors_of(sample)["payload"].tolist() for sample in read_samples(path)] == [[b"one"], [b"two"]]


def test_without_pyarrow_the_error_names_it(tmp_path, monkeypatch):
    path = tmp_path / "pages.parquet"
    pd.DataFrame({"payload": [b"one"]}).to_parquet(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(DocumentError, match=r"need the package pyarrow; install it with: pip install pyarrow, or"):
        read_samples(path)


def changed(**parts):
    return [{"inputs": [TENSOR]}, {"inputs": [{**TENSOR, **parts}]}]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({"inputs": []}, "must hold a list of requests, not dict"),
        ([], "holds no requests"),
        ([{}], r"\[0\].inputs is missing"),
        ([{"inputs": []}], r"\[0\].inputs needs at least 1 entry"),
        (
            [{"inputs": [TENSOR], "input": 1}],
            r"\[0\].input is not a known key; known are inputs, id",
        ),
        (changed(name=""), r"\[1\].inputs\[0\].name"),
        (changed(datatype="FP31"), r"\[1\].inputs\[0\]: datatype 'FP31' is not known; known are BOOL"),
        (changed(shape=[3, 2]), r"\[1\].inputs\[0\]: 4 values do not fit shape \[3, 2\], which needs 6"),
        (changed(shape=[]), r"\[1\].inputs\[0\]: shape \[\] must begin with the number of rows"),
        (changed(shape=[0, 4], data=[]), r"\[1\].inputs\[0\]: shape \[0, 4\] must begin with the number of rows"),
        (changed(shape=[2, 2.0]), r"\[1\].inputs\[0\].shape\[1\] must be a whole number"),
        (changed(data=[1, 2, 3, "4"]), r"\[1\].inputs\[0\]: value '4' must be a number for datatype FP32"),
        (changed(data=[1, 2, 3, None]), r"\[1\].inputs\[0\]: value None must be a number"),
        (changed(datatype="INT8", data=[1, 2, 3, 128]), "value 128 is outside -128 to 127, the range of datatype INT8"),
        (changed(datatype="INT32"), "value 4.5 must be a whole number for datatype INT32"),
        (changed(datatype="UINT8", data=[0, 1, 2, -1]), "value -1 is outside 0 to 255, the range of datatype UINT8"),
        (changed(datatype="BOOL", data=[0, 1, 0, 1]), "value 0 must be true or false for datatype BOOL"),
        (changed(datatype="INT64", data=[True, 1, 0, 1]), "value True must be a whole number for datatype INT64"),
        (changed(datatype="FP16", data=[1e5, 1, 0, 1]), "value 100000.0 is outside -65504.0 to 65504.0"),
        (changed(data=[10**400, 1, 0, 1]), "is outside .*, the range of datatype FP32"),
        ([{"inputs": [TENSOR, TENSOR]}], r"\[0\]: 2 tensors are named 'x'"),
        ([{"inputs": [TENSOR, {**TENSOR, "name": "y", "shape": [4]}]}], r"\[0\]: tensor 'y' has 4 rows and tensor 'x'"),
        ([{"inputs": [TENSOR], "parameters": {"t": 0.5}}], r"\[0\].parameters.t"),
        ([{"inputs": [TENSOR], "parameters": {"t": 2**63}}], r"\[0\].parameters.t"),
    ],
)
def test_what_is_wrong_is_named_by_place_and_value(tmp_path, content, error):
    with pytest.raises(DocumentError, match=error):
        read_samples(written(tmp_path, content))


def test_all_problems_are_reported_together(tmp_path):
    with pytest.raises(DocumentError) as caught:
        read_samples(written(tmp_path, [{"inputs": [{**TENSOR, "data": []}]}, {"inputs": [{**TENSOR, "name": 3}]}]))
    assert "[0].inputs[0]: 0 values do not fit" in str(caught.value) and "[1].inputs[0].name" in str(caught.value)


def test_a_sample_larger_than_the_pipeline_accepts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(batching, "MAX_MESSAGE_BYTES", 10)
    with pytest.raises(DocumentError, match=r"\[0\]: the request has .. bytes, the limit is 10"):
        read_samples(written(tmp_path, [{"inputs": [TENSOR]}]))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file .*; samples are requests"):
        read_samples(tmp_path / "missing.json")
    table = tmp_path / "table.csv"
    table.write_text("x\n1\n")
    with pytest.raises(DocumentError, match="ends in '.csv'; samples are requests in a .json or .parquet file"):
        read_samples(table)
    pd.DataFrame({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(DocumentError, match="has no column 'payload' of bytes"):
        read_samples(tmp_path / "text.parquet")
    pd.DataFrame({"payload": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(DocumentError, match="column 'payload' must hold bytes, not str"):
        read_samples(tmp_path / "text.parquet")


@given(st.sampled_from([name for name in DATATYPES if name != "BYTES"]), st.data())
def test_values_in_range_are_read_as_they_are(datatype, data):
    dtype = DATATYPES[datatype].dtype
    if dtype.kind == "b":
        elements = st.booleans()
    elif dtype.kind == "f":
        elements = st.floats(width=8 * dtype.itemsize)
    else:
        elements = st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = data.draw(st.lists(st.lists(elements, min_size=2, max_size=2), min_size=1, max_size=3))
    nested, flat = (array_of(each, datatype, [len(values), 2]) for each in (values, sum(values, [])))
    assert nested.dtype == dtype
    np.testing.assert_array_equal(nested, np.array(values, dtype))
    np.testing.assert_array_equal(flat, nested)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(st.sampled_from(["inputs", "name", "shape", "data", "id"]), children, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.text(max_size=3) | JSON,
            "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
            "datatype": st.sampled_from([*DATATYPES, "?"]) | JSON,
            "data": st.lists(JSON, max_size=4) | JSON,
        },
    )
)
def test_any_content_is_read_or_refused_with_a_reason(tmp_path_factory, change):
    path = written(tmp_path_factory.getbasetemp(), [{"inputs": [{**TENSOR, **change}]}])
    try:
        samples = read_samples(path)
    except DocumentError as error:
        assert str(path) in str(error)
    else:
        for sample in samples:
            check_request(sample)


def test_values_beyond_the_shape_are_refused():
    with pytest.raises(TensorError, match=r"3 values do not fit shape \[1, 2\], which needs 2"):
        array_of([[1, 2], [3]], "FP32", [1, 2])
