"""Reading a buffer: native arrays in, batches out."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relive._core import Core, Found
from relive._core import Reader as Native
from relive.arguments import as_errors, as_ids, drawn
from relive.batch import Batch
from relive.checks import number
from relive.engine import check_updates, keeps_priorities, options
from relive.errors import ConfigError, NotEnoughDataError, SchemaError, StaleIdError
from relive.fitting import are_magnitudes
from relive.forking import Lock
from relive.prefetch import Batches, Beta
from relive.relabel import relabel
from relive.samplers import BuiltIn, Sampler
from relive.schema import FLAG, REWARD, Field, Schema, Tree, flatten, leaves, unflatten
from relive.strips import parts_of
from relive.trees import obs_and_next
from relive.views import Sequences, Transitions, View

Output = Literal["numpy", "torch"]
_ID = Field(np.int64)
_ATTEMPTS = 100  # of draws of a user's sampler, each undone by an eviction in the meantime


class Reader:
    """One reading of a buffer: a view, a sampler, its own generator, priorities and use counts over the same bytes.

    `ReplayBuffer.reader` makes further ones. Any number of threads may use it.
    """

    def __init__(
        self,
        core: Core,
        schema: Schema,
        view: View,
        sampler: BuiltIn | Sampler,
        memory: tuple[Any, int],
        seed: int,
        *,
        primary: bool,
        found: Found = Found.ZEROED,
    ) -> None:
        """Takes memory (object, offset), as it was found. To the primary one go the priorities that pushes give."""
        self._core = core
        self._native = Native(core, *memory, options(schema, view, sampler), seed, primary, found)
        self._schema, self._view, self._sampler, self._seed = schema, view, sampler, seed
        self._custom = None if isinstance(sampler, BuiltIn) else sampler
        self._newest = sampler.newest if isinstance(sampler, BuiltIn) else 0
        self._drawing = Lock()  # around a user's sampler
        self._updates = False  # known to have a use for priorities
        self._relabels = isinstance(view, Transitions) and view.relabel is not None
        self._episodic = isinstance(view, Sequences) and view.length == "episode"
        self._trees = _trees(schema, view)
        names = [name for name, tree in self._trees.items() for _ in leaves(tree, name)]
        self._shown = len(names)  # native arrays that are fields of a batch
        self._numbers = itemgetter(*map(names.index, ("reward", "terminated", "discount")))
        self._makers = _makers(self._trees)
        flat = isinstance(schema.obs, Field) and isinstance(schema.action, Field)
        # Batches of these are made without looking at trees; a weight is last, and there or not.
        self._names = (*self._trees, "weight") if flat and not self._relabels else None
        self._checked: set[Any] = set()  # devices that tensors can go to

    def sample(
        self,
        n: int,
        *,
        beta: float | None = None,
        output: Output = "numpy",
        device: Any = None,
        out: Batch | None = None,
    ) -> Batch:
        """Draws a minibatch, see `ReplayBuffer.sample`."""
        if beta is not None:
            beta = number("sample", "beta", beta, 0, np.inf)
        plain = output == "numpy" and device is None and out is None  # nearly always
        memory = None if plain else self._memory_of(out, output, device, beta)
        try:
            size = operator.index(n)
        except TypeError as error:
            raise _bad_size(n, self._newest) from error
        if size < max(1, self._newest):
            raise _bad_size(n, self._newest)
        if self._custom is not None:
            arrays: Any = self._draw(self._custom, size, beta, memory)
        else:
            try:
                arrays = self._native.sample(size, beta, memory)
            except (TypeError, ValueError, MemoryError) as error:
                raise _bad_size(n, self._newest) from error
            except IndexError as error:
                raise self._bad_out(error) from error
        if isinstance(arrays, int):
            raise self._not_enough(size, arrays)
        return self._batch(arrays, output, device, out)

    def sample_masses(self, n: int) -> tuple[Batch, NDArray[np.float64], float, float] | int:
        """A batch for whoever draws from several buffers as from one; only for built-in samplers.

        Returns:
            The batch without weights; what each row was drawn in proportion to, float64 [n]; the sum of that over all
            anchors at that moment; the smallest of it where the sampler knows it (`normalize="buffer"`), else 0. Or the
            number of draws left, where those are too few.
        """
        drawn = self._native.sample_masses(n)
        if isinstance(drawn, int):
            return drawn
        arrays, masses, total, smallest = drawn
        return self._batch(arrays, "numpy", None, None), masses, total, smallest

    def get(self, ids: ArrayLike, *, output: Output = "numpy", device: Any = None, out: Batch | None = None) -> Batch:
        """Assembles the batch of these ids, see `ReplayBuffer.get`."""
        wanted = as_ids(ids)
        try:
            arrays = self._native.get(wanted, self._memory_of(out, output, device, None), -1)
        except IndexError as error:
            raise self._bad_out(error) from error
        if isinstance(arrays, int):
            raise StaleIdError(
                f"ids: expected live transitions, got {wanted[arrays]} (at [{arrays}]). "
                "It was overwritten, cleared, or never pushed."
            )
        return self._batch(arrays, output, device, out)

    @property
    def native(self) -> Native:
        """What does the work; for `saving` and `restoring`."""
        return self._native

    def resume(self, seed: int, draws: int) -> None:
        """Goes on after so many batches; epochs, priorities and uses begin anew."""
        state = {"seed": seed, "draws": draws, "largest": 1.0, "heap_changes": 0, "changes": 0}
        state |= dict.fromkeys(("epoch", "epoch_size", "epoch_at"), 0)
        self.go_on({**state, "lanes": [(0, 0)] * self._core.num_lanes})

    def position(self) -> dict[str, Any]:
        """How far its draws and epochs are, as plain values for `go_on`; all there is to a reader without priorities
        and uses. Nobody may push meanwhile.
        """
        if any(self._native.keeps()):
            raise AssertionError("a reader whose position says too little")
        num_lanes = self._core.num_lanes
        lanes, epochs = np.zeros((num_lanes, 4), np.uint64), np.zeros((num_lanes, 2), np.uint64)
        self._core.lanes(lanes, False)
        parts = parts_of(self._core, self._schema)
        done = lanes[:, 1] - lanes[:, 2]  # where what a snapshot has to copy would begin: nothing is left
        strips, tails = parts.allocate(0), parts.allocate(2 * num_lanes)
        cut = self._native.cut(done, 0, strips, tails, lanes, epochs, (None, None, None), False)
        assert cut is not None  # nobody pushes
        return {**cut[2], "lanes": [(int(begin), int(head)) for begin, head in epochs]}

    def go_on(self, position: Mapping[str, Any]) -> None:
        """Goes on from there; a reader just made, over the same contents. One it cannot be is an AssertionError."""
        state = dict(position)
        epochs = np.array(state.pop("lanes"), np.uint64)
        if not self._native.restore(state, epochs, (None, None, None)):
            raise AssertionError("a reader refused to go on")

    @property
    def draws(self) -> int:
        """Batches drawn so far."""
        return self._native.draws

    def update_priorities(self, ids: ArrayLike, abs_td: ArrayLike) -> int:
        """Gives anchors new priorities, see `ReplayBuffer.update_priorities`."""
        if not self._updates:
            check_updates(self._sampler)
            self._updates = True
        wanted, raw = as_ids(ids), as_errors(abs_td, self._view)
        if raw.shape[0] != len(wanted):
            raise SchemaError(f"abs_td: expected one for each of {len(wanted)} ids, got {raw.shape}.")
        if self._custom is None:
            result = self._native.update(wanted, raw)
            if result < 0:
                place = -1 - result
                raise SchemaError(
                    f"abs_td: expected finite numbers of at least 0, got {raw[place]} (at [{place}]). Nothing changed. "
                    "Pass abs(delta)."
                )
            return result
        if not are_magnitudes(raw):
            raise SchemaError("abs_td: expected finite numbers of at least 0, got others. Nothing changed.")
        with self._drawing:
            live = np.isin(wanted, self._native.anchors())
            raw = raw[live].astype(np.float64, copy=False)
            self._custom.update_priorities(wanted[live], raw)  # type: ignore[attr-defined]
        return int(live.sum())

    def batches(
        self, size: int, *, beta: Beta = None, prefetch: int = 0, output: Output = "numpy", device: Any = None
    ) -> Batches:
        """An endless iterator, see `ReplayBuffer.batches`."""
        return Batches(
            lambda strength, place: self.sample(size, beta=strength, output=output, device=place),
            beta,
            prefetch,
            output,
            device,
        )

    def __len__(self) -> int:
        """Live transitions."""
        return self._core.live

    @property
    def anchors(self) -> NDArray[np.int64]:
        """Ids that can be drawn now: int64, ascending. Cost: O(len)."""
        return self._native.anchors()

    @property
    def epochs(self) -> int:
        """Epochs completed under `Shuffled`; 0 under other samplers."""
        return self._native.epochs

    @property
    def schema(self) -> Schema:
        """What a transition is."""
        return self._schema

    @property
    def view(self) -> View:
        """What an id becomes."""
        return self._view

    @property
    def sampler(self) -> BuiltIn | Sampler:
        """Which ids are drawn."""
        return self._sampler

    @property
    def seed(self) -> int:
        """Of this reader's generator."""
        return self._seed

    def __reduce__(self) -> NoReturn:
        raise ConfigError("Reader: expected to stay where it is, cannot be copied or pickled. Share the object.")

    def __repr__(self) -> str:
        return f"Reader({self._sampler}, {self._view}, seed={self._seed})"

    def _draw(self, sampler: Sampler, n: int, beta: float | None, memory: Any) -> Any:
        """A batch whose ids a user's sampler draws."""
        with self._drawing:
            for _ in range(_ATTEMPTS):
                anchors = self._native.anchors()
                if not len(anchors):
                    return 0
                anchors.flags.writeable = False  # what the sampler answers is compared with it
                batch_number = self._native.advance()
                rng = np.random.Generator(np.random.Philox(key=self._seed, counter=batch_number << 64))
                ids, probability = drawn(sampler.draw(anchors, n, rng), n, anchors)
                into = memory[:-1] if memory is not None and beta is not None else memory
                arrays = self._native.get(ids, into, batch_number)
                if isinstance(arrays, int):
                    continue  # overwritten since the anchors were listed
                if beta is None:
                    return arrays
                weight = np.ones(n, np.float32) if memory is None else memory[-1]
                if probability is not None:
                    weight[:] = (probability / probability.min()) ** -beta
                return (*arrays, weight)
        raise NotEnoughDataError(
            f"sample({n}): expected a sampler faster than the writers, its ids were overwritten {_ATTEMPTS} times "
            "before they could be read. Use a larger capacity."
        )

    def _batch(self, arrays: tuple[Any, ...], output: Output, device: Any, out: Batch | None) -> Batch:
        if self._names is not None:
            if out is not None:
                return out
            if output == "torch":
                arrays = self._to_torch(arrays, device)
            fields = dict(zip(self._names, arrays))  # noqa: B905 - strict costs more than the rest of this line
            if isinstance(self._view, Sequences):
                obs, next_obs = obs_and_next(fields["all_obs"])
                fields = {"obs": obs, "next_obs": next_obs, **fields}
            return Batch(fields)
        if self._relabels:
            assert isinstance(self._view, Transitions)
            table, achieved, desired = arrays[self._shown : self._shown + 3]
            relabel(self._numbers(arrays), table, achieved, desired, self._view)
            arrays = arrays[: self._shown] + arrays[self._shown + 3 :]
        if out is not None:
            return out
        if output == "torch":
            arrays = self._to_torch(arrays, device)
        fields = {name: make(arrays) for name, make in self._makers}
        if len(arrays) > self._shown:
            fields["weight"] = arrays[-1]
        if isinstance(self._view, Sequences):
            obs, next_obs = obs_and_next(fields["all_obs"])
            fields = {"obs": obs, "next_obs": next_obs, **fields}
        return Batch(fields)

    def _memory_of(self, out: Batch | None, output: Output, device: Any, beta: float | None) -> tuple[Any, ...] | None:
        """The arrays of a batch to write to, in the native order; None where there is no such batch."""
        if output not in ("numpy", "torch") or (device is not None and output == "numpy"):
            raise ConfigError(
                f"output: expected 'numpy', or 'torch' with or without a device, got {output!r}, {device=}."
            )
        place = None if device is None else str(device)
        if output == "torch" and place not in self._checked:
            from relive.tensors import check, to_torch

            check({leaf.itemdtype for tree in self._trees.values() for _, leaf in leaves(tree, "")}, device)
            self._checked.add(place)
            self._to_torch = to_torch
        if out is None:
            return None
        if not isinstance(out, Batch):
            raise ConfigError(f"out: expected a batch of this buffer, got {type(out).__name__}.")
        if device is not None or (output == "torch" and isinstance(out.ids, np.ndarray)):
            raise ConfigError(
                f"out: expected its own output and device, got output={output!r}, {device=}. Leave them out."
            )
        if self._episodic:
            raise ConfigError("out: expected none, whole episodes differ in length from batch to batch. Leave it out.")
        if ("weight" in vars(out)) != (beta is not None):
            raise ConfigError(
                f"out: expected a batch {'with' if beta is not None else 'without'} weights for {beta=}, got another."
            )
        try:
            if self._names is not None:
                arrays = tuple([vars(out)[name] for name in self._trees])
            else:
                arrays = tuple(
                    [
                        leaf
                        for name, tree in self._trees.items()
                        for leaf in flatten(tree, vars(out)[name], f"out.{name}")
                    ]
                )
        except (KeyError, SchemaError) as error:
            raise ConfigError(f"out: expected a batch of this buffer, got another ({error})") from error
        weight = () if beta is None else (vars(out)["weight"],)
        if not isinstance(out.ids, np.ndarray):
            from relive.tensors import to_numpy

            arrays, weight = to_numpy(arrays), to_numpy(weight)
        return (*arrays, *self._scratch(len(out.ids)), *weight)

    def _scratch(self, n: int) -> tuple[Any, ...]:
        """Arrays of a batch of n that its holder does not see: what rewards in hindsight are computed from."""
        if not self._relabels:
            return ()
        assert isinstance(self._view, Transitions) and isinstance(self._schema.obs, dict)
        goal = self._schema.obs["achieved_goal"]
        assert isinstance(goal, Field)
        shape = n, *(() if self._view.n == 1 else (self._view.n,)), *goal.shape[self._schema.stacked > 1 :]
        return np.empty((n, 3), np.int64), np.empty(shape, goal.dtype), np.empty(shape, goal.dtype)

    def _bad_out(self, error: IndexError) -> ConfigError:
        names = [name for tree_name, tree in self._trees.items() for name, _ in leaves(tree, tree_name)]
        index = int(str(error))
        return ConfigError(
            f"out: expected arrays as this buffer returns them for the same batch size, got another "
            f"{names[index] if index < len(names) else 'weight'}. Pass a batch that was returned."
        )

    def _not_enough(self, n: int, left: int) -> NotEnoughDataError:
        live = self._core.live
        if live == 0:
            return NotEnoughDataError(f"sample({n}): expected at least 1 transition, the buffer is empty.")
        max_uses = self._sampler.max_uses if isinstance(self._sampler, BuiltIn) else None
        if left:
            return NotEnoughDataError(
                f"sample({n}): expected as many draws, {left} are left; each of the {live} transitions is drawn at "
                f"most {max_uses} times. Push more, or ask for less."
            )
        reasons = []
        if isinstance(self._view, Sequences):
            need = "an episode that has ended and is there from its first step"
            if not self._episodic:
                need = f"an episode of {self._view.length}, or a shorter one that has ended"
            reasons.append(f"Sequences(length={self._view.length!r}) needs {need}")
        if max_uses:
            reasons.append(f"each is drawn at most {max_uses} times")
        if keeps_priorities(self._sampler):
            reasons.append("priority 0 is never drawn")
        return NotEnoughDataError(
            f"sample({n}): 0 valid ids, the buffer holds {live} transitions; {'; '.join(reasons)}."
        )


