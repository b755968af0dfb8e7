"""Parameters of the simulated device and the distribution of its service times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import ndtri

DISTRIBUTIONS = ("lognormal", "exponential")

QUANTILES = 1 << 14
"""Number of quantiles that represent the distribution of service times."""


@dataclass(frozen=True)
class SimulationParameters:
    """Behaviour of the simulated device.

    Attributes:
        interval: seconds between two decisions.
        batch_timeout: seconds the oldest request waits before a partial batch is taken.
        drop_after: age in seconds at which a request that is still waiting reneges and counts as dropped.
        service_noise: sigma of the lognormal factor (of mean 1) on each service time; 0 for none.
        service_distribution: ``lognormal``, or ``exponential`` for the queues of textbooks.

    Raises:
        ValueError: if a parameter is out of its range.
    """

    interval: int = 10
    batch_timeout: float = 0.25
    drop_after: float = 10.0
    service_noise: float = 0.1
    service_distribution: str = "lognormal"

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval {self.interval} s must be at least 1")
        for name in ("batch_timeout", "drop_after", "service_noise"):
            if not 0.0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} {getattr(self, name)} must be finite and not negative")
        if self.service_distribution not in DISTRIBUTIONS:
            raise ValueError(f"service_distribution {self.service_distribution!r} is not one of {DISTRIBUTIONS}")


@cache
def service_factors(parameters: SimulationParameters) -> np.ndarray:
    """(K,) equally likely factors on service times, of mean 1: the midpoints of K quantiles of their distribution.

    Drawing one of them is cheaper than drawing a normal and taking its exponential.
    """
    shares = (np.arange(QUANTILES) + 0.5) / QUANTILES
    if parameters.service_distribution == "exponential":
        factors = -np.log1p(-shares)
    elif parameters.service_noise > 0.0:
        factors = np.exp(parameters.service_noise * ndtri(shares))
    else:
        return np.ones(1)
    return factors / factors.mean()
