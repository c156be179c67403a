"""Settings tuned per environment.

Each run is held against the published reference of its environment: `docs/results.md`, made by a script, says what each
reached over its seeds. A run ends with the weights of its best evaluation, and CartPole's stops at the first perfect
one; the final evaluation plays other episodes than those that chose.
"""

from dataclasses import replace

from relive.dqn.config import AgentConfig, TrainConfig

_ZOO = AgentConfig(double=True, batch_size=128, learning_rate=6.3e-4, target_every=250)
"""As tuned in rl-baselines3-zoo for Acrobot and LunarLander, but double and with half the squared error."""

PRESETS = {
    config.env: config
    for config in (
        TrainConfig(
            env="CartPole-v1",
            steps=50_000,
            num_envs=4,
            capacity=100_000,
            learning_starts=1_000,
            replay_ratio=0.5,
            update_every=256,
            epsilon_end=0.04,
            epsilon_fraction=0.16,
            eval_every=1_250,
            eval_episodes=20,
            stop_return=500.0,
            threshold=475.0,
            agent=AgentConfig(double=True, learning_rate=2.3e-3, target_every=10),
        ),
        TrainConfig(
            env="Acrobot-v1",
            steps=100_000,
            capacity=50_000,
            update_every=4,
            epsilon_end=0.1,
            epsilon_fraction=0.12,
            eval_every=2_500,
            eval_episodes=50,
            threshold=-76.6,
            agent=replace(_ZOO, hidden=(128, 128)),
        ),
        TrainConfig(
            env="MountainCar-v0",
            steps=120_000,
            num_envs=4,
            capacity=60_000,
            replay_ratio=0.5,
            update_every=4,
            epsilon_end=0.05,
            epsilon_fraction=0.1,
            eval_every=2_500,
            eval_episodes=50,
            threshold=-100.8,
            # The car's velocity stays below 0.07: unscaled, a network hardly sees it.
            agent=AgentConfig(hidden=(128, 128), scale_inputs=True, double=True, n_step=3, target="soft", tau=0.01),
        ),
        TrainConfig(
            env="LunarLander-v3",
            steps=100_000,
            capacity=50_000,
            update_every=4,
            epsilon_end=0.1,
            epsilon_fraction=0.12,
            eval_every=2_500,
            eval_episodes=20,
            threshold=154.0,
            agent=_ZOO,
        ),
    )
}
"""Environment id -> its tuned run."""


def preset(env: str) -> TrainConfig:
    """The tuned run for this environment, or the defaults where there is none."""
    return PRESETS.get(env) or TrainConfig(env=env)
