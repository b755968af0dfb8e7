"""The Markov decision process (Sec. IV-B): state of Eq. 5, reward of Eq. 7, and two environments on them.

:class:`Episodes` steps many episodes in one compiled call and is what training uses;
:class:`PipelineEnvironment` is the Gymnasium environment ``opd/Pipeline-v0``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from opd import objective
from opd.forecast import HORIZON_SECONDS
from opd.objective import Weights
from opd.pipeline import Configuration, InfeasibleError, Pipeline, StageConfiguration, check_feasible
from opd.profiles import load_pipeline
from opd.simulation import Interval, SimulationParameters, Simulator, as_array
from opd.workload import Split, Trace, load_trace

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]

NODE_FEATURES = ("available_cores", "predicted_load", "incoming_load")
TASK_FEATURES = ("latency", "throughput", "variant", "replicas", "batch_size", "cost", "queue")


def state_names(pipeline: Pipeline) -> list[str]:
    """Name of every entry of the state vector, in order."""
    return [*NODE_FEATURES, *(f"{task.name}.{feature}" for task in pipeline.tasks for feature in TASK_FEATURES)]


def state_vector(
    pipeline: Pipeline,
    available_cores: np.ndarray,
    predicted_load: np.ndarray,
    incoming_load: np.ndarray,
    configurations: np.ndarray,
    task_latency: np.ndarray,
    ready_throughput: np.ndarray,
    queue: np.ndarray,
) -> np.ndarray:
    """Eq. 5: node state, then the state of every task; the queue lengths go beyond the paper.

    Eq. 5 repeats the node state for every task; here it stands once.

    Args:
        pipeline: the pipeline, N tasks.
        available_cores: (E,) u, cores of the device.
        predicted_load: (E,) p, requests/s.
        incoming_load: (E,) m, requests/s, mean of the last interval.
        configurations: (E, N, 3) variant z, replicas f, batch size b.
        task_latency: (E, N) l, seconds.
        ready_throughput: (E, N) t, requests/s.
        queue: (E, N) requests waiting.

    Returns:
        (E, 3 + 7 N) float32 in the units above; see :func:`state_names`.
    """
    variant, replicas, batch_size = np.moveaxis(configurations, -1, 0)
    cores = replicas * pipeline.tables.cores[np.arange(len(pipeline.tasks)), variant]
    tasks = np.stack([task_latency, ready_throughput, variant, replicas, batch_size, cores, queue], axis=-1)
    node = np.stack([available_cores, predicted_load, incoming_load], axis=-1)
    return np.concatenate([node, tasks.reshape(len(node), -1)], axis=-1).astype(np.float32)


class Score(NamedTuple):
    """One interval in the terms of the paper, each (E,): Eqs. 1, 2, T, L, E, Eq. 3 and Eq. 7."""

    accuracy: np.ndarray
    cost: np.ndarray
    throughput: np.ndarray
    latency: np.ndarray
    excess_load: np.ndarray
    qos: np.ndarray
    reward: np.ndarray


def score(
    pipeline: Pipeline, weights: Weights, configurations: np.ndarray, interval: Interval, seconds: float
) -> Score:
    """Score what an interval of ``seconds`` measured under ``configurations`` (E, N, 3)."""
    accuracy = objective.accuracy(pipeline, configurations)
    cost = objective.cost(pipeline, configurations)
    throughput = interval.ready_throughput.min(axis=-1)
    latency = interval.task_latency.sum(axis=-1)
    excess_load = interval.offered / seconds - throughput
    qos = objective.qos(weights, accuracy, throughput, latency, excess_load)
    reward = objective.reward(weights, qos, cost, configurations[..., 2].max(axis=-1))
    return Score(accuracy, cost, throughput, latency, excess_load, qos, reward)


@dataclass(frozen=True)
class Workload:
    """Per-second counts with the forecasts made along them, on the grid of decisions.

    Attributes:
        counts: (T,) requests per second.
        forecasts: (T // interval + 1,) predicted load at second ``interval * j``, requests/s.
        interval: seconds between two decisions.
    """

    counts: np.ndarray
    forecasts: np.ndarray
    interval: int

    @property
    def decisions(self) -> int:
        """Number of whole intervals."""
        return len(self.counts) // self.interval

    @classmethod
    def of(cls, trace: Trace, split: Split, interval: int, predict: Predict) -> Workload:
        """The workload of one split of a trace.

        Args:
            trace: counts per second.
            split: ``train``, ``validation`` or ``test``.
            interval: seconds between two decisions.
            predict: forecasts for counts (T,) up to the positions given (M,), as ``Forecaster.predict_many``.
        """
        counts = trace.counts[trace.split(split)]
        ends = np.arange(0, len(counts) + 1, interval)
        forecasts = np.zeros(len(ends))
        forecasts[1:] = predict(counts, ends[1:])
        return cls(counts, forecasts, interval)

    def windows(self, steps: np.ndarray) -> np.ndarray:
        """(E, interval) counts of the intervals that begin at decision ``steps`` (E,)."""
        return self.counts[steps[:, None] * self.interval + np.arange(self.interval)]

    def perfect_forecasts(self, steps: np.ndarray) -> np.ndarray:
        """(E,) what a forecast made at decision ``steps`` (E,) tries to predict, the largest load ahead."""
        seconds = steps[:, None] * self.interval + np.arange(HORIZON_SECONDS)
        return self.counts[np.minimum(seconds, len(self.counts) - 1)].max(axis=1)


class Episodes:
    """A batch of episodes on one workload, stepped together in compiled code.

    An episode begins at a decision of the workload with a configuration already running, and has no
    end of its own: who steps it decides when to :meth:`begin` the next.

    Args:
        pipeline: the pipeline, N tasks.
        weights: of the reward.
        parameters: of the simulation.
        workload: counts and forecasts.
        environments: number of episodes, E.
        seed: of arrivals and service noise.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        weights: Weights,
        parameters: SimulationParameters,
        workload: Workload,
        environments: int,
        seed: int,
    ) -> None:
        if workload.interval != parameters.interval:
            raise ValueError(
                f"the workload has forecasts every {workload.interval} s, the simulation decides every "
                f"{parameters.interval} s; they must agree"
            )
        self.pipeline = pipeline
        self.weights = weights
        self.workload = workload
        self._simulator = Simulator(pipeline, parameters, environments, int(workload.counts.max()), seed)
        shape = (environments, len(pipeline.tasks))
        self.decision = np.zeros(environments, dtype=np.int64)
        self.configurations = np.zeros((*shape, 3), dtype=np.int64)
        self._task_latency = np.zeros(shape)
        self._ready_throughput = np.zeros(shape)
        self._queue = np.zeros(shape)

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
        tables = self.pipeline.tables
        self.decision[environments] = decisions
        self.configurations[environments] = configurations
        for environment, configuration in zip(environments, configurations, strict=True):
            stages = tuple(StageConfiguration(*(int(value) for value in stage)) for stage in configuration)
            self._simulator.reset(stages, np.array([environment]))
        variant, replicas, batch_size = np.moveaxis(configurations, -1, 0)
        service_time = tables.service_time[np.arange(variant.shape[1]), variant, batch_size]
        self._task_latency[environments] = service_time
        self._ready_throughput[environments] = replicas * batch_size / service_time
        self._queue[environments] = 0

    def state(self) -> np.ndarray:
        """(E, S) state of Eq. 5 at the coming decision."""
        return state_vector(
            self.pipeline,
            np.full(len(self.decision), float(self.pipeline.capacity)),
            self.workload.forecasts[self.decision],
            self.workload.windows(self.decision - 1).mean(axis=1),
            self.configurations,
            self._task_latency,
            self._ready_throughput,
            self._queue,
        )

    def step(self, configurations: np.ndarray) -> tuple[Score, Interval]:
        """Run ``configurations`` (E, N, 3), which must be feasible, for one interval."""
        interval = self._simulator.step(configurations, self.workload.windows(self.decision))
        self.configurations = configurations.copy()
        self._task_latency = interval.task_latency
        self._ready_throughput = interval.ready_throughput
        self._queue = interval.queue
        self.decision = self.decision + 1
        return score(self.pipeline, self.weights, configurations, interval, self.workload.interval), interval


