"""An environment of your own, and an agent of Stable-Baselines3 that learns in it (extra ``bench``)."""

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from opd.pipeline import Pipeline, ServiceLevel, Task, Variant
from opd.simulator.environment import PipelineEnv
from opd.workload.trace import Workload

SMALL = Variant("small", accuracy=0.70, cores=1, latency={1: 0.05, 4: 0.14}, startup_time=2.0)
LARGE = Variant("large", accuracy=0.85, cores=2, latency={1: 0.16, 4: 0.50}, startup_time=4.0)
PIPELINE = Pipeline(
    "shop", (Task("find", (SMALL, LARGE)), Task("name", (SMALL, LARGE))), capacity=12, max_replicas=4,
    max_batch_size=4, service_level=ServiceLevel(seconds=1.0),
)  # fmt: skip


def make() -> PipelineEnv:
    """Make the environment: two stages under a load that rises and falls, forecast without error."""
    counts = np.random.default_rng(0).poisson(8 + 6 * np.sin(np.arange(7200) / 200))
    forecasts = np.append(counts.reshape(-1, 10).max(axis=1), counts[-10:].max()).astype(float)
    return PipelineEnv(PIPELINE, Workload(counts, forecasts, interval=10), episode_length=60)


def mean_reward(model: PPO, environments: VecNormalize) -> float:
    """Mean reward of a decision over eight episodes."""
    return float(evaluate_policy(model, environments, n_eval_episodes=8)[0]) / 60


if __name__ == "__main__":
    training = VecNormalize(make_vec_env(make, n_envs=8, seed=0))
    testing = VecNormalize(make_vec_env(make, n_envs=8, seed=1), training=False, norm_reward=False)
    testing.obs_rms = training.obs_rms
    model = PPO("MlpPolicy", training, n_steps=128, batch_size=256, learning_rate=1e-3, seed=0)
    print(f"untrained: reward {mean_reward(model, testing):6.2f} a decision")
    model.learn(20_000)
    print(f"trained:   reward {mean_reward(model, testing):6.2f} a decision")
