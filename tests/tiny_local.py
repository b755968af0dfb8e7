"""A pipeline of two tasks with tiny models, for a backend of local processes."""

import time

import pandas as pd
from deadlines import PATIENCE
from serving_models import push_variant
from small_pipelines import stages

from opd.live.generator import start_load
from opd.measurement import SimulationParameters
from opd.pipeline import Pipeline, ServiceLevel, Task, Variant

PARAMETERS = SimulationParameters(interval=2, drop_after=PATIENCE)
"""On a busy machine requests wait for long, but are not dropped."""

FAST, SLOW, BROKEN = 0, 1, 2
INITIAL = stages((FAST, 1, 1), (FAST, 1, 1))


def tiny_pipeline():
    profile = dict.fromkeys((1, 2, 4), 0.05)
    variants = tuple(Variant(name, 0.5, 1, profile, 2.0) for name in ("fast", "slow", "broken"))
    tasks = (Task("first", variants), Task("second", variants))
    return Pipeline("tiny", tasks, capacity=6, max_replicas=3, max_batch_size=4, service_level=ServiceLevel(1.0))


def fill_store(store):
    """Put all variants of the pipeline into the store at a URL."""
    for task in ("first", "second"):
        push_variant(store, task, "fast", seconds=0.005)
        push_variant(store, task, "slow", seconds=0.05)
        push_variant(store, task, "broken", "Broken")


class Load:
    """Texts sent by the load generator while a test does something else."""

    def __init__(self, backend, tmp_path, counts, texts=("hello",), retry=False):
        payloads = tmp_path / "payloads.parquet"
        pd.DataFrame({"payload": [text.encode() for text in texts]}).to_parquet(payloads)
        output = tmp_path / "requests.parquet"
        self._process = start_load(backend.address, "tiny", counts, payloads, 0, output, retry, PATIENCE)

    def wait_until_under_way(self):
        """Wait until requests have been sent for a second: on a busy machine the generator starts slowly."""
        time.sleep(max(self._process.started(PATIENCE) + 1.0 - time.time(), 0.0))

    def records(self):
        return self._process.finish(2 * PATIENCE)


def outcomes(records):
    return records["outcome"].value_counts().to_dict()


def queue_status(backend, position):
    """State of a stage in the first gateway."""
    return backend.gateways.servers[0].http("GET", f"/stages/{backend.stages[position].task.name}")