def recent_maximum(counts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(M,) largest count of the 20 s before each position: a forecast that needs no training."""
    return np.array([counts[max(end - 20, 0) : end].max(initial=0) for end in ends], dtype=float)


class PipelineEnvironment(gymnasium.Env):
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

    **Action**, ``MultiDiscrete``: for every task the index of the variant, replicas - 1 and log2 of
    the batch size (Eq. 6). An action that breaks a limit of Eq. 4 is refused: what ran before goes
    on, and ``info["refused"]`` says why. :meth:`action_masks` rules out, entry by entry, what cannot
    be part of any feasible action.

    **Reward**: Eq. 7 for the interval that the action began.

    **Start**: a random decision of the workload (or ``options={"decision": j}``), empty queues, one
    replica of every smallest variant.

    **End**: never terminated; truncated after ``episode_length`` decisions.

    **Version history**: v0, first release.

    Args:
        pipeline: a pipeline, or the name of one in the catalogue.
        workload: counts and forecasts; by default the bundled synthetic trace's training split at
            damping 8, with the maximum of the last 20 s as forecast.
        weights: of the reward.
        parameters: of the simulation.
        episode_length: decisions in an episode; 120 are the 1200 s of the paper.

    Example:
        >>> import gymnasium, opd.environment
        >>> environment = gymnasium.make("opd/Pipeline-v0", pipeline="video")
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
        weights: Weights | None = None,
        parameters: SimulationParameters | None = None,
        episode_length: int = 120,
    ) -> None:
        self.pipeline = load_pipeline(pipeline) if isinstance(pipeline, str) else pipeline
        self._parameters = parameters or SimulationParameters()
        self._workload = workload or Workload.of(
            load_trace("synthetic", damping=8), "train", self._parameters.interval, recent_maximum
        )
        if episode_length < 1 or episode_length + 1 > self._workload.decisions:
            raise ValueError(
                f"episode_length {episode_length} must be within 1..{self._workload.decisions - 1}, "
                "the decisions of the workload"
            )
        self._weights = weights or Weights()
        self._episode_length = episode_length
        self._episodes: Episodes | None = None
        self._decisions_left = 0
        features = len(state_names(self.pipeline))
        self.observation_space = gymnasium.spaces.Box(0.0, np.inf, (features,), np.float32)
        replicas, batch_sizes = self.pipeline.max_replicas, len(self.pipeline.batch_sizes)
        entries = [(len(task.variants), replicas, batch_sizes) for task in self.pipeline.tasks]
        self.action_space = gymnasium.spaces.MultiDiscrete(np.array(entries).flatten())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode; ``options["decision"]`` fixes where in the workload."""
        super().reset(seed=seed)
        first = (options or {}).get("decision")
        if first is None:
            first = self.np_random.integers(1, self._workload.decisions - self._episode_length + 1)
        self._episodes = Episodes(
            self.pipeline, self._weights, self._parameters, self._workload, 1, int(self.np_random.integers(2**31))
        )
        self._episodes.begin(np.array([0]), np.array([first]), as_array(self.pipeline.smallest_configuration())[None])
        self._decisions_left = min(self._episode_length, self._workload.decisions - int(first))
        return self._episodes.state()[0], {"decision": int(first)}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Run a configuration for one interval."""
        if self._episodes is None or self._decisions_left == 0:
            raise RuntimeError("the episode is over or has not begun; call reset() first")
        wanted = configuration_of(np.asarray(action))
        refused = ""
        try:
            check_feasible(self.pipeline, wanted)
            configurations = as_array(wanted)[None]
        except InfeasibleError as error:
            refused = str(error)
            configurations = self._episodes.configurations
        result, interval = self._episodes.step(configurations)
        self._decisions_left -= 1
        info: dict[str, Any] = {name: float(value[0]) for name, value in result._asdict().items()}
        info |= {"refused": refused, "dropped": int(interval.dropped[0]), "offered": int(interval.offered[0])}
        return self._episodes.state()[0], float(result.reward[0]), False, self._decisions_left == 0, info

    def action_masks(self) -> np.ndarray:
        """Flat booleans, entry after entry of the action space: what some feasible action contains."""
        tables = self.pipeline.tables
        smallest = tables.cores.min(axis=1)
        masks = []
        for n, task in enumerate(self.pipeline.tasks):
            budget = self.pipeline.capacity - (smallest.sum() - smallest[n])
            masks.append(tables.cores[n, : len(task.variants)] <= budget)
            masks.append(np.arange(1, self.pipeline.max_replicas + 1) * smallest[n] <= budget)
            masks.append(np.ones(len(self.pipeline.batch_sizes), dtype=bool))
        return np.concatenate(masks)


def configuration_of(action: np.ndarray) -> Configuration:
    """The configuration that a flat action (3 N,) of the environment stands for."""
    return tuple(StageConfiguration(int(z), int(f) + 1, 1 << int(b)) for z, f, b in action.reshape(-1, 3))


gymnasium.register(id="opd/Pipeline-v0", entry_point="opd.environment:PipelineEnvironment")