def _trees(schema: Schema, view: View) -> dict[str, Tree]:
    """The fields of a batch in the native order, without weights: each a tree of arrays."""
    numbers: dict[str, Tree] = {"reward": REWARD, "terminated": FLAG, "truncated": FLAG}
    if isinstance(view, Sequences):
        head: dict[str, Tree] = {"all_obs": schema.obs, "action": schema.action, **schema.extras}
        return {**head, **numbers, "discount": REWARD, "ids": _ID, "mask": FLAG, "loss_mask": FLAG}
    goal: dict[str, Tree] = {} if view.relabel is None else {"goal_ids": _ID}
    head = {"obs": schema.obs, "action": schema.action, **schema.extras}
    return {**head, **numbers, "next_obs": schema.obs, "discount": REWARD, "ids": _ID, **goal}


def _makers(trees: dict[str, Tree]) -> list[tuple[str, Callable[[tuple[Any, ...]], Any]]]:
    """For each field, how it is made of the native arrays."""
    makers: list[tuple[str, Callable[[tuple[Any, ...]], Any]]] = []
    start = 0
    for name, tree in trees.items():
        end = start + len(list(leaves(tree, name)))
        if isinstance(tree, Field):
            makers.append((name, itemgetter(start)))
        else:
            makers.append((name, partial(_unflatten_part, tree, slice(start, end))))
        start = end
    return makers


def _unflatten_part(tree: Tree, part: slice, arrays: tuple[Any, ...]) -> Any:
    return unflatten(tree, iter(arrays[part]))


def _bad_size(n: object, newest: int) -> ConfigError:
    if newest and isinstance(n, int | np.integer) and 0 < n < newest:
        return ConfigError(f"sample: expected a batch size of at least {newest}, the sampler's newest, got {n!r}.")
    return ConfigError(f"sample: expected a batch size of at least 1 that fits in memory, got {n!r}.")
