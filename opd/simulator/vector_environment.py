"""The vectorised environment: many episodes of ``opd/Pipeline-v0`` in one compiled call."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from opd.measurement import Interval, Score, score, state_names, state_vector
from opd.objective import Weights, profiled_service_time, profiled_throughput
from opd.pipeline import Pipeline, as_array, as_configuration, from_choices
from opd.profiling.catalogue import load_pipeline
from opd.simulator.actions import action_masks, action_space, admit
from opd.simulator.parameters import SimulationParameters
from opd.simulator.simulator import Simulator
from opd.workload.workload import Workload


class PipelineVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """E episodes of :class:`~opd.simulator.environment.PipelineEnv` on one workload, stepped together.

    Observations, actions, rewards, starts and ends are those of the single environment, with a leading axis of E.
    ``infos`` holds arrays (E,): the fields of :class:`~opd.measurement.Score`, ``offered``, ``dropped`` and the boolean
    ``refused``, which is true where an action exceeded the capacity and what ran before goes on. Every entry of an
    action must lie within its space.

    **Autoreset** happens in the same step: where an episode is truncated, the observation is the first one of the next
    episode; ``infos["final_obs"]`` and ``infos["final_info"]`` belong to the end of the old episode.

    Training uses a lower-level interface, which takes configurations instead of actions: :meth:`begin` starts chosen
    episodes at chosen decisions, :meth:`state` observes all episodes and :meth:`run_interval` steps them, without
    refusals and without autoreset.

    Args:
        pipeline: a pipeline of N tasks, or the name of one in the catalogue.
        workload: counts and forecasts; by default :meth:`Workload.bundled`.
        weights: of the reward.
        parameters: of the simulation.
        episode_length: decisions in an episode.
        num_envs: number of episodes, E.
        seed: of arrivals and service noise until the first :meth:`reset`, which draws another one.

    Attributes:
        decision: (E,) position of each episode in the workload.
        decisions_left: (E,) decisions until each episode is truncated.
        configurations: (E, N, 3) variant, replicas and batch size of every task.

    Raises:
        ValueError: if the workload is shorter than an episode or has another interval than the simulation.

    Example:
        >>> import gymnasium, opd.simulator
        >>> environments = gymnasium.make_vec("opd/Pipeline-v0", num_envs=32, pipeline="video")
        >>> states, infos = environments.reset(seed=0)
        >>> states, rewards, terminated, truncated, infos = environments.step(environments.action_space.sample())
        >>> rewards.shape
        (32,)
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        pipeline: Pipeline | str = "video",
        workload: Workload | None = None,
        weights: Weights | None = None,
        parameters: SimulationParameters | None = None,
        episode_length: int = 120,
        *,
        num_envs: int = 1,
        seed: int = 0,
    ) -> None:
        self.pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
        self.weights = weights or Weights()
        parameters = parameters or SimulationParameters()
        self.workload = workload or Workload.bundled(parameters.interval)
        self.num_envs = num_envs
        self._episode_length = episode_length
        _check_workload(self.workload, parameters, episode_length)
        self._simulator = Simulator(self.pipeline, parameters, num_envs, int(self.workload.counts.max()), seed)
        shape = (num_envs, len(self.pipeline.tasks))
        self.decision = np.zeros(num_envs, dtype=np.int64)
        self.decisions_left = np.zeros(num_envs, dtype=np.int64)
        self.configurations = np.zeros((*shape, 3), dtype=np.int64)
        self._task_latency = np.zeros(shape)
        self._ready_throughput = np.zeros(shape)
        self._queue = np.zeros(shape)
        self.single_observation_space = Box(0.0, np.inf, (len(state_names(self.pipeline)),), np.float32)
        self.single_action_space = action_space(self.pipeline)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin all episodes; ``options["decision"]``, a number or (E,), fixes where in the workload."""
        super().reset(seed=seed)
        everywhere = np.ones(self.num_envs, dtype=bool)
        self._restart(everywhere, (options or {}).get("decision"))
        return self.state(), _masked({"decision": self.decision.copy()}, everywhere)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Run a configuration for one interval in every episode; begin the next episode where one is truncated.

        Raises:
            RuntimeError: if an episode has not begun.
        """
        if self.decisions_left.min() < 1:
            raise RuntimeError("an episode is over or has not begun; call reset() first")
        wanted = from_choices(np.asarray(actions).reshape(self.num_envs, -1, 3))
        configurations, refused = admit(self.pipeline, self.configurations, wanted)
        result, interval = self.run_interval(configurations)
        info = result._asdict() | {"refused": refused, "dropped": interval.dropped, "offered": interval.offered}
        states, truncated = self.state(), self.decisions_left == 0
        infos = _masked(info, ~truncated)
        if truncated.any():
            final = np.full(self.num_envs, None, dtype=object)
            for ended in np.flatnonzero(truncated):
                final[ended] = states[ended]
            infos |= _masked({"final_obs": final, "final_info": _masked(info, truncated)}, truncated)
            self._restart(truncated)
            infos |= _masked({"decision": self.decision.copy()}, truncated)
            states = self.state()
        return states, result.reward, np.zeros(self.num_envs, dtype=bool), truncated, infos

    def action_masks(self) -> np.ndarray:
        """(E, A) booleans, entry after entry of the action space: true for what some feasible action contains."""
        return np.tile(action_masks(self.pipeline), (self.num_envs, 1))

    def begin(self, environments: np.ndarray, decisions: np.ndarray, configurations: np.ndarray) -> None:
        """Start the given episodes at ``decisions`` (M,) with empty queues and ``configurations`` (M, N, 3) running.

        Raises:
            ValueError: if a decision lies outside the workload; the first needs one interval of history.
        """
        if decisions.min() < 1 or decisions.max() >= self.workload.decisions:
            raise ValueError(
                f"episodes must start at decision 1..{self.workload.decisions - 1} of the workload, "
                f"not {decisions.min()}..{decisions.max()}"
            )
        self.decision[environments] = decisions
        self.decisions_left[environments] = np.minimum(self._episode_length, self.workload.decisions - decisions)
        self.configurations[environments] = configurations
        for environment, configuration in zip(environments, configurations, strict=True):
            self._simulator.reset(as_configuration(configuration), np.array([environment]))
        self._task_latency[environments] = profiled_service_time(self.pipeline, configurations)
        self._ready_throughput[environments] = profiled_throughput(self.pipeline, configurations)
        self._queue[environments] = 0

    def state(self) -> np.ndarray:
        """(E, S) state of Eq. 5 at the coming decision."""
        return state_vector(
            self.pipeline,
            np.full(self.num_envs, float(self.pipeline.capacity)),
            self.workload.forecasts[self.decision],
            self.workload.windows(self.decision - 1).mean(axis=1),
            self.configurations,
            self._task_latency,
            self._ready_throughput,
            self._queue,
        )

    def run_interval(self, configurations: np.ndarray) -> tuple[Score, Interval]:
        """Run ``configurations`` (E, N, 3), which must be feasible, for one interval."""
        interval = self._simulator.step(configurations, self.workload.windows(self.decision))
        self.configurations = configurations.copy()
        self._task_latency = interval.task_latency
        self._ready_throughput = interval.ready_throughput
        self._queue = interval.queue
        self.decision = self.decision + 1
        self.decisions_left = self.decisions_left - 1
        return score(self.pipeline, self.weights, configurations, interval, self.workload.interval), interval

    def _restart(self, chosen: np.ndarray, decisions: Any = None) -> None:
        """Begin the ``chosen`` (E,) episodes with the smallest configuration, at random decisions by default."""
        environments = np.flatnonzero(chosen)
        if decisions is None:
            last = self.workload.decisions - self._episode_length
            decisions = self.np_random.integers(1, last + 1, len(environments))
        self._simulator.reseed(int(self.np_random.integers(2**31)))
        smallest = as_array(self.pipeline.smallest_configuration())
        self.begin(
            environments,
            np.broadcast_to(decisions, environments.shape),
            np.broadcast_to(smallest, (len(environments), *smallest.shape)),
        )


def _masked(info: dict[str, Any], where: np.ndarray) -> dict[str, Any]:
    """Add to every entry ``name`` its mask ``_name``, the convention of Gymnasium's vector environments."""
    return info | {f"_{name}": where for name in info}


def _check_workload(workload: Workload, parameters: SimulationParameters, episode_length: int) -> None:
    if workload.interval != parameters.interval:
        raise ValueError(
            f"the workload has forecasts every {workload.interval} s, the simulation decides every "
            f"{parameters.interval} s; they must agree"
        )
    if not 1 <= episode_length < workload.decisions:
        raise ValueError(
            f"episode_length {episode_length} must be within 1..{workload.decisions - 1}, the decisions of the workload"
        )
