"""Policies, built by name, and the control loop.

The names of the policies stand here, because importing this package loads nothing else. A policy of a user is named
``module:Class``, see :mod:`opd.control.user_policy`.
"""

AGENT = "agent"
"""The one agent for every pipeline, as it ships or fine-tuned."""

TUNED_AGENT = "agent-tuned"
"""In tables that compare both, the one agent fine-tuned for the pipeline."""

SINGLE_AGENT = "agent-single"
"""An agent that was trained for one pipeline from nothing."""

REACTIVE_POLICIES = ("hpa", "queue-threshold", "ladder")
"""Autoscalers that answer what was measured, see :mod:`opd.control.reactive`."""

LOOKAHEAD = "lookahead"
"""The planner; it decides for the agent outside of what that has learned."""

PLANNERS = (LOOKAHEAD, "foresight")
"""Policies that plan by simulation, see :mod:`opd.control.lookahead`."""

BASELINES = (
    *("random", "greedy", "ipa", "dynamic-program", *REACTIVE_POLICIES),
    *("myopic", "myopic-backlog", "clairvoyant", *PLANNERS),
)
"""Policies without training; ``ipa`` and ``dynamic-program`` solve the same problem by different methods."""

READY_POLICIES = (*BASELINES, AGENT)
"""Policies that decide about any pipeline at once."""

POLICIES = (*READY_POLICIES, SINGLE_AGENT)
SIMULATED_POLICIES = ("clairvoyant", "foresight")
"""Policies that need the coming load, which only the simulator knows."""

DEPLOYABLE_POLICIES = tuple(name for name in POLICIES if name not in SIMULATED_POLICIES)
"""Policies that run on every backend."""

DECISION_SHARE = 0.5
"""Share of the interval that a decision of a user's policy may take by default."""


def is_user_policy(name: str) -> bool:
    """Return whether a policy is a class of a user, ``module:Class``."""
    return ":" in name


def policy_label(name: str) -> str:
    """Return the name of a policy in tables and figures: of a user's policy the name of its class."""
    return name.rpartition(":")[2].rpartition(".")[2] if is_user_policy(name) else name
