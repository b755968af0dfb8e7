"""The measure of service that figures and tables show beside the cost: what the objective asks for."""

from __future__ import annotations

from typing import NamedTuple

from opd.objective import Objective
from opd.pipeline import ServiceLevel


class ServiceMeasure(NamedTuple):
    """A measure of service, and how it is called.

    Attributes:
        name: in titles.
        axis: label of its axis.
        value: template of a value in a sentence.
        reward: label of the reward that it enters, with its unit.
        column: of evaluations and timelines.
        scale: factor from the column to the axis.
        goal: what the objective asks for, in the unit of the axis; None if more is always better.
    """

    name: str
    axis: str
    value: str
    reward: str
    column: str
    scale: float
    goal: float | None


def service_measure(objective: Objective) -> ServiceMeasure:
    """QoS for the weights of Eqs. 3 and 7; the share of the requests within the latency for a service level."""
    if isinstance(objective, ServiceLevel):
        return ServiceMeasure(
            name="share within the objective",
            axis=f"share within {1e3 * objective.seconds:g} ms (%)\nobjective: {objective.percentile:g} %",
            value="{:.1f} % within",
            reward="reward (cores)",
            column="within",
            scale=100.0,
            goal=objective.percentile,
        )
    return ServiceMeasure("QoS", "QoS (Eq. 3)", "QoS {:.1f}", "reward", "qos", 1.0, None)
