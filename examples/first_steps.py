"""The buffer by itself, with NumPy alone: push, sample, read back."""

import numpy as np

import relive

rng = np.random.default_rng(0)
buffer = relive.ReplayBuffer(1_000, view=relive.Transitions(n=3, gamma=0.99), seed=0)

obs = rng.normal(size=4).astype(np.float32)
for t in range(5_000):  # a random walk in episodes of 100 steps, cut by a time limit
    next_obs = obs + rng.normal(size=4).astype(np.float32)
    ends = t % 100 == 99
    buffer.push(obs, t % 2, -float(np.abs(obs).sum()), False, next_obs, truncated=ends)
    obs = np.zeros(4, np.float32) if ends else next_obs

state, action, reward, done, next_state = buffer.sample(32)  # the original five
batch = buffer.sample(32)  # the same, by name, and what else there is

print(buffer)
print(batch)
print("newest id", buffer.ids[-1], "oldest id", buffer.ids[0], "of", len(buffer), "transitions")
