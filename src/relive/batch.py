"""What the user gets: arrays by field name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_HINTS = {
    "weight": " Give sample a beta.",
    "done": " It is terminated; targets need discount alone.",
    "dones": " It is terminated; targets need discount alone.",
    "state": " It is obs.",
    "next_state": " It is next_obs.",
}


class Batch:
    """A minibatch. Fields are attributes; B is the batch size, the leading axis of every array.

    As `Transitions` gives it. Under `Sequences` all but ids, weight and the fields named in `state` are [B, T, ...].

    Iterating gives the original five, in the original order:
    `obs, action, reward, terminated, next_obs = batch`.

    Attributes:
        obs: [B, *shape] in the stored dtype; [B, stack, *shape] where the view stacks frames; a dict or tuple of
            such arrays where the schema's observation is one.
        action: [B, *shape], likewise.
        reward: float32 [B], the environment's units; the discounted sum of up to n rewards under an n-step view.
        terminated: bool [B], of the last step used.
        truncated: bool [B], of the last step used, as it was pushed.
        next_obs: like obs, of the last step used.
        discount: float32 [B], gamma^m * (1 - terminated) for m steps used. A target is `reward + discount * q_next`.
        ids: int64 [B], permanent names of the transitions; of a sequence's first step, step i is ids + i * lanes.
        weight: float32 [B], importance weights; there if `beta` was given.
        goal_ids: int64 [B], the transition after which the new goal was achieved, -1 for rows left as they were; there
            under `Hindsight`.
        mask: bool [B, T], real steps; there under `Sequences`, as are the next two.
        loss_mask: bool [B, T], the steps to learn from.
        all_obs: [B, T + 1, ...], obs and next_obs as one array, of which they are views.

    Extra fields of the schema are attributes too. The arrays are the holder's own: nothing writes to them as long as
    anybody refers to them or to a view of them.
    """

    obs: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    next_obs: Any
    discount: Any
    ids: Any
    weight: Any
    goal_ids: Any
    mask: Any
    loss_mask: Any
    all_obs: Any

    def __init__(self, fields: dict[str, Any]) -> None:
        """A batch of these fields; the dict becomes the batch's own."""
        self.__dict__ = fields

    def __iter__(self) -> Iterator[Any]:
        return iter((self.obs, self.action, self.reward, self.terminated, self.next_obs))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"batch: expected one of {list(self.__dict__)}, got {name!r}.{_HINTS.get(name, '')}")

    def __repr__(self) -> str:
        return f"Batch({', '.join(f'{name}={_describe(value)}' for name, value in self.__dict__.items())})"


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_describe(child)}" for key, child in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_describe(child) for child in value) + ")"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
