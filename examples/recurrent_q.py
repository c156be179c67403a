"""Recurrent Q-learning in one file: CartPole whose velocities are hidden, sequences with burn-in and stored states.

python examples/recurrent_q.py             a minute and a half on one core; greedy returns of 285 to 442 (3 seeds)
python examples/recurrent_q.py --forget    the same learner without memory: about 45

The cart's position and the pole's angle alone do not say which way they move: a policy without memory cannot balance
the pole for long. A GRU can. What to look for:

- `Sequences(length, burn_in, stride, state=("hidden",))`: windows of an episode, and the GRU's state before their first
  step, stored with every transition as an extra field.
- `batch.all_obs` [B, T + 1, ...]: one unroll gives Q of every step and of the step after it.
- `batch.loss_mask` [B, T]: neither padding nor the burn-in, which only brings an old stored state up to date.

After Hausknecht & Stone 2015 (arXiv:1507.06527) and Kapturowski et al. 2019 (R2D2). Unlike R2D2: a small GRU instead of
a network for frames, one process, one-step double Q-learning, no rescaling of values.
"""

import argparse
import copy
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor, nn

import relive


@dataclass(frozen=True)
class Settings:
    """All there is to choose."""

    steps: int = 14_000
    num_envs: int = 4
    learning_starts: int = 500
    update_every: int = 2  # environment steps
    batch_size: int = 32
    length: int = 16
    burn_in: int = 4
    stride: int = 6
    gamma: float = 0.98
    learning_rate: float = 1e-3
    tau: float = 0.005  # how far the target network moves to the online one at each update
    epsilon_steps: int = 3_000
    epsilon_end: float = 0.05
    hidden: int = 32
    forget: bool = False  # begin every step with an empty state: what the same learner reaches without memory
    eval_every: int = 1_000
    eval_episodes: int = 20
    seed: int = 0


def make_envs(num_envs: int) -> VectorEnv:
    """CartPole of which only the positions are seen: [x, angle] of [x, velocity, angle, angular velocity]."""

    def hide(env: gymnasium.Env) -> gymnasium.Env:
        space = env.observation_space
        seen = gymnasium.spaces.Box(space.low[[0, 2]], space.high[[0, 2]])
        return gymnasium.wrappers.TransformObservation(env, lambda obs: obs[[0, 2]], seen)

    mode = {"autoreset_mode": AutoresetMode.SAME_STEP}  # a reset comes with the end, so the recurrent state's does too
    return gymnasium.make_vec("CartPole-v1", num_envs, "sync", vector_kwargs=mode, wrappers=[hide])


