"""Several buffers, one batch."""

from __future__ import annotations

import math
import operator
import secrets
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relive.arguments import as_ids
from relive.batch import Batch
from relive.errors import ConfigError, NotEnoughDataError, ReplayError, SchemaError, StaleIdError
from relive.fitting import as_array, on_cpu
from relive.forking import Lock
from relive.parted import Pool, joined, slices
from relive.prefetch import Batches, Beta
from relive.schema import Schema, leaves
from relive.trees import map_fields

_STRIDE = 2**56  # between the ids of one part and of the next


@runtime_checkable
class Source(Protocol):
    """What a mixture draws from: a buffer, or a reader of one."""

    def sample(
        self, n: int, *, beta: float | None = None, output: Any = "numpy", device: Any = None, out: Batch | None = None
    ) -> Batch:
        """See `ReplayBuffer.sample`. `out` may hold contiguous slices of larger arrays."""

    def get(self, ids: ArrayLike, *, output: Any = "numpy", device: Any = None, out: Batch | None = None) -> Batch:
        """See `ReplayBuffer.get`."""

    def update_priorities(self, ids: ArrayLike, abs_td: ArrayLike) -> int:
        """See `ReplayBuffer.update_priorities`."""

    def __len__(self) -> int:
        """Live transitions."""

    @property
    def schema(self) -> Schema | None:
        """What a transition is; None as long as that is open."""

    @property
    def view(self) -> Any:
        """What an id becomes."""


