"""Policies, built by name, and the control loop.

The names of the policies stand here, because importing this package loads nothing else.
"""

AGENT = "agent"
BASELINES = ("random", "greedy", "ipa", "dynamic-program", "myopic", "myopic-backlog", "clairvoyant")
"""Policies without training; ``ipa`` and ``dynamic-program`` solve the same problem by different methods."""

POLICIES = (*BASELINES, AGENT)
SIMULATED_POLICIES = ("clairvoyant",)
"""Policies that need the coming load, which only the simulator knows."""

DEPLOYABLE_POLICIES = tuple(name for name in POLICIES if name not in SIMULATED_POLICIES)
"""Policies that run on every backend."""
