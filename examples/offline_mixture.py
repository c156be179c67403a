"""Learning online with offline data beside it: half of every batch from each (Ball et al. 2023, arXiv:2302.02948).

python examples/offline_mixture.py    MountainCar-v0, with and without the offline half, three runs each: a minute

Whoever explores at random does not meet MountainCar's goal for a long time. Here somebody left 10,000 steps of a
mediocre controller that does. A DQN that starts from nothing learns from them besides its own steps: not by
imitation, just as from further transitions. What to look for is the one line

    source = relive.Mixture([(offline, 0.5), (online, 0.5)])

which is then sampled as a buffer is. The runs without it make the same steps and updates. After 10,000 online steps
the greedy return was -134 with the offline half and -180 without, means of three seeds; the controller's is -161.
"""

import argparse

import gymnasium
import numpy as np
from numpy.typing import NDArray

import relive
from relive.dqn import DQN, AgentConfig

ENV = "MountainCar-v0"
NUM_ENVS = 4
VIEW = relive.Transitions(n=3, gamma=0.99)  # both buffers need the same
CONFIG = AgentConfig(hidden=(128, 128), scale_inputs=True, double=True, n_step=VIEW.n, target="soft", tau=0.01)


def scripted(obs: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int64]:
    """A mediocre controller: pushes to where the car rolls, but three times in ten anywhere."""
    rolling = np.where(obs[:, 1] > 0, 2, 0)
    return np.where(rng.random(len(obs)) < 0.3, rng.integers(3, size=len(obs)), rolling)


def record(steps: int, seed: int) -> tuple[relive.ReplayBuffer, float]:
    """An offline buffer with that many steps of the controller, and the mean return of its episodes."""
    envs = gymnasium.make_vec(ENV, num_envs=NUM_ENVS)
    rng = np.random.default_rng(seed)
    buffer = relive.ReplayBuffer(steps, relive.Schema.from_env(envs), view=VIEW, seed=seed)
    writer = buffer.writer(envs)
    obs, _ = envs.reset(seed=seed)
    writer.reset(obs)
    ends = 0
    while len(buffer) < steps:
        action = scripted(obs, rng)
        obs, reward, terminated, truncated, info = envs.step(action)
        writer.step(action, obs, reward, terminated, truncated, info)
        ends += int((terminated | truncated).sum())
    return buffer, -steps / ends  # every step costs 1


def evaluate(agent: DQN, episodes: int = 20) -> float:
    """Mean return of greedy episodes, the same ones every time, side by side."""
    envs = gymnasium.make_vec(ENV, num_envs=episodes)
    obs, _ = envs.reset(seed=10_000)
    total, running = 0.0, np.ones(episodes, bool)
    while running.any():
        obs, reward, terminated, truncated, _ = envs.step(agent.act(obs, 0.0))
        total += float(reward[running].sum())
        running &= ~(terminated | truncated)
    return total / episodes


def learn(offline: relive.ReplayBuffer | None, steps: int, seed: int) -> list[float]:
    """DQN for that many online steps; the greedy return after each fifth of them."""
    envs = gymnasium.make_vec(ENV, num_envs=NUM_ENVS)
    agent = DQN(envs.single_observation_space, envs.single_action_space, CONFIG, seed=seed)
    online = relive.ReplayBuffer(50_000, relive.Schema.from_env(envs), view=VIEW, seed=seed)
    source = online if offline is None else relive.Mixture([(offline, 0.5), (online, 0.5)], seed=seed)
    writer = online.writer(envs)
    obs, _ = envs.reset(seed=seed)
    writer.reset(obs)
    returns = []
    for step in range(NUM_ENVS, steps + 1, NUM_ENVS):
        action = agent.act(obs, max(0.05, 1 - step / 5_000))
        obs, reward, terminated, truncated, info = envs.step(action)
        writer.step(action, obs, reward, terminated, truncated, info)
        if len(online) >= 1_000:
            for _ in range(NUM_ENVS // 2):  # an update every other step
                agent.update(source.sample(CONFIG.batch_size, output="torch"))
        if step % (steps // 5 // NUM_ENVS * NUM_ENVS) == 0:
            returns.append(evaluate(agent))
    return returns


def main(arguments: list[str] | None = None) -> dict[str, NDArray[np.float64]]:
    """Both ways, a table; returns the greedy returns [seeds, 5]."""
    parser = argparse.ArgumentParser(description="DQN online, with and without offline data in half of every batch.")
    parser.add_argument("--steps", type=int, default=10_000, help="online steps")
    parser.add_argument("--offline-steps", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each kind")
    options = parser.parse_args(arguments)
    offline, quality = record(options.offline_steps, seed=0)
    print(f"offline: {len(offline):,} steps of a controller whose mean return is {quality:.0f}")
    results = {
        name: np.array([learn(data, options.steps, seed) for seed in range(options.seeds)])
        for name, data in (("online alone", None), ("half offline", offline))
    }
    print(f"greedy return after a fifth, two fifths, ... of {options.steps:,} online steps, mean of seeds")
    for name, returns in results.items():
        print(f"{name}: {'  '.join(f'{value:6.1f}' for value in returns.mean(0))}")
    return results


if __name__ == "__main__":
    main()
