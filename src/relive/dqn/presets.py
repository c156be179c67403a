"""Settings tuned per environment."""

from dataclasses import replace

from relive.dqn.config import AgentConfig, TrainConfig

_SMALL = AgentConfig(hidden=(256, 256), double=True)

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
            update_every=64,
            epsilon_end=0.04,
            epsilon_fraction=0.16,
            eval_every=2_500,
            eval_episodes=20,
            stop_return=500.0,
            threshold=475.0,
            agent=replace(_SMALL, learning_rate=1e-3, target_every=50),
        ),
    )
}
"""Environment id -> its tuned run."""


def preset(env: str) -> TrainConfig:
    """The tuned run for this environment, or the defaults where there is none."""
    return PRESETS.get(env) or TrainConfig(env=env)
