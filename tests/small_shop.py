"""A small pipeline of a user: models, samples and labels in a folder, two stages, an adapter between them."""

import json

from opd.profiling.pipeline_file import read_pipeline_file
from opd.serving.packing import store_variant
from opd.serving.stage_samples import load_stage_samples
from opd.serving.store import ModelStore

MODELS = """
import numpy as np

class Scale:
    def __init__(self, folder, factor, name="scaled"):
        self.factor, self.name = factor, name
    def __call__(self, inputs):
        return {self.name: self.factor * inputs["x"], "rest": [b"rest"] * len(inputs["x"])}

class Sign:
    def __init__(self, folder, above=0.0, alone=False):
        self.above, self.alone = above, alone
    def __call__(self, inputs):
        if self.alone and len(inputs["value"]) > 1:
            raise ValueError("one row at a time")
        return {"label": np.where(inputs["value"][:, 0] > self.above, "yes", "no")}
"""

FILE = """
name: shop
device: {cores: 4}
limits: {replicas: 2, batch_size: 2}
objective:
  latency: {seconds: 1.0}
samples: samples.json
labels: labels.json
metric: sklearn.metrics:accuracy_score
tasks:
  - name: scale
    variants:
      - {name: one, model: "shop_models:Scale", settings: {factor: 1.0}, accuracy: 0.9, cores: 1}
      - {name: minus, model: "shop_models:Scale", settings: {factor: -1.0}, accuracy: 0.5, cores: 1}
  - name: sign
    adapter: {pick: [scaled], rename: {scaled: value}}
    variants:
      - {name: strict, model: "shop_models:Sign", settings: {above: 3.0}, accuracy: 0.8, cores: 1}
      - {name: plain, model: "shop_models:Sign", accuracy: 0.7, cores: 1}
"""

VALUES = [1.0, -2.0, 3.0, 4.0]


def write_shop(folder, file=FILE):
    """Write the folder; the labels say whether a value is above 0."""
    folder.mkdir(exist_ok=True)
    (folder / "pipeline.yaml").write_text(file)
    (folder / "shop_models.py").write_text(MODELS)
    tensors = [[{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [value]}] for value in VALUES]
    (folder / "samples.json").write_text(json.dumps([{"inputs": inputs} for inputs in tensors]))
    (folder / "labels.json").write_text(json.dumps({"sign": ["yes" if value > 0 else "no" for value in VALUES]}))
    return folder


def shop_stages(folder):
    """Store its models, and return its stages."""
    pipeline, store = read_pipeline_file(folder), ModelStore(str(folder / "store"))
    for task in pipeline.tasks:
        for each in task.variants:
            store_variant(store, task.name, each.name, str(each.model), folder, each.runtime, each.settings)
    return load_stage_samples(folder, store, folder / "cache")
