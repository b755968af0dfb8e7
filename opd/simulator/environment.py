"""The Markov decision process (Sec. IV-B): state of Eq. 5, reward of Eq. 7, and two environments on them.

:class:`Episodes` steps many episodes in one compiled call and is what training uses;
:class:`PipelineEnvironment` is the Gymnasium environment ``opd/Pipeline-v0``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from opd.measurement import Interval, Score, score, state_names, state_vector
from opd.objective import Weights, profiled_service_time, profiled_throughput
from opd.pipeline import InfeasibleError, Pipeline, as_array, as_configuration, check_feasible, from_choices
from opd.profiling.catalogue import load_pipeline
from opd.simulator.simulation import SimulationParameters, Simulator
from opd.workload.load import RecentMaximum, future_maximum
from opd.workload.trace import Split, Trace, load_trace

Predict = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
        """(E,) target of a forecast made at decision ``steps`` (E,), the largest load ahead in requests/s."""
        return future_maximum(self.counts, steps * self.interval)


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
        self.decision[environments] = decisions
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
        >>> import gymnasium, opd.simulator.environment
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
            load_trace("synthetic", damping=8), "train", self._parameters.interval, RecentMaximum().predict_many
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
        wanted = as_configuration(from_choices(np.asarray(action).reshape(-1, 3)))
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


gymnasium.register(id="opd/Pipeline-v0", entry_point="opd.simulator.environment:PipelineEnvironment")
