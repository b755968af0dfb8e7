"""The Markov decision process of Sec. IV-B as the Gymnasium environment ``opd/Pipeline-v0``."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from opd.objective import Weights
from opd.pipeline import InfeasibleError, Pipeline, as_configuration, check_feasible, from_choices
from opd.simulator.actions import action_masks
from opd.simulator.parameters import SimulationParameters
from opd.simulator.vector_environment import PipelineVectorEnv
from opd.workload.workload import Workload


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
    (Eq. 6). An action that breaks a limit of Eq. 4 is refused: what ran before goes on, and ``info["refused"]`` gives
    the reason. :meth:`action_masks` rules out, entry by entry, what no feasible action contains.

    **Reward**: Eq. 7 for the interval that begins with the action.

    **Start**: a random decision of the workload (or ``options={"decision": j}``), empty queues, one replica of the
    smallest variant of every task.

    **End**: never terminated; truncated after ``episode_length`` decisions.

    **Version history**: v0, first release.

    Args:
        pipeline: a pipeline, or the name of one in the catalogue.
        workload: counts and forecasts; by default the training split of the bundled synthetic trace at damping 8,
            with the maximum of the last 20 s as the forecast.
        weights: of the reward.
        parameters: of the simulation.
        episode_length: decisions in an episode; 120 are the 1200 s of the paper.

    Example:
        >>> import gymnasium, opd.simulator
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
        self._episode = PipelineVectorEnv(pipeline, workload, weights, parameters, episode_length)
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
        return self._episode.state()[0], float(result.reward[0]), False, truncated, info

    def action_masks(self) -> np.ndarray:
        """Flat booleans, entry after entry of the action space: true for what some feasible action contains."""
        return action_masks(self.pipeline)
