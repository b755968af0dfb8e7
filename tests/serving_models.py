"""Tiny models for tests of the serving plane: replicas are real processes, without megabytes of weights."""

import tempfile
import time
from pathlib import Path

from opd.serving.models import PayloadError
from opd.serving.store import ModelStore, write_manifest


class Upper:
    """Answers a text in capitals after ``seconds`` a batch; refuses ``bad``."""

    def __init__(self, folder, seconds):
        self.seconds = seconds

    def __call__(self, payloads):
        time.sleep(self.seconds)
        for place, payload in enumerate(payloads):
            if payload == b"bad":
                raise PayloadError(f"element {place} is {payload!r}, which is not a text to answer")
        return [payload.upper() for payload in payloads]


class Broken:
    """A variant that does not load."""

    def __init__(self, folder):
        raise ValueError("the weights are damaged")


def push_variant(store, task, variant, model="Upper", **settings):
    """Put a variant of one of these models into the store at a URL."""
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder), f"serving_models:{model}", settings)
        ModelStore(str(store)).push(Path(folder), task, variant)
