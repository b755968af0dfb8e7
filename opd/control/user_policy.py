"""Policies of users: any class with a method ``decide``, held to a time limit and replaced where it fails.

The contract:

* The policy is named ``module:Class``. The module is installed, or a file of the project folder.
* The constructor gets the pipeline and the objective if it has parameters named ``pipeline`` and ``objective``. It may
  take its time; the loop has not begun.
* ``decide(observation)`` returns variant, replicas and batch size of every task: a
  :data:`~opd.pipeline.Configuration`, or the same numbers in tuples, lists or an array.

No base class is required. A policy gets copies, so it can change nothing but what it decides.
"""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from opd.control.decisions import as_decision
from opd.control.policies import Policy, on_available_cores
from opd.host.errors import reason_of
from opd.host.imports import import_object
from opd.measurement import Observation
from opd.objective import Objective
from opd.pipeline import Configuration, InfeasibleError, Pipeline, check_feasible

logger = logging.getLogger(__name__)

CONTRACT = (
    "write module:Class, a class of an installed module or of a file in the project folder; its constructor takes "
    "pipeline, objective, both or nothing; decide(observation) returns variant, replicas and batch size of every task"
)


class PolicyError(ValueError):
    """A policy of a user cannot be built; the message names the policy, the reason and the contract."""


def load_user_policy(text: str, pipeline: Pipeline, objective: Objective) -> Any:
    """Import a class and construct a policy of it.

    Args:
        text: ``module:Class``.
        pipeline: given to the constructor if it has a parameter of that name.
        objective: likewise.

    Raises:
        PolicyError: if there is no such class, it cannot be constructed, or it does not decide.
    """
    try:
        made = import_object(text)
    except ImportError as error:
        raise PolicyError(f"policy {error}; {CONTRACT}") from error
    try:
        if not callable(made):
            raise TypeError(f"it is {made!r}, not a class")
        given = {"pipeline": copy.deepcopy(pipeline), "objective": copy.deepcopy(objective)}
        policy = made(**_accepted(made, given))
        if inspect.isclass(policy) or not callable(getattr(policy, "decide", None)):
            raise TypeError(f"{type(policy).__name__} has no method decide")
    except (Exception, SystemExit) as error:  # the code of a user may raise anything
        raise PolicyError(f"policy {text!r} cannot be used: {reason_of(error)}; {CONTRACT}") from error
    return policy


def _accepted(made: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Select the arguments that a constructor has parameters for."""
    parameters = inspect.signature(made).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return given
    return {name: value for name, value in given.items() if name in parameters}


class UserPolicy(Policy):
    """A policy that nothing is expected of: where it fails, the fallback policy decides and the reason is kept.

    It fails if it raises, returns no configuration or one beyond a limit, or is late. It decides in a thread of its
    own, because a thread can be left behind: a late answer is discarded. Until then the policy is not asked again.

    Args:
        name: for messages.
        policy: has a method ``decide``.
        pipeline: defines the limits.
        fallback: decides instead.
        seconds: limit of a decision.

    Raises:
        ValueError: if the limit is not positive.
    """

    def __init__(self, name: str, policy: Any, pipeline: Pipeline, fallback: Policy, seconds: float) -> None:
        if not 0.0 < seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"policy {name!r}: the limit of a decision is {seconds} s, but must be positive")
        self._name, self._policy, self._pipeline, self._seconds = name, policy, pipeline, seconds
        self._fallback_policy = fallback
        self._thread: threading.Thread | None = None

    def warm_up(self, observation: Observation) -> None:
        """Warm up the fallback policy; what a policy of a user needs, its constructor prepares."""
        self._fallback_policy.warm_up(observation)

    def decide(self, observation: Observation) -> Configuration:
        """The decision of the policy, or of the fallback policy with the reason in ``refused``."""
        decided, refused = self._ask(observation)
        if refused and refused != self.refused:
            logger.warning("%s; the fallback policy decides", refused)
        self.refused = refused
        self.fallback = decided is None
        return self._fallback_policy.decide(observation) if decided is None else decided

    def _ask(self, observation: Observation) -> tuple[Configuration | None, str]:
        """Return the decision of the policy, or None and the reason."""
        if self._thread is not None and self._thread.is_alive():
            return None, f"policy {self._name} is still busy with an earlier decision"
        # The coming load is known to the simulator only; a policy that used it would not work elsewhere.
        seen = copy.deepcopy(replace(observation, coming_load=None, coming_counts=None))
        answers: list[Configuration | BaseException] = []

        def decide() -> None:
            try:
                decided = as_decision(self._pipeline, self._policy.decide(seen))
                check_feasible(on_available_cores(self._pipeline, observation), decided)
                answers.append(decided)
            except BaseException as error:  # SystemExit, too, must not end more than this thread
                answers.append(error)

        self._thread = threading.Thread(target=decide, name=f"policy {self._name}", daemon=True)
        self._thread.start()
        self._thread.join(self._seconds)
        answer = answers[0] if answers else None
        if answer is None:
            return None, f"policy {self._name} has not decided within {self._seconds:g} s"
        if isinstance(answer, BaseException):
            if isinstance(answer, InfeasibleError):
                return None, f"policy {self._name}: {answer}"
            logger.debug("policy %s failed", self._name, exc_info=answer)  # its author sees where
            return None, f"policy {self._name}: {reason_of(answer)}"
        return answer, ""
