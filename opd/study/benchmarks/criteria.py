"""Acceptance criteria of the benchmarks; the worst seed and the worst size count."""

from __future__ import annotations

import pandas as pd

from opd.control import AGENT
from opd.study.benchmarks.environment_steps import EPISODES
from opd.study.benchmarks.peer_stable_baselines import PEERS
from opd.study.benchmarks.simulated_requests import BATCHED, REFERENCE

PACKAGES = ("numba", "highspy", "simpy", "ciw", "stable_baselines3", "sb3_contrib", "gurobipy")
"""The measured packages, and the compiler that our speed depends on."""

TIMES_SIMPY = 100
"""Minimum speed of the simulation of requests relative to simpy, with many episodes together."""

STEPS_PER_CPU_SECOND = 50_000
"""Minimum of environment steps, reward and state included, with many episodes together."""

TIMES_PEER_SPEED = 2
"""Minimum speed of our training, in steps per CPU-second, relative to a peer's."""

Row = tuple[str, float, bool]
COLUMNS = ["bar", "measured", "met"]


def simulator_criteria(requests: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Evaluate the criteria of the simulator.

    Args:
        requests: table of :func:`opd.study.benchmarks.simulated_requests.measure_requests`.
        steps: table of :func:`opd.study.benchmarks.environment_steps.measure_steps`.

    Returns:
        Columns bar (in words), measured (in its unit) and met; one row for every pipeline and case, compared with
        the faster of the models in simpy, and one for the steps at the best number of environments.
    """
    rows: list[Row] = []
    for (pipeline, case), each in requests.groupby(["pipeline", "case"], sort=False):
        ratios = each.set_index("simulator")["ratio"]
        ratio = float(ratios[BATCHED] / ratios[ratios.index.str.startswith(REFERENCE)].max())
        text = f"requests simulated, {pipeline}, {case}: at least {TIMES_SIMPY} × simpy"
        rows.append((text, ratio, ratio >= TIMES_SIMPY))
    best = float(steps.loc[steps["layer"] == EPISODES, "steps_per_cpu_second"].max())
    text = f"environment steps, batched: at least {STEPS_PER_CPU_SECOND:,} per CPU-second"
    return pd.DataFrame([*rows, (text, best, best >= STEPS_PER_CPU_SECOND)], columns=COLUMNS)


def training_criteria(summary: pd.DataFrame) -> pd.DataFrame:
    """Evaluate the criteria of training: speed and reward compared with each peer, for the worst seed.

    Args:
        summary: of :func:`opd.study.benchmarks.training.measure_training`.

    Returns:
        Columns bar (in words), measured (times the speed; difference in the reward of Eq. 7) and met.
    """
    rows: list[Row] = []
    for peer, row in summary.set_index("method").loc[list(PEERS)].iterrows():
        speed, reward = float(row["agent_times_speed_min"]), float(row["agent_more_reward_min"])
        rows.append((f"speed: at least {TIMES_PEER_SPEED} × {peer}", speed, speed >= TIMES_PEER_SPEED))
        rows.append((f"reward on the test days, less that of {peer}: at least 0", reward, reward >= 0.0))
    return pd.DataFrame(rows, columns=COLUMNS)


def decision_criteria(times: pd.DataFrame) -> pd.DataFrame:
    """Evaluate the criterion of decision times: the agent is faster than every other policy at every size.

    Args:
        times: table of :func:`opd.study.benchmarks.decision_time.compare_decision_times`.

    Returns:
        Columns bar (in words), measured (a policy's median time as a multiple of the agent's, at the size where that
        policy does best, by the decision alone or with its forecast, whichever is smaller) and met; NaN and not met
        for a policy that could not be measured.
    """
    rows: list[Row] = []
    for policy, each in times[times["policy"] != AGENT].groupby("policy", sort=False):
        ratio = float(each[["decision_ratio", "median_ratio"]].min().min())
        rows.append((f"time of {policy} at every size: more than 1 × the agent's", ratio, ratio > 1.0))
    return pd.DataFrame(rows, columns=COLUMNS)