class Mixture:
    """Batches of which each part gives its share, as in learning online with offline data beside it.

    Rows lie part after part. How many each gives is the share of the batch, rounded systematically with one random
    number a batch: share * n on average, never off by a row or more. The same buffer may be several parts.

    A transition's id here is (number of its part + 1) * 2^56 + its own id, so that a part never takes it for one of its
    own; `part_of` says which part it is.

    Any number of threads may draw; they take turns. Batch number k is a pure function of (seed, k), and of what the
    parts draw, each by its own generator.

    Args:
        parts: (source, share) pairs; sources are buffers or readers with the same fields and the same view. Shares
            are positive and sum to one. A buffer may take its schema from its first push later on.
        seed: of the rounding, in [0, 2^64); None draws one from the system.

    Raises:
        ConfigError: no parts, shares that do not sum to one, or parts with other fields or another view.

    Paper: Ball et al. 2023 (arXiv:2302.02948), section 4.1, symmetric sampling: halves of old and new data.
    """

    def __init__(self, parts: Iterable[tuple[Source, float]], seed: int | None = None) -> None:
        self._parts = tuple(_part(part) for part in parts)
        shares = [share for _, share in self._parts]
        if not self._parts or abs(math.fsum(shares) - 1) > 1e-9:
            raise ConfigError(f"Mixture: expected shares that sum to 1, got {shares}.")
        if seed is not None and (not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64):
            raise ConfigError(f"seed: expected an integer in [0, 2^64) or None, got {seed!r}.")
        self._seed = secrets.randbits(64) if seed is None else int(seed)
        self._numbers = np.arange(len(shares))
        self._upto = [0.0, *accumulate(shares)]
        self._upto[-1] = 1.0
        self._philox = np.random.Philox(key=self._seed)
        self._state: Any = self._philox.state
        self._drawn = 0  # batches
        self._turn = Lock()
        self._templates: dict[bool, dict[str, Any]] = {}  # a batch of no rows, without weights and with them
        self._pool = Pool()
        self._devices: set[str] = set()  # that tensors can go to
        self._agreed = False
        self._agree()

    def sample(
        self,
        n: int,
        *,
        beta: float | None = None,
        output: Literal["numpy", "torch"] = "numpy",
        device: Any = None,
    ) -> Batch:
        """Draws a minibatch of `n` rows, the parts' one after another.

        Args:
            n: batch size B, of all parts together.
            beta: see `ReplayBuffer.sample`. Each part normalises its weights by itself.
            output: "numpy", or "torch" for tensors over the same memory.
            device: of the tensors; None leaves them on the CPU, without a copy.

        Returns:
            Batch: ids (and goal_ids, where they are not -1) are the mixture's. Episodes of other lengths are padded to
                the longest, as their view pads them.

        Raises:
            NotEnoughDataError: a part has nothing to draw; the message names it.
            ConfigError: a size, beta, output or device that cannot be.

        An error leaves the mixture's generator as it was, and the next call draws the batch that failed. Parts before
        the one that failed have drawn theirs, except where that one is empty: then no part has.

        Cost: as `sample` of every part, and a few microseconds.
        """
        size = _size(n)
        self._check_output(output, device)
        if not self._agreed:
            self._agree()
        with self._turn:
            counts = self._counts(size)
            for part, (source, _) in enumerate(self._parts):
                if counts[part] and len(source) == 0:
                    raise NotEnoughDataError(
                        f"sample({n}): expected transitions in every part, part {part} of the mixture is empty."
                    )
            fields = self._draw(size, counts, beta)
            self._drawn += 1
        self._rename(fields, np.repeat(self._numbers, counts))
        return self._finish(fields, output, device)

    def get(self, ids: ArrayLike, *, output: Literal["numpy", "torch"] = "numpy", device: Any = None) -> Batch:
        """Assembles the batch of these transitions, under the parts' view.

        Args:
            ids: int64 [B], the mixture's.
            output: see `sample`.
            device: see `sample`.

        Returns:
            Batch: row i is the transition `ids[i]`.

        Raises:
            StaleIdError: an id was overwritten, cleared or never given out; the message names the part, and the id and
                row there.
        """
        wanted = as_ids(ids)
        self._check_output(output, device)
        rows = self._rows(wanted)
        if sum(map(len, rows)) != len(wanted):
            strange = wanted[~np.isin(self.part_of(wanted), self._numbers)][0]
            raise StaleIdError(f"ids: expected ids of this mixture, got {strange}. Ids of its parts are others.")
        some: list[tuple[Any, Mapping[str, Any]]] = []
        for part, (source, _) in enumerate(self._parts):
            if len(rows[part]) or not (some or len(wanted)):  # of no ids, the first part gives the batch of no rows
                try:
                    some.append((rows[part], vars(source.get(wanted[rows[part]] % _STRIDE))))
                except ReplayError as error:
                    raise _named(part, error) from error
        fields = joined(len(wanted), some)
        self._rename(fields, self.part_of(wanted))
        return self._finish(fields, output, device)

    def update_priorities(self, ids: ArrayLike, abs_td: ArrayLike) -> int:
        """Gives transitions new priorities, in the parts that keep any; rows of other parts are skipped.

        Args:
            ids: int64 [B], the mixture's. Of one that comes several times the last holds.
            abs_td: [B], or [B, T] under sequences; finite, at least 0.

        Returns:
            int: how many rows were live, of the parts that keep priorities.

        Raises:
            SchemaError: values that are no such numbers; then no part has changed.
            ConfigError: no part keeps priorities.
        """
        wanted = as_ids(ids)
        errors = _errors(abs_td, len(wanted))
        rows = self._rows(wanted)
        live, keeps_none = 0, 0
        for part, (source, _) in enumerate(self._parts):
            try:
                live += source.update_priorities(wanted[rows[part]] % _STRIDE, errors[rows[part]])
            except ConfigError:
                keeps_none += 1
        if keeps_none == len(self._parts):
            raise ConfigError("update_priorities: expected a part whose sampler keeps priorities, got none.")
        return live

    def batches(
        self,
        size: int,
        *,
        beta: Beta = None,
        prefetch: int = 0,
        output: Literal["numpy", "torch"] = "numpy",
        device: Any = None,
    ) -> Batches:
        """An endless iterator over batches of `size` rows; see `ReplayBuffer.batches`."""
        return Batches(
            lambda strength, place: self.sample(size, beta=strength, output=output, device=place),
            beta,
            prefetch,
            output,
            device,
        )

    def part_of(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The number of the part that each of these ids of the mixture belongs to: int64 [B]."""
        return as_ids(ids) // _STRIDE - 1

    def __len__(self) -> int:
        """Live transitions of all parts."""
        return sum(len(source) for source, _ in self._parts)

    def __repr__(self) -> str:
        return f"Mixture({list(self._parts)}, seed={self._seed})"

    @property
    def parts(self) -> tuple[tuple[Source, float], ...]:
        """The sources and their shares."""
        return self._parts

    @property
    def seed(self) -> int:
        """Of the rounding."""
        return self._seed

    @property
    def draws(self) -> int:
        """Batches drawn so far."""
        return self._drawn

    def go_on(self, draws: int) -> None:
        """Goes on after so many batches of the same seed; how far the parts are, they know themselves."""
        with self._turn:
            self._drawn = int(draws)

    def _counts(self, n: int) -> list[int]:
        """The parts' numbers of rows in the next batch of `n`: systematic rounding."""
        self._state["state"]["counter"][0] = self._drawn
        self._philox.state = self._state  # as Philox(key=seed, counter=k), which takes ten times as long
        offset = (int(self._philox.random_raw()) >> 11) * 2.0**-53  # uniform over [0, 1)
        return [below - above for above, below in pairwise(math.floor(n * upto + offset) for upto in self._upto)]

    def _draw(self, n: int, counts: list[int], beta: float | None) -> dict[str, Any]:
        """The fields of a batch; ids are still the parts' own."""
        weighted = beta is not None
        template = self._templates.get(weighted)
        if template is not None:
            memory = self._pool.take(template, n, weighted)
            for part, rows in memory.parts(counts):
                self._sample(part, counts[part], beta, rows)
            return memory.fields()
        # What fields there are, only a batch can say.
        some = [(rows, self._sample(part, counts[part], beta, None)) for part, rows in slices(counts)]
        fields = joined(n, some)
        if getattr(self._parts[0][0].view, "length", None) != "episode":  # there every batch has its own length
            self._templates[weighted] = map_fields(lambda leaf: leaf[:0].copy(), fields)
        return fields

    def _sample(self, part: int, count: int, beta: float | None, out: Batch | None) -> dict[str, Any]:
        try:
            return vars(self._parts[part][0].sample(count, beta=beta, out=out))
        except ReplayError as error:
            raise _named(part, error) from error

    def _rename(self, fields: dict[str, Any], part_of: NDArray[np.int64]) -> None:
        """Makes the parts' ids the mixture's, in place."""
        ids = fields["ids"]
        ids += (part_of + 1) * _STRIDE
        if "goal_ids" in fields:  # -1 is none, and stays
            goals = fields["goal_ids"]
            np.copyto(goals, goals + (part_of + 1) * _STRIDE, where=goals >= 0)

    def _rows(self, ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Where each part's rows are."""
        part_of = self.part_of(ids)
        return [np.flatnonzero(part_of == part) for part in range(len(self._parts))]

    def _check_output(self, output: str, device: Any) -> None:
        if output not in ("numpy", "torch") or (device is not None and output == "numpy"):
            raise ConfigError(
                f"output: expected 'numpy', or 'torch' with or without a device, got {output!r}, {device=}."
            )
        schema = self._parts[0][0].schema
        if output == "torch" and str(device) not in self._devices and schema is not None:
            from relive.tensors import check

            fields = (*leaves(schema.obs, "obs"), *leaves(schema.action, "action"), *schema.extras.items())
            check({field.itemdtype for _, field in fields}, device)
            self._devices.add(str(device))

    def _finish(self, fields: dict[str, Any], output: str, device: Any) -> Batch:
        if output == "numpy":
            return Batch(fields)
        from relive.tensors import to_torch

        return Batch(map_fields(lambda leaf: to_torch((leaf,), device)[0], fields))

    def _agree(self) -> None:
        """Compares the parts, as far as they know their fields already."""
        first = self._parts[0][0]
        known = [(part, schema) for part, (source, _) in enumerate(self._parts) if (schema := source.schema)]
        for part, schema in known[1:]:
            ours, theirs = _fields(known[0][1]), _fields(schema)
            for name in {**ours, **theirs}:
                if ours.get(name) != theirs.get(name):
                    raise ConfigError(
                        f"Mixture: expected the same fields in every part, got {name}: {ours.get(name)} in part "
                        f"{known[0][0]} and {theirs.get(name)} in part {part}."
                    )
        for part, (source, _) in enumerate(self._parts):
            if source.view != first.view:
                raise ConfigError(
                    f"Mixture: expected the same view in every part, got {first.view} in part 0 and {source.view} in "
                    f"part {part}. A part may be a reader of its buffer: reader(view=...)."
                )
        self._agreed = len(known) == len(self._parts)


def _named(part: int, error: ReplayError) -> ReplayError:
    """The error, saying which part it is of."""
    return type(error)(f"part {part} of the mixture: {error}")


def _fields(schema: Schema) -> dict[str, str]:
    """What has to be the same for batches to be joined; bounds of integers need not."""
    trees: dict[str, Any] = {"obs": schema.obs, "action": schema.action, **schema.extras}
    fields = {name: str(field) for tree in trees for name, field in leaves(trees[tree], tree)}
    return fields | {f"{name}, which is a": type(tree).__name__ for name, tree in trees.items()}


def _part(part: Any) -> tuple[Source, float]:
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise ConfigError(f"Mixture: expected pairs (source, share), got {type(part).__name__}.")
    if not isinstance(part[0], Source):
        raise ConfigError(
            f"Mixture: expected sources that are buffers or readers, got {type(part[0]).__name__}. Of mixtures, list "
            "all parts in one."
        )
    return part[0], _share(part[1])


def _share(share: Any) -> float:
    if not isinstance(share, int | float | np.floating) or isinstance(share, bool) or not 0 < share <= 1:
        raise ConfigError(f"Mixture: expected shares in (0, 1], got {share!r}.")
    return float(share)


def _size(n: Any) -> int:
    try:
        size = operator.index(n)
    except TypeError:
        size = 0
    if not 1 <= size < 2**40:
        raise ConfigError(f"sample: expected a batch size of at least 1 that fits in memory, got {n!r}.")
    return size


def _errors(abs_td: Any, count: int) -> NDArray[Any]:
    errors = as_array(on_cpu(abs_td), "abs_td", f"float ({count},)")
    if errors.ndim not in (1, 2) or len(errors) != count or (errors.dtype.kind not in "fiu" and errors.size):
        raise SchemaError(f"abs_td: expected floats ({count},), or ({count}, T), got {errors.dtype} {errors.shape}.")
    if not (np.isfinite(errors) & (errors >= 0)).all():
        raise SchemaError("abs_td: expected finite numbers of at least 0, got others.")
    return errors
