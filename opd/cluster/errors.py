"""Errors of a cluster, each with its remedy.

:func:`error_of` maps an HTTP status to one of them; everything that talks to the cluster raises only these.
"""

from __future__ import annotations


class ClusterError(RuntimeError):
    """The cluster did not do what was asked."""


class InputError(ValueError):
    """The command line asks for something impossible."""


class CredentialsError(ClusterError):
    """There is nothing to log in with."""


class OtherNamespaceError(ClusterError):
    """An object is not of the namespace that this program works in."""


class NotDeployedError(ClusterError):
    """The pipeline is not deployed."""


class NotOursError(ClusterError):
    """An object that the pipeline needs does not belong to it."""


class LedByAnotherError(ClusterError):
    """Another controller leads the pipeline."""


class NotServingError(ClusterError):
    """A pipeline does not serve, or not in time."""


class LeftoverError(ClusterError):
    """Objects that should be deleted are still there."""


class UnreadyError(ClusterError):
    """New replicas do not serve, or old ones do not end."""


class StoppedError(ClusterError):
    """This controller may not act any longer: it is being stopped, or another one leads."""


class NoAnswerError(ClusterError):
    """No answer, or none in time."""


class UnauthorisedError(ClusterError):
    """401: the credentials are not accepted, freshly loaded ones included."""


class ForbiddenError(ClusterError):
    """403: the account may not do this."""


class NotFoundError(ClusterError):
    """404: the object, or the kind of object, does not exist."""


class ConflictError(ClusterError):
    """409: the object changed meanwhile, or exists already."""


class GoneError(ClusterError):
    """410: the cluster no longer knows the version from which to watch; list again."""


class InvalidError(ClusterError):
    """400, 413 or 422: the object breaks a rule of the cluster."""


class TooManyRequestsError(ClusterError):
    """429: the cluster gets too many requests, and asks to wait longer than the retry policy allows.

    Attributes:
        retry_after: seconds it asks to wait, None if it does not say.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerFailedError(ClusterError):
    """5xx: the cluster failed."""


_BY_STATUS: dict[int, tuple[type[ClusterError], str]] = {
    400: (InvalidError, "correct the object"),
    401: (UnauthorisedError, "log in again, or check that the service account exists and its token is mounted"),
    403: (
        ForbiddenError,
        "give the account this right by a Role and a RoleBinding, cluster-wide ones if the kind has no namespace",
    ),
    404: (NotFoundError, "deploy it, or check namespace and name, and that its kind is installed in the cluster"),
    409: (ConflictError, "read it again and repeat the change"),
    410: (GoneError, "list again and watch from there"),
    413: (InvalidError, "make the object smaller"),
    422: (InvalidError, "correct the object"),
    429: (TooManyRequestsError, "ask less often, or raise the limits of the API server"),
}
_FAILED = (ServerFailedError, "look at the health of the API server; try again later")


def error_of(status: int, description: str, reason: str) -> ClusterError:
    """Return the error of an HTTP status.

    Args:
        status: of the answer.
        description: of the request.
        reason: that the cluster gives.
    """
    kind, remedy = _BY_STATUS.get(status, _FAILED)
    return kind(f"{description}: the cluster answers {status}: {reason or 'without a reason'}; {remedy}")
