"""The original replay loop, with plain PyTorch: push five fields, sample five fields, in the original order.

python examples/five_fields.py [steps]     learns to balance CartPole for hundreds of steps
"""

import sys

import gymnasium
import numpy as np
import torch

import relive


def main(steps: int = 10_000) -> list[float]:
    """Train for so many steps; returns the return of every episode."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # small matrices: more threads would wait for each other
    rng = np.random.default_rng(0)
    q, q_target = (torch.nn.Sequential(torch.nn.Linear(4, 128), torch.nn.ReLU(), torch.nn.Linear(128, 2)) for _ in "ab")
    optimizer = torch.optim.Adam(q.parameters(), lr=1e-3)
    buffer = relive.ReplayBuffer(10_000, seed=0)
    env = gymnasium.make("CartPole-v1")
    state, _ = env.reset(seed=0)
    returns, total = [], 0.0
    for step in range(steps):
        epsilon = max(0.05, 1 - step / 3_000)
        if rng.random() < epsilon:
            action = int(rng.integers(2))
        else:
            with torch.no_grad():
                action = int(q(torch.as_tensor(state)).argmax())
        next_state, reward, done, timeout, _ = env.step(action)
        buffer.push(state, action, reward, done, next_state)
        state, total = next_state, total + float(reward)

        if len(buffer) >= 500:
            states, actions, rewards, dones, next_states = buffer.sample(32, output="torch")
            with torch.no_grad():
                targets = rewards + 0.99 * q_target(next_states).amax(1) * ~dones
            loss = torch.nn.functional.mse_loss(q(states).gather(1, actions[:, None])[:, 0], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 200 == 0:
                q_target.load_state_dict(q.state_dict())

        if done or timeout:
            returns.append(total)
            if len(returns) % 20 == 0:
                recent = np.mean(returns[-20:])
                print(f"step {step + 1:6,}   episodes {len(returns):4}   mean return of the last 20: {recent:6.1f}")
            state, _ = env.reset()
            total = 0.0
    return returns


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
