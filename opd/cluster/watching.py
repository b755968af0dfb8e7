"""Watches: events of objects from a version on, and the state of objects kept up to date while connections break."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator

import urllib3
from kubernetes.watch.watch import iter_resp_lines

from opd.cluster.api import Cluster
from opd.cluster.connection import ApiRequest, parse_answer
from opd.cluster.errors import ClusterError, GoneError, NoAnswerError, error_of
from opd.cluster.resources import Object, Resource

logger = logging.getLogger(__name__)

WATCH_SECONDS = 20.0
"""A watch is opened again after this long, so a connection that died silently is noticed."""


def watch(
    cluster: Cluster,
    resource: Resource,
    version: str,
    labels: str = "",
    fields: str = "",
    seconds: float = WATCH_SECONDS,
) -> Iterator[tuple[str, Object]]:
    """Yield changes of objects from ``version`` on, until ``seconds`` have passed or the cluster ends the watch.

    Yields:
        ``ADDED``, ``MODIFIED``, ``DELETED`` or ``BOOKMARK``, and the object after the change.

    Raises:
        GoneError: if ``version`` is too old; list again.
        ClusterError: if the watch cannot be opened, or breaks.
    """
    description = f"watching {resource.plural} in namespace {cluster.namespace!r}"
    query = {
        "watch": True,
        "allow_watch_bookmarks": True,
        "resource_version": version,
        "timeout_seconds": max(round(seconds), 1),
        "label_selector": labels or None,
        "field_selector": fields or None,
    }
    longest_pause = seconds + cluster.retry_policy.read_seconds
    path = resource.path(cluster.namespace)
    response = cluster.send(ApiRequest(description, "GET", path, query=query, stream_seconds=longest_pause))
    try:
        for line in filter(None, iter_resp_lines(response)):
            event = parse_answer(description, line)
            if event["type"] == "ERROR":
                status = event["object"]
                raise error_of(int(status.get("code", 500)), description, status.get("message", ""))
            yield event["type"], event["object"]
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NoAnswerError(f"{description}: the connection broke: {error}") from error
    finally:
        response.close()
        response.release_conn()


def follow(
    cluster: Cluster, resource: Resource, labels: str = "", fields: str = "", stop: threading.Event | None = None
) -> Iterator[dict[str, Object]]:
    """Yield the matching objects by name, at first and after every change, until ``stop`` is set.

    While the cluster cannot be reached nothing is yielded and what was known stays true; afterwards everything is
    listed again. Two attempts are at most :attr:`RetryPolicy.longest_pause` apart.
    """
    stopped, policy = stop or threading.Event(), cluster.retry_policy
    pause = policy.first_pause
    while not stopped.is_set():
        try:
            for objects in _follow_once(cluster, resource, labels, fields):
                pause = policy.first_pause
                yield objects
                if stopped.is_set():
                    return
        except GoneError as error:
            logger.info("%s; listing again", error)
        except ClusterError as error:
            logger.warning("%s; what is known stays until the cluster answers", error)
            stopped.wait(pause)
            pause = min(2.0 * pause, policy.longest_pause)


def _follow_once(cluster: Cluster, resource: Resource, labels: str, fields: str) -> Iterator[dict[str, Object]]:
    """List, then watch until that fails; a watch that only ends is opened again."""
    found, version = cluster.list(resource, labels, fields)
    objects = {each["metadata"]["name"]: each for each in found}
    yield dict(objects)
    while True:
        begin = time.monotonic()
        for kind, changed in watch(cluster, resource, version, labels, fields):
            version = changed["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            if kind == "DELETED":
                objects.pop(changed["metadata"]["name"], None)
            else:
                objects[changed["metadata"]["name"]] = changed
            yield dict(objects)
        if time.monotonic() - begin < cluster.retry_policy.first_pause:  # do not flood a cluster that ends every watch
            time.sleep(cluster.retry_policy.first_pause)
