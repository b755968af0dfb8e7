"""Requests by REST as the messages that a runtime gets."""

import asyncio

import pytest
from mlserver.settings import ModelParameters, ModelSettings
from mlserver.types import InferenceRequest

from opd.serving.message_server import MessageRuntime
from opd.serving.protocol import MalformedRequestError
from opd.serving.tensors import answer_of, tensors_of


class Recorder(MessageRuntime):
    """Keeps the requests it gets, and answers with their tensors."""

    async def infer(self, request):
        self.request = request
        return answer_of(tensors_of(request))


def asked(*inputs, **parts):
    settings = ModelSettings(name="recorder", implementation=Recorder, parameters=ModelParameters())
    runtime = Recorder(settings)
    request = InferenceRequest.model_validate({"inputs": inputs, **parts})
    answer = asyncio.run(runtime.predict(request))
    return runtime.request, answer


def tensor(datatype="FP32", shape=(2, 1), data=(1.0, 2.0), **parts):
    return {"name": "x", "datatype": datatype, "shape": list(shape), "data": list(data), **parts}


@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("FP16", [[0.5], [2]], [[0.5], [2.0]]),
        ("BOOL", [True, False], [[True], [False]]),
        ("INT64", [[-(2**63)], [1]], [[-(2**63)], [1]]),
        ("BYTES", ["é", ""], [["é".encode()], [b""]]),
    ],
)
def test_values_arrive_whether_nested_or_flat(datatype, data, expected):
    request, answer = asked(tensor(datatype, data=data))
    assert tensors_of(request)["x"].tolist() == expected
    assert list(answer.outputs[0].data) == [value for row in expected for value in row]


def test_id_parameters_and_selected_outputs_arrive():
    request, _ = asked(
        tensor(parameters={"content_type": "np"}),
        id="7",
        parameters={"top": 3, "exact": True, "unit": "s"},
        outputs=[{"name": "y", "parameters": {"content_type": "pd"}}],
    )
    assert request.id == "7" and request.inputs[0].parameters["content_type"].string_param == "np"
    assert request.parameters["top"].int64_param == 3 and request.parameters["exact"].bool_param
    assert [(each.name, each.parameters["content_type"].string_param) for each in request.outputs] == [("y", "pd")]


def test_values_that_do_not_fit_are_refused_by_tensor_and_value():
    with pytest.raises(MalformedRequestError, match=r"tensor 'x': 2 values do not fit shape \[3, 1\], which needs 3"):
        asked(tensor(shape=(3, 1)))
    with pytest.raises(MalformedRequestError, match="tensor 'x': value 1.5 must be a whole number for datatype INT8"):
        asked(tensor("INT8", data=[1.5, 2]))
