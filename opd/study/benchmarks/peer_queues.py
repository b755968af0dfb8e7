"""Pipelines as plain queues in a row, in ciw and in simpy: the simplest case, which all simulators support.

Ciw's nodes serve customers one by one. They do not form batches, their servers have no start-up time, and a customer
reneges by the time in a node, not in the network. The comparison is therefore limited to batch size 1, a fixed
configuration, and no request old enough to be dropped. There the answers agree for every request.
"""

from __future__ import annotations

import ciw
import numpy as np
import simpy

from opd.pipeline import Configuration, Pipeline
from opd.study.benchmarks.peer_simpy import Process


def ciw_simulation(pipeline: Pipeline, configuration: Configuration, times: np.ndarray) -> ciw.Simulation:
    """Make a simulation in ciw that is ready to run.

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
    """Run a simulation of ciw and read its records.

    Args:
        simulation: one of :func:`ciw_simulation`.
        stages: number of its nodes.
        end: seconds at which it stops.

    Returns:
        (K,) time of completion and (K,) seconds since the arrival, of every completed request, by completion.
    """
    simulation.simulate_until_max_time(end)
    records = simulation.get_all_records()
    births = {record.id_number: record.arrival_date for record in records if record.node == 1}
    through = sorted((record.exit_date, record.id_number) for record in records if record.node == stages)
    exits = np.array([exit_date for exit_date, _ in through])
    return exits, exits - np.array([births[number] for _, number in through])


def simulate_queues(pipeline: Pipeline, configuration: Configuration, times: np.ndarray, end: float) -> np.ndarray:
    """Simulate the textbook model in simpy: a ``simpy.Resource`` per stage, a process per request.

    Args:
        pipeline: the pipeline to simulate.
        configuration: fixed, with all replicas ready; batch sizes count as 1.
        times: (M,) arrivals in seconds, ascending.
        end: seconds at which the simulation stops.

    Returns:
        (M,) seconds from arrival to completion, NaN for requests that are not completed at the end.
    """
    clock = simpy.Environment()
    stages = [
        (simpy.Resource(clock, stage.replicas), variant.service_time(1))
        for variant, stage in pipeline.selected(configuration)
    ]
    latencies = [np.nan] * len(times)

    def visit(number: int, birth: float) -> Process:
        for replicas, seconds in stages:
            with replicas.request() as turn:
                yield turn
                yield clock.timeout(seconds)
        latencies[number] = clock.now - birth

    def arrive() -> Process:
        for number, time in enumerate(times.tolist()):
            yield clock.timeout(time - clock.now)
            clock.process(visit(number, time))

    clock.process(arrive())
    clock.run(until=end)
    return np.array(latencies)
