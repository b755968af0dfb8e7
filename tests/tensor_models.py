"""Runtimes that work on whole messages, for tests of the serving plane: replicas are real processes."""

import numpy as np

from opd.serving.message_server import MessageRuntime
from opd.serving.protocol import MalformedRequestError
from opd.serving.tensors import answer_of, tensors_of


class Affine(MessageRuntime):
    """Scales rows ``x`` and shifts them by ``shift``; also says how many rows it was asked for at once."""

    async def load(self):
        return True

    async def infer(self, request):
        tensors = tensors_of(request)
        if set(tensors) != {"x", "shift"}:
            raise MalformedRequestError(f"the model takes x and shift, not {', '.join(tensors)}")
        x, shift = tensors["x"], tensors["shift"]
        answer = answer_of(
            {
                "y": 2 * x + shift,
                "rows": np.full(len(x), len(x), np.int32),
                "parameter": [request.parameters["unit"].string_param] * len(x),
            },
            raw=bool(request.raw_input_contents),
        )
        answer.model_name, answer.id = self.name, request.id
        return answer


def once_more(tensors):
    """The adapter of a second stage of the same model, which shifts by one."""
    return {"x": tensors["y"], "shift": np.ones_like(tensors["y"])}
