"""Samples: requests to check, measure and load a pipeline with, read from a file.

A ``.json`` file holds a list of requests in the protocol's JSON form (:mod:`opd.serving.json_requests`). A ``.parquet``
file holds bytes in column ``payload``; each becomes a request of one tensor of BYTES.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from mlserver.grpc.dataplane_pb2 import ModelInferRequest
from pydantic import TypeAdapter, ValidationError

from opd.host.documents import DocumentError, describe_problems, read_json
from opd.host.errors import problem_list
from opd.serving.batching import check_request
from opd.serving.contents import PAYLOAD, payload_request
from opd.serving.json_requests import JsonRequest
from opd.serving.protocol import MalformedRequestError


def read_samples(path: Path) -> list[ModelInferRequest]:
    """Read requests from a file.

    Raises:
        FileNotFoundError: if there is no such file.
        DocumentError: if it is malformed, or holds no request; it lists all problems by place, value and remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; samples are requests in a .json or .parquet file")
    match path.suffix:
        case ".json":
            samples = _from_json(path)
        case ".parquet":
            samples = _from_parquet(path)
        case suffix:
            raise DocumentError(f"{path} ends in {suffix!r}; samples are requests in a .json or .parquet file")
    if not samples:
        raise DocumentError(f"{path} holds no requests; write at least one")
    _check(samples, path)
    return samples


def _from_json(path: Path) -> list[ModelInferRequest]:
    content = read_json(path)
    if not isinstance(content, list):
        raise DocumentError(f"{path} must hold a list of requests, not {type(content).__name__}; write [request, ...]")
    try:
        requests = TypeAdapter(list[JsonRequest]).validate_python(content)
    except ValidationError as error:
        raise DocumentError(describe_problems(error, str(path), list[JsonRequest])) from error
    return [request.message() for request in requests]


def _from_parquet(path: Path) -> list[ModelInferRequest]:
    try:
        payloads = pd.read_parquet(path, columns=[PAYLOAD])[PAYLOAD]
    except ImportError as error:
        remedy = "install it with: pip install pyarrow, or write the requests to a .json file"
        raise DocumentError(f"{path}: Parquet files need the package pyarrow; {remedy}") from error
    except (ValueError, KeyError) as error:  # pyarrow's errors are ValueErrors
        raise DocumentError(f"{path} has no column {PAYLOAD!r} of bytes: {error}") from error
    wrong = [type(payload).__name__ for payload in payloads if not isinstance(payload, bytes)]
    if wrong:
        raise DocumentError(f"{path}: column {PAYLOAD!r} must hold bytes, not {wrong[0]}")
    return [payload_request([payload]) for payload in payloads]


def _check(samples: list[ModelInferRequest], path: Path) -> None:
    problems = []
    for place, sample in enumerate(samples):
        try:
            check_request(sample)
        except MalformedRequestError as error:
            problems.append(f"[{place}]: {error}")
    if problems:
        raise DocumentError(problem_list(f"{path} has malformed requests", problems))
