"""Solvers: configurations for a load, without learning.

The baselines of Sec. VI-A and the expert of Alg. 2. A solver takes a pipeline and a load, usually the forecast maximum
of the coming seconds, and returns a configuration within the limits of Eq. 4, whatever the load.
"""

from opd.solvers.baselines import greedy, random_configuration
from opd.solvers.ipa import IpaParameters, ipa_dynamic_program, ipa_highs, ipa_objective
from opd.solvers.myopic import myopic, predicted_reward

__all__ = [
    "IpaParameters",
    "greedy",
    "ipa_dynamic_program",
    "ipa_highs",
    "ipa_objective",
    "myopic",
    "predicted_reward",
    "random_configuration",
]
