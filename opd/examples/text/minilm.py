"""The first layers of MiniLM, a sentence encoder, as an ONNX network.

The weights are those of ``sentence-transformers/all-MiniLM-L6-v2``: BERT with 6 layers of 384 units and 12 heads. A
sentence is the mean over its tokens, of length 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser

LAYERS = 6
"""Layers of the whole network."""

HEADS = 12
UNITS = 384

_BEFORE = """
<ir_version: 10, opset_import: ["" : 20]>
minilm (int64[rows, tokens] ids, int64[rows, tokens] mask) => (float[rows, {units}] sentence) {{
  length = Shape <start = 1, end = 2> (ids)
  places = Slice (positions, zero, length)
  words = Gather (vocabulary, ids)
  placed = Add (words, places)
  hidden_0 = LayerNormalization <epsilon = 1e-12> (placed, scale, shift)
  one_per_token = Cast <to = 1> (mask)
  padding = Sub (one_per_token, one)
  far_below = Mul (padding, large)
  bias = Unsqueeze (far_below, middle)
"""
_LAYER = """
  mixed_{i} = MatMul (hidden_{i}, project_{i})
  shifted_{i} = Add (mixed_{i}, project_bias_{i})
  parts_{i} = Reshape (shifted_{i}, split_shape)
  turned_{i} = Transpose <perm = [2, 0, 3, 1, 4]> (parts_{i})
  query_{i}, key_{i}, value_{i} = Split <axis = 0, num_outputs = 3> (turned_{i})
  key_turned_{i} = Transpose <perm = [0, 1, 2, 4, 3]> (key_{i})
  likeness_{i} = MatMul (query_{i}, key_turned_{i})
  masked_{i} = Add (likeness_{i}, bias)
  attention_{i} = Softmax (masked_{i})
  context_{i} = MatMul (attention_{i}, value_{i})
  context_flat_{i} = Squeeze (context_{i}, zero)
  heads_{i} = Transpose <perm = [0, 2, 1, 3]> (context_flat_{i})
  joined_{i} = Reshape (heads_{i}, join_shape)
  dense_{i} = MatMul (joined_{i}, output_{i})
  dense_shifted_{i} = Add (dense_{i}, output_bias_{i})
  attended_{i} = Add (dense_shifted_{i}, hidden_{i})
  middle_{i} = LayerNormalization <epsilon = 1e-12> (attended_{i}, middle_scale_{i}, middle_shift_{i})
  wide_{i} = MatMul (middle_{i}, widen_{i})
  wide_shifted_{i} = Add (wide_{i}, widen_bias_{i})
  active_{i} = Gelu (wide_shifted_{i})
  narrow_{i} = MatMul (active_{i}, narrow_weight_{i})
  narrow_shifted_{i} = Add (narrow_{i}, narrow_bias_{i})
  whole_{i} = Add (narrow_shifted_{i}, middle_{i})
  hidden_{j} = LayerNormalization <epsilon = 1e-12> (whole_{i}, end_scale_{i}, end_shift_{i})
"""
_AFTER = """
  weights = Unsqueeze (one_per_token, last)
  kept = Mul (hidden_{layers}, weights)
  total = ReduceSum <keepdims = 0> (kept, token_axis)
  sentence = LpNormalization <axis = 1, p = 2> (total)
}}
"""


def network(weights: Mapping[str, np.ndarray], layers: int) -> onnx.ModelProto:
    """Build the network of the first layers, with weights in half precision that become floats when it is loaded.

    Args:
        weights: of the whole network, by the names that ``transformers`` gives them.
        layers: number of layers, 1 to :data:`LAYERS`.

    Returns:
        A network with inputs ``ids`` and ``mask`` (rows, tokens), 1 for a token and 0 for padding, and output
        ``sentence`` (rows, units).
    """
    text = _BEFORE + "".join(_LAYER.replace("{i}", str(i)).replace("{j}", str(i + 1)) for i in range(layers)) + _AFTER
    model = onnx.parser.parse_model(text.format(units=UNITS, layers=layers))
    trained = _embedding(weights)
    for i in range(layers):
        trained |= _layer(weights, i)
    for name, array in _constants().items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for name, array in trained.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float16), f"{name}_half"))
        cast = onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    onnx.checker.check_model(model, full_check=True)
    return model


def _constants() -> dict[str, np.ndarray]:
    return {
        "zero": np.array([0]),
        "one": np.array(1, np.float32),
        "large": np.array(1e9, np.float32),
        "middle": np.array([1, 2]),
        "last": np.array([2]),
        "token_axis": np.array([1]),
        "split_shape": np.array([0, 0, 3, HEADS, UNITS // HEADS]),
        "join_shape": np.array([0, 0, UNITS]),
    }


def _embedding(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights before the layers; every token belongs to the first of the two sentences that BERT tells apart."""
    of = {name.removeprefix("embeddings."): array for name, array in weights.items()}
    return {
        "vocabulary": of["word_embeddings.weight"],
        "positions": of["position_embeddings.weight"] + of["token_type_embeddings.weight"][0],
        "scale": of["LayerNorm.weight"],
        "shift": of["LayerNorm.bias"],
    }


def _layer(weights: Mapping[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    """Weights of a layer; queries are divided by the root of the units of a head here, not in the network."""
    start = f"encoder.layer.{i}."
    of = {name.removeprefix(start): array for name, array in weights.items() if name.startswith(start)}
    parts, scale = ("query", "key", "value"), np.sqrt(UNITS / HEADS)
    shrink = {"query": 1.0 / scale, "key": 1.0, "value": 1.0}
    project = np.concatenate([shrink[part] * of[f"attention.self.{part}.weight"].T for part in parts], axis=1)
    bias = np.concatenate([shrink[part] * of[f"attention.self.{part}.bias"] for part in parts])
    named = {
        "project": project,
        "project_bias": bias,
        "output": of["attention.output.dense.weight"].T,
        "output_bias": of["attention.output.dense.bias"],
        "middle_scale": of["attention.output.LayerNorm.weight"],
        "middle_shift": of["attention.output.LayerNorm.bias"],
        "widen": of["intermediate.dense.weight"].T,
        "widen_bias": of["intermediate.dense.bias"],
        "narrow_weight": of["output.dense.weight"].T,
        "narrow_bias": of["output.dense.bias"],
        "end_scale": of["output.LayerNorm.weight"],
        "end_shift": of["output.LayerNorm.bias"],
    }
    return {f"{name}_{i}": array for name, array in named.items()}
