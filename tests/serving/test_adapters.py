"""Adapters between stages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_folders import SHOP, write_pipeline

from opd.profiling.pipelines import load_pipeline
from opd.serving.adapters import AdapterError, load_adapter, next_request
from opd.serving.protocol import ServingError, set_age
from opd.serving.tensors import answer_of, message_of, tensors_of


def halved(tensors):
    """A user's function."""
    return {"half": tensors["x"] / 2}


def forgetful(tensors):
    """A user's function that returns nothing."""


def wrong(tensors):
    """A user's function that takes another tensor."""
    return {"x": tensors["z"]}


NO_FUNCTION = 3
HERE = __name__


def request_of(raw=True):
    request = message_of({"x": np.array([[1.0, 2.0]]), "y": np.array([["a"]])}, raw)
    request.id = "7"
    request.parameters["temperature"].string_param = "0.5"
    return request


def test_without_an_adapter_nothing_changes():
    request = request_of()
    before = request.SerializeToString(deterministic=True)
    for nothing in (None, {}, {"pick": None}):
        assert load_adapter(nothing, "t")(request).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    ("specification", "expected"),
    [
        ({"pick": ["y"]}, {"y": [[b"a"]]}),
        ({"pick": ["y", "x"]}, {"y": [[b"a"]], "x": [[1, 2]]}),
        ({"rename": {"x": "features"}}, {"features": [[1, 2]], "y": [[b"a"]]}),
        ({"rename": {"x": "y", "y": "x"}}, {"y": [[1, 2]], "x": [[b"a"]]}),
        ({"rename": {"x": "features"}, "pick": ["x"]}, {"features": [[1, 2]]}),
        ({"function": f"{HERE}:halved"}, {"half": [[0.5, 1]]}),
    ],
)
def test_the_tensors_that_an_adapter_gives(specification, expected, raw):
    adapted = load_adapter(specification, "t")(request_of(raw))
    found = {name: array.tolist() for name, array in tensors_of(adapted).items()}
    assert (found, list(found)) == (expected, list(expected))
    assert adapted.id == "7" and adapted.parameters["temperature"].string_param == "0.5"
    assert bool(adapted.raw_input_contents) is raw


@pytest.mark.parametrize(
    ("specification", "error"),
    [
        ({"pick": ["z"]}, "stage 't', adapter pick: there is no tensor 'z'; it gets 'x', 'y'"),
        ({"rename": {"z": "x"}}, "stage 't', adapter rename: there is no tensor 'z'; it gets 'x', 'y'"),
        ({"rename": {"x": "y"}}, "stage 't', adapter rename: 2 tensors are named 'y'"),
        (
            {"function": f"{HERE}:forgetful"},
            f"{HERE}:forgetful: the function returned NoneType, not a dict",
        ),
        ({"function": f"{HERE}:wrong"}, f"stage 't', adapter {HERE}:wrong: KeyError: 'z'"),
    ],
)
def test_an_adapter_that_fails_names_stage_adapter_and_tensor(specification, error):
    with pytest.raises(ServingError, match=error):
        load_adapter(specification, "t")(request_of())


@pytest.mark.parametrize(
    ("specification", "error"),
    [
        ({"drop": ["x"]}, "task 't': 'drop' is no adapter; use pick, rename, function"),
        ({"function": "no_such_module:f"}, "'no_such_module:f' cannot be imported: .*; write module:function"),
        ({"function": f"{HERE}:no_such_function"}, "no_such_function"),
        ({"function": HERE}, "no function but module; write module:function"),
        ({"function": f"{HERE}:NO_FUNCTION"}, f"'{HERE}:NO_FUNCTION' is no function but int"),
    ],
)
def test_an_adapter_that_cannot_be_built_is_refused(specification, error):
    with pytest.raises(AdapterError, match=error):
        load_adapter(specification, "t")


@pytest.mark.parametrize(
    ("written", "given"),
    [
        ("{rename: {scores: x}, pick: [scores]}", {"pick": ["scores"], "rename": {"scores": "x"}}),
        ("module:function", {"function": "module:function"}),
        ("null", None),
    ],
)
def test_the_adapter_of_a_pipeline_file_comes_with_its_task(tmp_path, written, given):
    write_pipeline(tmp_path, SHOP.replace("{rename: {scores: features}}", written))
    assert [task.adapter for task in load_pipeline(tmp_path).tasks] == [None, given]


@given(st.booleans(), st.dictionaries(st.text("abc", min_size=1), st.lists(st.integers(0, 9), min_size=2, max_size=2)))
def test_outputs_become_the_next_inputs_with_names_datatypes_and_shapes(raw, tensors):
    request = request_of()
    set_age(request, 1.0)
    answer = answer_of(tensors, raw)
    for output in answer.outputs:
        output.parameters["content_type"].string_param = "np"
    following = next_request(answer, request)
    assert following.id == "7" and following.parameters == request.parameters
    assert [t.SerializeToString() for t in following.inputs] == [t.SerializeToString() for t in answer.outputs]
    assert list(following.raw_input_contents) == list(answer.raw_output_contents)
