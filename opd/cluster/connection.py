"""Requests to the API server: every one has a timeout, a bounded number of attempts and a named error.

Underneath is the official client. Its own defaults (no timeout, waits as long as ``Retry-After`` asks) are never used.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3
from kubernetes import config
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential

from opd.cluster.errors import (
    ClusterError,
    CredentialsError,
    NoAnswerError,
    ServerFailedError,
    TooManyRequestsError,
    UnauthorisedError,
    error_of,
)


@dataclass(frozen=True)
class RetryPolicy:
    """Limits of a call, which takes at most ``attempts`` times connecting, reading and pausing.

    Attributes:
        connect_seconds: for a connection.
        read_seconds: for the next bytes of an answer.
        attempts: for a call that may be repeated.
        first_pause: seconds between the first two attempts, doubled each time.
        longest_pause: seconds between two attempts at most; a cluster that asks for more has refused.
    """

    connect_seconds: float = 3.0
    read_seconds: float = 10.0
    attempts: int = 4
    first_pause: float = 0.2
    longest_pause: float = 5.0

    @property
    def backoff(self) -> wait_exponential:
        """Pauses between attempts."""
        return wait_exponential(multiplier=self.first_pause, max=self.longest_pause)

    def retrying(self, may_pass: Callable[[BaseException], bool]) -> Retrying:
        """Return a caller that repeats a call after errors that may pass, and raises the last error in the end."""
        return Retrying(
            retry=retry_if_exception(may_pass),
            wait=self._pause,
            stop=self._is_exhausted,
            reraise=True,
        )

    def _pause(self, state: RetryCallState) -> float:
        asked = getattr(state.outcome and state.outcome.exception(), "retry_after", None)
        return self.backoff(state) if asked is None else float(asked)

    def _is_exhausted(self, state: RetryCallState) -> bool:
        return state.attempt_number >= self.attempts or state.upcoming_sleep > self.longest_pause


@dataclass(frozen=True)
class ApiRequest:
    """A call to the API server.

    Attributes:
        description: for error messages.
        method: of HTTP.
        path: of the API.
        body: object to send.
        query: parameters by the names of the official client; None leaves one out.
        repeatable: whether the call may be repeated if the fate of the first attempt is unknown.
        stream_seconds: an answer that is read as it arrives may pause this long; None for a short answer.
    """

    description: str
    method: str
    path: str
    body: Any = None
    query: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool = True
    stream_seconds: float | None = None

    def may_pass(self, error: BaseException) -> bool:
        """Return whether the call may be repeated after this error."""
        unknown_fate = isinstance(error, ServerFailedError | NoAnswerError)
        return isinstance(error, TooManyRequestsError) or (unknown_fate and self.repeatable)


def credentials(kubeconfig: str | None = None, context: str | None = None) -> Configuration:
    """Read how to reach the cluster.

    In this order: a named kubeconfig, the one in ``KUBECONFIG``, the service account of this pod, the kubeconfig of the
    home folder.

    Raises:
        CredentialsError: if it cannot be read.
    """
    settings = Configuration()
    named = kubeconfig or os.environ.get("KUBECONFIG")
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and not named and not context
    try:
        if in_pod:
            config.load_incluster_config(client_configuration=settings)
        else:
            config.load_kube_config(config_file=named, context=context, client_configuration=settings)
    except (config.ConfigException, OSError, ValueError, TypeError, KeyError) as error:
        where = "the pod's service account" if in_pod else f"the kubeconfig {named or '~/.kube/config'}"
        raise CredentialsError(
            f"{where} cannot be used: {error}; set KUBECONFIG or the context, or run in a pod with a service account"
        ) from error
    return settings


class Connection:
    """Access to an API server; may be used by several threads.

    Args:
        load: reads the credentials, again whenever they are not accepted.

    Raises:
        CredentialsError: if there are none.
    """

    def __init__(self, load: Callable[[], Configuration]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._client = self._connect()

    def send(self, request: ApiRequest, policy: RetryPolicy, before_write: Callable[[], object]) -> Any:
        """Make a call, again with new credentials after a 401, and again after what may pass.

        Args:
            request: what to ask.
            policy: limits of the call.
            before_write: called before every attempt to write; raises to prevent it.

        Returns:
            the content of the answer, or the answer itself if it is to be streamed.

        Raises:
            ClusterError: naming what went wrong and the remedy.
        """
        return policy.retrying(request.may_pass)(self._send_authorised, request, policy, before_write)

    def _send_authorised(self, request: ApiRequest, policy: RetryPolicy, before_write: Callable[[], object]) -> Any:
        client = self._client
        try:
            return _attempt(client, request, policy, before_write)
        except UnauthorisedError:
            with self._lock:
                if self._client is client:  # no other thread has loaded the credentials again
                    self._client = self._connect()
            return _attempt(self._client, request, policy, before_write)

    def _connect(self) -> DynamicClient:
        settings = self._load()
        # Attempts are counted here: urllib3's own would multiply them, and sleep as long as Retry-After says.
        settings.retries = False
        # Kinds are known from their manifests, so there is nothing to discover.
        return DynamicClient(ApiClient(settings), discoverer=lambda *_: None)


def _attempt(
    client: DynamicClient, request: ApiRequest, policy: RetryPolicy, before_write: Callable[[], object]
) -> Any:
    if request.method != "GET":
        before_write()
    streamed = request.stream_seconds is not None
    seconds = (policy.connect_seconds, request.stream_seconds if streamed else policy.read_seconds)
    try:
        response = client.request(
            request.method, request.path, request.body, serialize=False, _request_timeout=seconds, **request.query
        )
        return response if streamed else response.data
    except ApiException as error:
        raise _named_error(request.description, error) from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NoAnswerError(
            f"{request.description}: no answer from {client.configuration.host} within {seconds[0]:g} s to connect and "
            f"{seconds[1]:g} s to read: {error}; check that the API server runs and can be reached"
        ) from error


def _named_error(description: str, error: ApiException) -> ClusterError:
    """Return the error of an answer; the reason that the cluster gives is in the body."""
    if not error.status:
        return NoAnswerError(f"{description}: {error.reason}; check the address and the certificates of the cluster")
    try:
        reason = json.loads(error.body or "")["message"]
    except (ValueError, TypeError, KeyError):
        reason = str(error.reason or "")
    named = error_of(int(error.status), description, reason)
    if isinstance(named, TooManyRequestsError):
        given = (error.headers or {}).get("Retry-After", "")  # the mapping ignores case
        named.retry_after = float(given) if given.isdigit() else None
    return named


def parse_answer(description: str, content: bytes | str) -> Any:
    """Parse the JSON of an answer.

    Raises:
        ServerFailedError: if it is not JSON.
    """
    try:
        return json.loads(content)
    except ValueError as error:
        raise ServerFailedError(
            f"{description}: the answer is no JSON ({content[:80]!r}); check that the address is that of an API server"
        ) from error
