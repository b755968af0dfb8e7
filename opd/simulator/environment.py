"""The Markov decision process of Sec. IV-B as Gymnasium environments: ``opd/Pipeline-v0``, alone and vectorised.

Importing this module registers them; ``gymnasium.make("opd.simulator.environment:opd/Pipeline-v0")`` imports it by
itself.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from opd.measurement import Interval, Observation, Score, SimulationParameters, score, state_names, state_vector
from opd.objective import Objective, Weights, check_objective, profiled_service_time, profiled_throughput
from opd.pipeline import (
    InfeasibleError,
    Pipeline,
    as_array,
    as_configuration,
    check_feasible,
    from_choices,
    used_cores,
)
from opd.profiling.pipelines import load_pipeline
from opd.simulator.simulator import Simulator
from opd.workload.forecast import HISTORY_SECONDS
from opd.workload.trace import Workload


class PipelineEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Configure a pipeline every ten seconds while load changes: ``opd/Pipeline-v0``.

    **Observation**, ``Box`` of float32, raw units (Eq. 5):

    ======================  =================================================  ==========
    entry                   meaning                                            range
    ======================  =================================================  ==========
    available_cores         u, cores of the device                             0..W_max
    predicted_load          p, forecast maximum of the next 20 s, requests/s   0..inf
    incoming_load           m, mean of the last interval, requests/s           0..inf
    then for every task
    latency                 l, mean seconds in the stage                       0..inf
    throughput              t, requests/s of the replicas that were ready      0..inf
    variant                 z, index of the variant                            0..Z-1
    replicas                f                                                  1..F_max
    batch_size              b                                                  1..B_max
    cost                    f c(z), cores                                      1..W_max
    queue                   requests waiting                                   0..inf
    ======================  =================================================  ==========

    **Action**, ``MultiDiscrete``: for every task the index of the variant, replicas - 1 and log2 of the batch size
    (Eq. 6). An action that breaks a limit of Eq. 4 is refused: the previous configuration keeps running, and
    ``info["refused"]`` gives the reason. :meth:`action_masks` rules out, entry by entry, what no feasible action
    contains.

    **Reward**: Eq. 7, or the reward of the service level, for the interval that begins with the action, minus
    ``refused_penalty`` if the action was refused.

    **Start**: a random decision of the workload (or ``options={"decision": j}``), empty queues, one replica of the
    smallest variant of every task.

    **End**: never terminated; truncated after ``episode_length`` decisions.

    **Version history**: v0, first release.

    Args:
        pipeline: a pipeline, or the name, folder or file of one.
        workload: counts and forecasts; by default the training split of the bundled synthetic trace at damping 8,
            with the maximum of the last 20 s as the forecast.
        objective: of the reward, the weights of Eq. 7 or a service level; by default the paper's weights.
        parameters: of the simulation.
        episode_length: decisions in an episode; 120 are the 1200 s of the paper.
        refused_penalty: reward lost by a refused action, at least 0. ``info["reward"]`` is without it.

    Example:
        >>> import gymnasium
        >>> environment = gymnasium.make("opd.simulator.environment:opd/Pipeline-v0", pipeline="video")
        >>> state, info = environment.reset(seed=0)
        >>> state, reward, terminated, truncated, info = environment.step(environment.action_space.sample())
        >>> terminated, truncated
        (False, False)
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        pipeline: Pipeline | str = "video",
        workload: Workload | None = None,
        objective: Objective | None = None,
        parameters: SimulationParameters | None = None,
        episode_length: int = 120,
        refused_penalty: float = 0.0,
    ) -> None:
        self._episode = PipelineVectorEnv(pipeline, workload, objective, parameters, episode_length, refused_penalty)
        self.pipeline = self._episode.pipeline
        self.observation_space = self._episode.single_observation_space
        self.action_space = self._episode.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; ``options["decision"]`` fixes where in the workload."""
        super().reset(seed=seed)
        self._episode.np_random = self.np_random
        states, _ = self._episode.reset(options=options)
        return states[0], {"decision": int(self._episode.decision[0])}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run a configuration for one interval.

        Raises:
            RuntimeError: if the episode is over or has not begun.
        """
        if self._episode.decisions_left[0] == 0:
            raise RuntimeError("the episode is over or has not begun; call reset() first")
        configurations = from_choices(np.asarray(action).reshape(1, -1, 3))
        refused = ""
        try:
            check_feasible(self.pipeline, as_configuration(configurations[0]))
        except InfeasibleError as error:
            refused = str(error)
            configurations = self._episode.configurations
        result, interval = self._episode.run_interval(configurations)
        info: dict[str, Any] = {name: float(value[0]) for name, value in result._asdict().items()}
        info |= {"refused": refused, "dropped": int(interval.dropped[0]), "offered": int(interval.offered[0])}
        truncated = bool(self._episode.decisions_left[0] == 0)
        reward = float(result.reward[0]) - self._episode.refused_penalty * bool(refused)
        return self._episode.state()[0], reward, False, truncated, info

    def action_masks(self) -> np.ndarray:
        """Flat booleans, entry after entry of the action space: true for what some feasible action contains."""
        return action_masks(self.pipeline)


class PipelineVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """E episodes of :class:`~opd.simulator.environment.PipelineEnv` on one workload, stepped together.

    Observations, actions, rewards, starts and ends are those of the single environment, with a leading axis of E.
    ``infos`` holds arrays (E,): the fields of :class:`~opd.measurement.Score`, ``offered``, ``dropped`` and the boolean
    ``refused``, true where an action exceeded the capacity and the previous configuration keeps running. Every entry
    of an action must lie within its space.

    **Autoreset** happens in the same step: where an episode is truncated, the observation is the first one of the next
    episode; ``infos["final_obs"]`` and ``infos["final_info"]`` belong to the end of the old episode.

    Training uses a lower-level interface, which takes configurations instead of actions: :meth:`begin` starts chosen
    episodes at chosen decisions, :meth:`state` observes all episodes and :meth:`run_interval` steps them, without
    refusals and without autoreset.

    Args:
        pipeline: a pipeline of N tasks, or the name, folder or file of one.
        workload: counts and forecasts; by default :meth:`Workload.bundled`.
        objective: of the reward, the weights of Eq. 7 or a service level; by default the paper's weights.
        parameters: of the simulation.
        episode_length: decisions in an episode.
        refused_penalty: reward lost by a refused action, at least 0. ``infos["reward"]`` is without it.
        num_envs: number of episodes, E.
        seed: of arrivals and service noise until the first :meth:`reset`, which draws another one.

    Attributes:
        decision: (E,) position of each episode in the workload.
        decisions_left: (E,) decisions until each episode is truncated.
        configurations: (E, N, 3) variant, replicas and batch size of every task.

    Raises:
        ValueError: if the workload is shorter than an episode or has another interval than the simulation, the
            objective asks for another latency than the pipeline's service level, or the penalty is not a finite number
            of at least 0.

    Example:
        >>> import gymnasium
        >>> name = "opd.simulator.environment:opd/Pipeline-v0"
        >>> environments = gymnasium.make_vec(name, num_envs=32, pipeline="video")
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
        objective: Objective | None = None,
        parameters: SimulationParameters | None = None,
        episode_length: int = 120,
        refused_penalty: float = 0.0,
        *,
        num_envs: int = 1,
        seed: int = 0,
    ) -> None:
        self.pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
        self.objective = objective or Weights()
        check_objective(self.pipeline, self.objective)
        parameters = parameters or SimulationParameters()
        self.workload = workload or Workload.bundled(parameters.interval)
        self.num_envs = num_envs
        self._episode_length = episode_length
        if not 0.0 <= refused_penalty < np.inf:
            raise ValueError(f"refused_penalty {refused_penalty} must be a finite number of at least 0")
        self.refused_penalty = refused_penalty
        _check_workload(self.workload, parameters, episode_length)
        self.simulator = Simulator(self.pipeline, parameters, num_envs, int(self.workload.counts.max()), seed)
        shape = (num_envs, len(self.pipeline.tasks))
        self.decision = np.zeros(num_envs, dtype=np.int64)
        self.decisions_left = np.zeros(num_envs, dtype=np.int64)
        self.configurations = np.zeros((*shape, 3), dtype=np.int64)
        self.task_latency = np.zeros(shape)
        self.ready_throughput = np.zeros(shape)
        self.queue = np.zeros(shape)
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
        rewards = result.reward - self.refused_penalty * refused
        return states, rewards, np.zeros(self.num_envs, dtype=bool), truncated, infos

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
            self.simulator.reset(as_configuration(configuration), np.array([environment]))
        self.task_latency[environments] = profiled_service_time(self.pipeline, configurations)
        self.ready_throughput[environments] = profiled_throughput(self.pipeline, configurations)
        self.queue[environments] = 0

    def state(self) -> np.ndarray:
        """(E, S) state of Eq. 5 at the coming decision."""
        return state_vector(
            self.pipeline,
            np.full(self.num_envs, float(self.pipeline.capacity)),
            self.workload.forecasts[self.decision],
            self.workload.windows(self.decision - 1).mean(axis=1),
            self.configurations,
            self.task_latency,
            self.ready_throughput,
            self.queue,
        )

    def observation(self, environment: int) -> Observation:
        """What a policy may know in one episode at the coming decision, without the future."""
        now = int(self.decision[environment]) * self.workload.interval
        return Observation(
            history=self.workload.counts[max(now - HISTORY_SECONDS, 0) : now],
            available_cores=float(self.pipeline.capacity),
            configuration=as_configuration(self.configurations[environment]),
            task_latency=self.task_latency[environment],
            ready_throughput=self.ready_throughput[environment],
            queue=self.queue[environment],
            incoming_load=float(self.workload.counts[now - self.workload.interval : now].mean()),
            predicted_load=float(self.workload.forecasts[self.decision[environment]]),
            stages=self.simulator.stage_states(environment),
        )

    def run_interval(self, configurations: np.ndarray) -> tuple[Score, Interval]:
        """Run ``configurations`` (E, N, 3), which must be feasible, for one interval."""
        interval = self.simulator.step(configurations, self.workload.windows(self.decision))
        self.configurations = configurations.copy()
        self.task_latency = interval.task_latency
        self.ready_throughput = interval.ready_throughput
        self.queue = interval.queue
        self.decision = self.decision + 1
        self.decisions_left = self.decisions_left - 1
        return score(self.pipeline, self.objective, configurations, interval, self.workload.interval), interval

    def _restart(self, chosen: np.ndarray, decisions: Any = None) -> None:
        """Begin the ``chosen`` (E,) episodes with the smallest configuration, at random decisions by default."""
        environments = np.flatnonzero(chosen)
        if decisions is None:
            last = self.workload.decisions - self._episode_length
            decisions = self.np_random.integers(1, last + 1, len(environments))
        self.simulator.reseed(int(self.np_random.integers(2**31)))
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


