"""Tiny models for tests of the serving plane: real replicas of real processes, without megabytes of weights."""

import time

from opd.serving.models import PayloadError


class Upper:
    """Answers a text in capitals after ``seconds`` a batch; refuses ``bad``."""

    def __init__(self, folder, seconds):
        self.seconds = seconds

    def __call__(self, payloads):
        time.sleep(self.seconds)
        for place, payload in enumerate(payloads):
            if payload == b"bad":
                raise PayloadError(f"element {place} is {payload!r}, which is no text to answer")
        return [payload.upper() for payload in payloads]


class Broken:
    """A variant that does not load."""

    def __init__(self, folder):
        raise ValueError("the weights are damaged")
