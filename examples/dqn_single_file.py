"""DQN in one file: the whole algorithm on top of `relive`'s public names and plain PyTorch.

python examples/dqn_single_file.py                     CartPole-v1
python examples/dqn_single_file.py --double --n-step 3 the same with double and multi-step targets
python examples/dqn_single_file.py --help              all there is to choose

What to look for: the buffer's `writer` takes what the environments return, and a batch carries `discount`, so the
target is `reward + discount * q_next`, with no word about ends of episodes, truncation or n-step returns.

Deviations from Mnih et al. 2015: Adam for RMSProp; half squared error without error clipping, but clipped gradients; no
reward clipping; a network for vectors; updates in rounds (after 256 steps, 128 updates) and a target network that is
copied often, both as tuned for CartPole in rl-baselines3-zoo.
"""

import argparse
import copy
from dataclasses import dataclass, fields

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import relive


@dataclass(frozen=True)
class Settings:
    """All there is to choose."""

    env: str = "CartPole-v1"
    steps: int = 12_000
    num_envs: int = 4
    capacity: int = 100_000
    learning_starts: int = 1_000
    round_steps: int = 256  # environment steps between two rounds of updates, all environments together
    round_updates: int = 128
    batch_size: int = 64
    gamma: float = 0.99
    n_step: int = 1
    double: bool = False
    learning_rate: float = 2.3e-3
    target_every: int = 10  # updates
    epsilon_steps: int = 5_000
    epsilon_end: float = 0.05
    max_grad_norm: float = 10.0
    eval_episodes: int = 20
    seed: int = 0


def make_network(num_inputs: int, num_actions: int) -> nn.Sequential:
    """Q(s, .) for vectors: two hidden layers."""
    return nn.Sequential(
        nn.Linear(num_inputs, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, num_actions)
    )


def td_loss(online: nn.Module, target: nn.Module, batch: relive.Batch, double: bool) -> Tensor:
    """The mean over the batch of delta^2 / 2, delta = Q(s, a) - (r + discount * Q'(s', a')).

    a' is the best action by the target network (Mnih et al. 2015), or the online one (double, van Hasselt et al. 2016).
    """
    with torch.no_grad():
        next_q = target(batch.next_obs)  # f32[B, A]
        best = (online(batch.next_obs) if double else next_q).argmax(1, keepdim=True)  # i64[B, 1]
        targets = batch.reward + batch.discount * next_q.gather(1, best).squeeze(1)  # f32[B]
    taken = online(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)  # f32[B]
    return 0.5 * (taken - targets).square().mean()


def greedy(network: nn.Module, obs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The best action of each observation, int64 [B]."""
    with torch.no_grad():
        return network(torch.as_tensor(obs)).argmax(1).numpy()


def evaluate(network: nn.Module, settings: Settings) -> NDArray[np.float64]:
    """Returns of whole greedy episodes, the same ones for every network."""
    env = gymnasium.make(settings.env)
    returns = np.zeros(settings.eval_episodes)
    for episode in range(settings.eval_episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        ended = False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(greedy(network, obs[None])[0])
            returns[episode] += float(reward)
            ended = terminated or truncated
    return returns


def train(settings: Settings) -> tuple[nn.Module, list[float]]:
    """The algorithm. Returns the network and the return of every training episode."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)  # small matrices: more threads would wait for each other
    rng = np.random.default_rng(settings.seed)
    envs = gymnasium.make_vec(settings.env, num_envs=settings.num_envs)
    num_actions = int(envs.single_action_space.n)
    online = make_network(int(np.prod(envs.single_observation_space.shape)), num_actions)
    target = copy.deepcopy(online)
    optimizer = torch.optim.Adam(online.parameters(), lr=settings.learning_rate)

    buffer = relive.ReplayBuffer(
        settings.capacity,
        relive.Schema.from_env(envs),
        view=relive.Transitions(n=settings.n_step, gamma=settings.gamma),
        seed=settings.seed,
    )
    writer = buffer.writer(envs)
    obs, _ = envs.reset(seed=settings.seed)
    writer.reset(obs)

    returns: list[float] = []
    running = np.zeros(settings.num_envs)  # return so far of each environment's episode
    steps = updates = 0
    while steps < settings.steps:
        # Act: epsilon-greedy, epsilon falling in a straight line.
        epsilon = max(settings.epsilon_end, 1 - steps / settings.epsilon_steps)
        explore = rng.random(settings.num_envs) < epsilon  # bool[lanes]
        action = np.where(explore, rng.integers(num_actions, size=settings.num_envs), greedy(online, obs))

        # Store: the writer knows what the environments do at the end of an episode; an id of -1 is a step not stored.
        obs, reward, terminated, truncated, info = envs.step(action)
        steps += int((writer.step(action, obs, reward, terminated, truncated, info) >= 0).sum())

        # Learn: as many updates as the steps so far are worth, in rounds.
        rounds = max(steps - settings.learning_starts, 0) // settings.round_steps
        while updates < rounds * settings.round_updates:
            batch = buffer.sample(settings.batch_size, output="torch")
            loss = td_loss(online, target, batch, settings.double)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(online.parameters(), settings.max_grad_norm)
            optimizer.step()
            updates += 1
            if updates % settings.target_every == 0:
                target.load_state_dict(online.state_dict())

        # Tell.
        running += reward
        for lane in np.flatnonzero(terminated | truncated):
            returns.append(float(running[lane]))
            running[lane] = 0.0
            if len(returns) % 50 == 0:
                recent = np.mean(returns[-50:])
                print(f"step {steps:7,}   episodes {len(returns):5}   mean return of the last 50: {recent:8.1f}")
    envs.close()
    return online, returns


def main(settings: Settings) -> NDArray[np.float64]:
    """Train, then evaluate: the returns of the greedy episodes."""
    network, _ = train(settings)
    returns = evaluate(network, settings)
    print(f"greedy return {returns.mean():.1f} +- {returns.std():.1f} over {len(returns)} episodes of {settings.env}")
    return returns


def parse(arguments: list[str] | None = None) -> Settings:
    """Every field of `Settings` as an option of the command line."""
    parser = argparse.ArgumentParser(description="DQN on top of relive, in one file.")
    for field in fields(Settings):
        option = f"--{field.name.replace('_', '-')}"
        if isinstance(field.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            parser.add_argument(option, type=type(field.default), default=field.default, help="default: %(default)s")
    return Settings(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(parse())
