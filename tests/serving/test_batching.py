"""Checked, joined and split messages: known answers, then every datatype in raw and typed contents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mlserver.grpc.dataplane_pb2 import ModelInferRequest, ModelInferResponse

from opd.serving import batching
from opd.serving.batching import check_request, join, joinable, rows, signature, split
from opd.serving.contents import DATATYPES, contents_of, payload_request
from opd.serving.protocol import MalformedRequestError, ServingError, set_age
from opd.serving.tensors import answer_of, message_of, tensors_of


def as_answer(request):
    """The answer of a model that returns its inputs."""
    answer = ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for tensor in request.inputs:
        answer.outputs.add().MergeFromString(tensor.SerializeToString())  # both have the same fields
    return answer


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [True, False])
def test_requests_are_joined_along_the_first_axis(raw):
    one = message_of({"x": np.array([[1.0, 2.0]], np.float32), "word": ["a"]}, raw)
    two = message_of({"x": np.array([[3.0, 4.0], [5.0, 6.0]], np.float32), "word": ["bb", ""]}, raw)
    one.id, two.id = "first", "second"
    joined = join([one, two])
    assert rows(joined) == 3 and joined.id == ""
    assert bool(joined.raw_input_contents) is raw
    tensors = tensors_of(joined)
    np.testing.assert_array_equal(tensors["x"], np.float32([[1, 2], [3, 4], [5, 6]]))
    assert tensors["word"].tolist() == [b"a", b"bb", b""]
    assert (rows(one), one.id, rows(two)) == (1, "first", 2), "the requests stay as they are"


@pytest.mark.parametrize("raw", [True, False])
def test_an_answer_is_split_by_the_rows_of_the_requests(raw):
    answer = answer_of({"score": np.array([[1, 2], [3, 4], [5, 6]]), "label": ["a", "bb", "ccc"]}, raw)
    answer.parameters["version"].string_param = "7"
    answer.outputs[1].parameters["content_type"].string_param = "str"
    first, second = split(answer, [1, 2], "m")
    assert tensors_of(first)["score"].tolist() == [[1, 2]] and tensors_of(first)["label"].tolist() == [b"a"]
    assert tensors_of(second)["score"].tolist() == [[3, 4], [5, 6]]
    assert tensors_of(second)["label"].tolist() == [b"bb", b"ccc"]
    assert second.parameters["version"].string_param == "7"
    assert second.outputs[1].parameters["content_type"].string_param == "str"


def test_a_single_request_and_its_answer_are_passed_on_without_a_copy():
    request = payload_request([b"a"])
    answer = as_answer(request)
    assert join([request]) is request and split(answer, [1], "m") == [answer]


def different(change):
    request = message_of({"x": np.zeros((1, 2), np.float32)})
    change(request)
    return request


@pytest.mark.parametrize(
    "change",
    [
        lambda request: setattr(request.inputs[0], "name", "y"),
        lambda request: setattr(request.inputs[0], "datatype", "INT32"),
        lambda request: request.inputs[0].shape.append(1),
        lambda request: setattr(request.parameters["temperature"], "string_param", "0"),
        lambda request: setattr(request.parameters["temperature"], "int64_param", 0),
        lambda request: setattr(request.inputs[0].parameters["content_type"], "string_param", "np"),
        lambda request: request.outputs.add(name="scores"),
        lambda request: request.raw_input_contents.pop(),
    ],
)
def test_requests_that_differ_in_more_than_rows_are_not_joined(change):
    assert signature(different(change)) != signature(different(lambda request: None))


@pytest.mark.parametrize(
    "change",
    [
        lambda request: setattr(request, "id", "42"),
        lambda request: set_age(request, 3.0),
        lambda request: request.inputs[0].shape.__setitem__(0, 5),
    ],
)
def test_id_age_and_rows_do_not_matter_for_joining(change):
    assert signature(different(change)) == signature(different(lambda request: None))


def test_the_requests_of_the_most_frequent_signature_are_chosen():
    two, other, four = (message_of({name: np.zeros((rows, 2))}) for name, rows in (("x", 2), ("y", 3), ("x", 4)))
    assert joinable([two, other, four]) == [two, four]


# --- errors ----------------------------------------------------------------------------------------------------------


def request_of(datatype="FP32", shape=(1, 2), name="x", raw=None, **contents):
    request = ModelInferRequest()
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def two_tensors(first, second):
    return message_of({"a": np.zeros(first), "b": np.zeros(second)})


def doubled():
    request = two_tensors((1, 1), (1, 1))
    request.inputs[1].name = "a"
    return request


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (ModelInferRequest(), "the message has no tensor; send at least one"),
        (request_of(name="", fp32_contents=[1, 2]), "tensor 0 has no name"),
        (doubled(), "2 tensors are named 'a'"),
        (request_of(datatype="FP31"), "tensor 'x' has datatype 'FP31'; known are BOOL, UINT8"),
        (request_of(shape=(), fp32_contents=[1]), "tensor 'x' has no shape"),
        (request_of(shape=(0, 2)), r"tensor 'x' has shape \[0, 2\]; its first axis counts the rows, send at least 1"),
        (request_of(shape=(-1, -2), fp32_contents=[1, 2]), r"tensor 'x' has shape \[-1, -2\]; no axis may be negative"),
        (request_of(fp32_contents=[1]), r"tensor 'x' has shape \[1, 2\] and 1 elements; that shape needs 2"),
        (request_of(fp64_contents=[1, 2]), "tensor 'x' of FP32 has values in fp64_contents; put them in fp32_contents"),
        (
            request_of("INT8", int_contents=[1, -129]),
            "tensor 'x' has value -129; INT8 ranges from -128 to 127",
        ),
        (request_of("UINT16", uint_contents=[1, 65536]), "tensor 'x' has value 65536; UINT16 ranges from 0 to 65535"),
        (request_of(raw=bytes(7)), "tensor 'x' has 7 bytes of raw contents; FP32 takes 4 an element"),
        (request_of(raw=bytes(12)), r"tensor 'x' has shape \[1, 2\] and 3 elements; that shape needs 2"),
        (request_of(raw=bytes(8), fp32_contents=[1]), "tensor 'x' has typed and raw contents; give one of them"),
        (request_of("FP16", bytes_contents=[b"a"]), "tensor 'x' has typed contents, which the protocol lacks for FP16"),
        (request_of("BYTES", raw=b"\x05\0\0\0four"), "tensor 'x': element 0 of its raw contents is cut short"),
        (request_of("BYTES", raw=b"\x01\0\0\0a\0"), "tensor 'x': element 1 of its raw contents is cut short"),
        (two_tensors((2, 1), (3, 1)), "tensor 'b' has 3 rows and tensor 'a' has 2; .* send as many in every tensor"),
    ],
)
def test_a_malformed_request_is_refused_with_tensor_value_and_remedy(request_, error):
    with pytest.raises(MalformedRequestError, match=error):
        check_request(request_)


def test_raw_contents_for_some_tensors_only_are_refused():
    request = two_tensors((1, 1), (1, 1))
    del request.raw_input_contents[1]
    with pytest.raises(MalformedRequestError, match="2 tensors and 1 raw contents; give raw contents for every tensor"):
        check_request(request)


def test_a_request_beyond_the_size_limit_is_refused(monkeypatch):
    monkeypatch.setattr(batching, "MAX_MESSAGE_BYTES", 1000)
    check_request(payload_request([bytes(900)]))
    with pytest.raises(MalformedRequestError, match="has 10.. bytes, the limit is 1000; send fewer rows"):
        check_request(payload_request([bytes(1000)]))


@pytest.mark.parametrize("found", [0, 1, 4])
@pytest.mark.parametrize("counts", [[3], [1, 2]])
def test_an_answer_with_another_number_of_rows_names_model_tensor_and_shape(counts, found):
    answer = answer_of({"right": np.zeros(3), "boxes": np.zeros((found, 4))})
    error = rf"model 'detect' answered 3 rows with tensor 'boxes' of shape \[{found}, 4\]; its first axis must be 3"
    with pytest.raises(ServingError, match=error):
        split(answer, counts, "detect")


# --- properties ------------------------------------------------------------------------------------------------------


def elements_of(datatype):
    if datatype == "BYTES":
        return st.binary(max_size=9)
    return arrays.from_dtype(DATATYPES[datatype].dtype)


@st.composite
def batches(draw):
    """Requests of one signature: tensors of any datatype, some rows each."""
    raw = draw(st.booleans())
    known = [name for name in DATATYPES if raw or DATATYPES[name].field]
    columns = [
        (f"tensor{place}", datatype, draw(st.lists(st.integers(0, 3), max_size=2)))
        for place, datatype in enumerate(draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)))
    ]
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    return [
        message_of(
            {
                name: draw(arrays.arrays(DATATYPES[datatype].dtype, (count, *axes), elements=elements_of(datatype)))
                for name, datatype, axes in columns
            },
            raw,
        )
        for count in counts
    ]


@given(batches())
def test_splitting_undoes_joining(requests):
    for request in requests:
        check_request(request)
    joined = join(requests)
    check_request(joined)
    parts = split(as_answer(joined), [rows(request) for request in requests], "echo")
    for part, request in zip(parts, requests, strict=True):
        assert contents_of(part)[1] == contents_of(request)[1]
        assert [t.SerializeToString() for t in part.outputs] == [t.SerializeToString() for t in request.inputs]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["x", "y", ""]),
            st.sampled_from([*DATATYPES, "?"]),
            st.lists(st.integers(-1, 2), max_size=2),
            st.sampled_from([None, *(element.field for element in DATATYPES.values() if element.field)]),
            st.integers(0, 3),
        ),
        max_size=3,
    ),
    st.lists(st.binary(max_size=8), max_size=3),
)
def test_any_request_is_refused_with_a_reason_or_can_be_read(tensors, raw):
    request = ModelInferRequest(raw_input_contents=raw)
    for name, datatype, shape, field, count in tensors:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if field:
            getattr(tensor.contents, field).extend([b"a" if field == "bytes_contents" else 1] * count)
    try:
        check_request(request)
    except MalformedRequestError as error:
        assert "tensor" in str(error)
    else:
        found = tensors_of(request)
        assert [list(array.shape) for array in found.values()] == [shape for _, _, shape, _, _ in tensors]
        assert {len(array) for array in found.values()} == {rows(request)}


@given(batches())
def test_joining_is_concatenation(requests):
    joined = tensors_of(join(requests))
    for name, found in joined.items():
        expected = np.concatenate([tensors_of(request)[name] for request in requests])
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
