"""Messages and numpy arrays: there and back for all datatypes, and MLServer's reading of them."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from mlserver.codecs import NumpyCodec
from mlserver.grpc.converters import ModelInferRequestConverter

from opd.serving.contents import DATATYPES, TensorError, pack_bytes, payload_request, payloads_of, unpack_bytes
from opd.serving.tensors import answer_of, message_of, tensors_of, text_of

DTYPES = [element.dtype for element in DATATYPES.values() if element.dtype != object]


def test_raw_contents_are_little_endian_and_bytes_stand_behind_their_length():
    request = message_of({"n": np.array([[1, 256]], ">i2"), "word": np.array(["é", "b"])})
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        ("n", "INT16", [1, 2]),
        ("word", "BYTES", [2]),
    ]
    assert list(request.raw_input_contents) == [struct.pack("<hh", 1, 256), b"\x02\0\0\0\xc3\xa9\x01\0\0\0b"]


def test_typed_contents_are_in_the_list_of_their_datatype():
    answer = answer_of({"yes": np.array([True, False]), "n": np.array([-1, 2], np.int8)}, raw=False)
    assert list(answer.outputs[0].contents.bool_contents) == [True, False]
    assert list(answer.outputs[1].contents.int_contents) == [-1, 2]


def test_half_precision_is_always_raw():
    request = message_of({"x": np.array([1.5], np.float16), "y": np.array([1])}, raw=False)
    assert len(request.raw_input_contents) == 2 and tensors_of(request)["x"].tolist() == [1.5]


@pytest.mark.parametrize("raw", [True, False])
@given(
    numbers=st.sampled_from(DTYPES).flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=1))),
    elements=st.lists(st.binary(max_size=5), min_size=1, max_size=4),
)
def test_arrays_come_back_as_they_were(raw, numbers, elements):
    words = np.array([*elements, None], object)[:-1]  # numpy would make texts of one length of them
    found = tensors_of(message_of({"numbers": numbers, "words": words}, raw))
    assert list(found) == ["numbers", "words"]
    assert found["numbers"].dtype == numbers.dtype
    np.testing.assert_array_equal(found["numbers"], numbers)
    assert found["words"].tolist() == elements


@pytest.mark.parametrize("dtype", DTYPES)
def test_mlserver_reads_the_same_values(dtype):
    array = np.array([[0, 1, 1]], dtype)
    request = ModelInferRequestConverter.to_types(message_of({"x": array}))
    np.testing.assert_array_equal(NumpyCodec.decode_input(request.inputs[0]), array)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (3.0, "tensor 'x' is a single value; give it an axis that counts the rows"),
        (np.array([1j]), "tensor 'x' has elements of type complex128; convert them to one of bool, uint8"),
        (np.array(["2020-01-01"], "datetime64[D]"), "tensor 'x' has elements of type datetime64"),
        (np.array([b"a", 3], object), "tensor 'x' has an element of type int; BYTES holds text and bytes"),
    ],
)
def test_what_the_protocol_lacks_is_refused(value, error):
    with pytest.raises(TensorError, match=error):
        message_of({"x": value})


@given(st.lists(st.binary()))
def test_packed_elements_are_unpacked(elements):
    assert unpack_bytes(pack_bytes(elements)) == elements


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (message_of({"a": ["x"], "b": ["y"]}), "the message has 2 tensors; send one, of BYTES"),
        (message_of({"a": [1.0]}), "tensor 'a' is of type FP64; send BYTES"),
        (message_of({"a": [["x"]]}), r"tensor 'a' has shape \[1, 1\] and 1 elements; send shape \[n\]"),
    ],
)
def test_payloads_are_one_tensor_of_bytes(message, error):
    assert payloads_of(message_of({"a": ["x", "y"]})) == payloads_of(payload_request([b"x", b"y"])) == [b"x", b"y"]
    with pytest.raises(TensorError, match=error):
        payloads_of(message)


def test_an_answer_as_text():
    assert text_of(answer_of({"page": ["one\n", "two"]})) == "one\ntwo"
    assert text_of(answer_of({"label": [b"cat"], "score": [[0.5]]})) == '{"label": ["cat"], "score": [[0.5]]}'
