"""Pipelines in ciw, as far as ciw can express them: a network of queues in a row.

Ciw's nodes serve customers one by one. They do not form batches, their servers have no start-up time, and a customer
reneges by the time in a node, not in the network. The comparison is therefore limited to the case that all simulators
support: batch size 1, a fixed configuration, and no request old enough to be dropped. There the answers agree for every
request.
"""

from __future__ import annotations

import ciw
import numpy as np

from opd.pipeline import Configuration, Pipeline


def ciw_simulation(pipeline: Pipeline, configuration: Configuration, times: np.ndarray) -> ciw.Simulation:
    """Make a simulation that is ready to run.

    Args:
        pipeline: the pipeline to simulate.
        configuration: fixed, with all replicas ready.
        times: (M,) arrivals in seconds, ascending.

    Raises:
        ValueError: if a batch size is not 1.
    """
    if any(stage.batch_size != 1 for stage in configuration):
        raise ValueError(f"ciw cannot form batches; use batch size 1 instead of the configuration {configuration}")
    gaps = np.diff(times, prepend=0.0).tolist()
    stages = len(configuration)
    network = ciw.create_network(
        # Without an endless last gap the sequence would start again.
        arrival_distributions=[ciw.dists.Sequential([*gaps, np.inf]), *[None] * (stages - 1)],
        service_distributions=[
            ciw.dists.Deterministic(variant.service_time(1)) for variant, _ in pipeline.selected(configuration)
        ],
        number_of_servers=[stage.replicas for stage in configuration],
        routing=np.eye(stages, k=1).tolist(),
    )
    return ciw.Simulation(network)


def ciw_latencies(simulation: ciw.Simulation, stages: int, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Run a simulation and read its records.

    Args:
        simulation: one of :func:`ciw_simulation`.
        stages: number of its nodes.
        end: seconds at which it stops.

    Returns:
        (K,) time of completion and (K,) seconds since the arrival, of every request that is through, by completion.
    """
    simulation.simulate_until_max_time(end)
    records = simulation.get_all_records()
    births = {record.id_number: record.arrival_date for record in records if record.node == 1}
    through = sorted((record.exit_date, record.id_number) for record in records if record.node == stages)
    exits = np.array([exit_date for exit_date, _ in through])
    return exits, exits - np.array([births[number] for _, number in through])