def action_space(pipeline: Pipeline) -> MultiDiscrete:
    """For every task the index of the variant, replicas - 1 and log2 of the batch size (Eq. 6)."""
    replicas, batch_sizes = pipeline.max_replicas, len(pipeline.batch_sizes)
    entries = [(len(task.variants), replicas, batch_sizes) for task in pipeline.tasks]
    return MultiDiscrete(np.array(entries).flatten())


def action_masks(pipeline: Pipeline) -> np.ndarray:
    """Flat booleans, entry after entry of the action space: true for what some feasible action contains."""
    tables = pipeline.tables
    smallest = tables.cores.min(axis=1)
    masks = []
    for n, task in enumerate(pipeline.tasks):
        budget = pipeline.capacity - (smallest.sum() - smallest[n])
        masks.append(tables.cores[n, : len(task.variants)] <= budget)
        masks.append(np.arange(1, pipeline.max_replicas + 1) * smallest[n] <= budget)
        masks.append(np.ones(len(pipeline.batch_sizes), dtype=bool))
    return np.concatenate(masks)


def admit(pipeline: Pipeline, running: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Refuse configurations that exceed the capacity: the previous ones keep running.

    Args:
        pipeline: the pipeline, N tasks.
        running: (E, N, 3) configurations that run.
        wanted: (E, N, 3) configurations that were chosen, each entry within its own bounds.

    Returns:
        (E, N, 3) configurations to run, and (E,) which were refused.
    """
    refused = used_cores(pipeline, wanted) > pipeline.capacity
    return np.where(refused[:, None, None], running, wanted), refused


gymnasium.register(
    id="opd/Pipeline-v0",
    entry_point=f"{__name__}:PipelineEnv",
    vector_entry_point=f"{__name__}:PipelineVectorEnv",
)