class Network(nn.Module):
    """Q(history, .): a GRU and a layer on top."""

    def __init__(self, hidden: int, forget: bool) -> None:
        super().__init__()
        self.forget = forget
        self.register_buffer(
            "scale", torch.tensor([0.5, 0.05])
        )  # so that steps, not only positions, are large enough to be seen
        self.encode = nn.Linear(2, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.decode = nn.Linear(hidden, 2)

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Observations [B, T, 2], state [B, H] before them -> Q [B, T, A], state after them."""
        encoded = torch.relu(self.encode(obs / self.scale))  # f32[B, T, H]
        if self.forget:  # T sequences of one step
            out, _ = self.gru(encoded.flatten(0, 1).unsqueeze(1))
            return self.decode(out.view_as(encoded)), state
        out, after = self.gru(encoded, state.unsqueeze(0))
        return self.decode(out), after.squeeze(0)


def td_errors(online: Network, target: Network, batch: relive.Batch) -> Tensor:
    """TD errors f32[B, T] = r + discount * Q'(h', a') - Q(h, a), a' the online network's choice (double)."""
    q, _ = online(batch.all_obs, batch.hidden)  # f32[B, T + 1, A]
    with torch.no_grad():
        next_q, _ = target(batch.all_obs, batch.hidden)
        best = q[:, 1:].argmax(2, keepdim=True)  # i64[B, T, 1]
        targets = batch.reward + batch.discount * next_q[:, 1:].gather(2, best).squeeze(2)
    return targets - q[:, :-1].gather(2, batch.action.unsqueeze(2)).squeeze(2)


def act(network: Network, obs: NDArray[np.float32], state: Tensor) -> tuple[NDArray[np.int64], Tensor]:
    """The best actions [lanes], and the state after these observations."""
    with torch.no_grad():
        q, after = network(torch.as_tensor(obs).unsqueeze(1), state)
    return q[:, 0].argmax(1).numpy(), after


def evaluate(network: Network, settings: Settings, seed: int) -> NDArray[np.float64]:
    """Returns of greedy episodes, the same ones for the same seed, side by side."""
    envs = make_envs(settings.eval_episodes)
    obs, _ = envs.reset(seed=seed)
    state = torch.zeros(settings.eval_episodes, settings.hidden)
    returns, running = np.zeros(settings.eval_episodes), np.ones(settings.eval_episodes, bool)
    while running.any():
        action, state = act(network, obs, state)
        obs, reward, terminated, truncated, _ = envs.step(action)
        returns += reward * running
        running &= ~(terminated | truncated)
    envs.close()
    return returns


def train(settings: Settings, online: Network) -> None:
    """Acts and learns for that many steps; the network ends with its best weights."""
    rng = np.random.default_rng(settings.seed)
    envs = make_envs(settings.num_envs)
    target = copy.deepcopy(online)
    optimizer = torch.optim.Adam(online.parameters(), lr=settings.learning_rate)
    schema = relive.Schema.from_env(envs, extras={"hidden": relive.Field("float32", (settings.hidden,))})
    view = relive.Sequences(settings.length, settings.burn_in, settings.stride, gamma=settings.gamma, state=("hidden",))
    buffer = relive.ReplayBuffer(50_000, schema, view=view, seed=settings.seed)
    writer = buffer.writer(envs)
    obs, _ = envs.reset(seed=settings.seed)
    writer.reset(obs)
    state = torch.zeros(settings.num_envs, settings.hidden)
    best_return, best_weights = 0.0, online.state_dict()
    steps = updates = num_ends = 0
    while steps < settings.steps:
        # Act. The state before the observation goes into the buffer, the state after it into the next step.
        epsilon = max(settings.epsilon_end, 1 - steps / settings.epsilon_steps)
        greedy_action, after = act(online, obs, state)
        explore = rng.random(settings.num_envs) < epsilon
        action = np.where(explore, rng.integers(2, size=settings.num_envs), greedy_action)
        obs, reward, terminated, truncated, info = envs.step(action)
        writer.step(action, obs, reward, terminated, truncated, info, hidden=state.numpy())
        steps += settings.num_envs
        ended = terminated | truncated
        after[ended] = 0.0
        state = after

        # Learn.
        while updates < (steps - settings.learning_starts) // settings.update_every:
            batch = buffer.sample(settings.batch_size, output="torch")
            delta = td_errors(online, target, batch)
            loss = 0.5 * (delta.square() * batch.loss_mask).sum() / batch.loss_mask.sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(online.parameters(), 10.0)
            optimizer.step()
            updates += 1
            with torch.no_grad():
                for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                    slow.lerp_(fast, settings.tau)

        # Tell, and keep the best: a greedy policy changes from one update to the next.
        num_ends += int(ended.sum())
        if steps % settings.eval_every < settings.num_envs:
            greedy = evaluate(online, settings, seed=20_000).mean()
            print(f"step {steps:7,}   episodes {num_ends:5}   greedy return {greedy:6.1f}")
            if greedy >= best_return:
                best_return, best_weights = greedy, copy.deepcopy(online.state_dict())
    envs.close()
    online.load_state_dict(best_weights)


def main(settings: Settings) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Evaluates, trains, evaluates: the returns of the greedy episodes before and after."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)  # small matrices: more threads would wait for each other
    network = Network(settings.hidden, settings.forget)
    before = evaluate(network, settings, seed=10_000)
    train(settings, network)
    after = evaluate(network, settings, seed=10_000)  # not the episodes that chose the weights
    print(f"greedy return before: {before.mean():.1f}, after: {after.mean():.1f} +- {after.std():.1f}")
    return before, after


def parse(arguments: list[str] | None = None) -> Settings:
    """What one would first try to change; `Settings` has the rest."""
    parser = argparse.ArgumentParser(description="Recurrent Q-learning on top of relive, in one file.")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="environment steps")
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--forget", action="store_true", help="learn without memory, to compare")
    return Settings(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main(parse())
