"""The façade: push, sample, get."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from relive._core import Core
from relive.append import collect, conform_all
from relive.arguments import check_lane, check_mask, check_priority, check_seed, has_lead
from relive.assembly import Spec, Storage, assemble
from relive.batch import Batch
from relive.checks import as_path
from relive.engine import check_axes, check_updates, keeps_priorities
from relive.errors import ConfigError, NotEnoughDataError, SchemaError, StaleIdError
from relive.fitting import as_array, infer_schema
from relive.forking import Lock
from relive.prefetch import Batches, Beta
from relive.reading import Output, Reader
from relive.samplers import BuiltIn, Sampler
from relive.schema import Field, Schema, leaves
from relive.segment import Segment
from relive.shared import Handle, SharedMemory, handle_of
from relive.snapshot import Manifest
from relive.storage import Memory, divide, format_bytes, history, measure
from relive.views import Hindsight, Sequences, View
from relive.writers import Writer


class ReplayBuffer:
    """Keeps the newest `capacity` transitions and draws minibatches from them.

    A transition has a permanent id, `t * lanes + lane` for number t of a lane. Each observation is stored once: a push
    whose obs equals, byte for byte, the next_obs of the lane's previous push goes on with that episode. Any
    other push starts a new one. next_obs of every transition is exact, always.

    Any number of threads may push and sample at once. A refused call leaves the buffer as it was.

    Args:
        capacity: in transitions, exact; a multiple of lanes.
        schema: what a transition is; None takes it from the first push.
        lanes: environments that are written side by side; None takes it from the schema (else 1).
        sampler: which ids are drawn; `Uniform` by default.
        view: what an id becomes in a batch; `Transitions` by default. `Hindsight` alone means
            `Transitions(relabel=...)`.
        storage: where the bytes live.
        seed: of the buffer's own generator, in [0, 2^64); None draws one from the system. Batch number k is a pure
            function of (seed, k, contents); no global generator is read or touched.

    Raises:
        ConfigError: a value, or a combination of values, that makes no sense.

    Paper: Lin 1992, "Self-improving reactive agents based on reinforcement learning, planning and teaching", section
        3.3; Mnih et al. 2015 (doi:10.1038/nature14236), algorithm 1.
    """

    def __init__(
        self,
        capacity: int,
        schema: Schema | None = None,
        *,
        lanes: int | None = None,
        sampler: BuiltIn | Sampler | None = None,
        view: View | Hindsight | None = None,
        storage: Storage | None = None,
        seed: int | None = None,
    ) -> None:
        self._view, self._sampler = check_axes(view, sampler)
        self._storage = Memory() if storage is None else storage
        for name, value, kind in (("schema", schema, Schema | None), ("storage", self._storage, Storage)):
            if not isinstance(value, kind):
                raise ConfigError(f"{name}: expected {kind}, got {value!r}.")
        self._seed = check_seed(secrets.randbits(64) if seed is None else seed)
        self._capacity, self._lanes = divide(capacity, lanes, schema)
        self._num_readers = 0  # made by `reader`
        self._schema: Schema | None = None
        self._building, self._saving = Lock(), Lock()
        self._flat = False  # observation and action are single arrays
        if schema is not None:
            self._build(schema)

    @classmethod
    def _assembled(
        cls,
        spec: Spec,
        storage: Storage,
        *,
        attach: bool = False,
        segment: Segment | None = None,
        fill: Callable[[Core, Reader], None] | None = None,
    ) -> ReplayBuffer:
        """A buffer from all that it is.

        With `attach`, the one that lies in a file; the one of a shared `segment`; with contents that `fill` gives.
        """
        buffer = cls(
            spec.capacity, lanes=spec.lanes, sampler=spec.sampler, view=spec.view, storage=storage, seed=spec.seed
        )
        divide(spec.capacity, spec.lanes, spec.schema)
        buffer._build(spec.schema, attach=attach, segment=segment, fill=fill)
        return buffer

    def _build(
        self,
        schema: Schema,
        *,
        attach: bool = False,
        segment: Segment | None = None,
        fill: Callable[[Core, Reader], None] | None = None,
    ) -> None:
        """Lays out the memory, once the schema is known."""
        spec = Spec(self._capacity, self._lanes, schema, self._sampler, self._view, self._seed)
        self._engine = assemble(spec, self._storage, attach=attach, segment=segment, fill=fill)
        self._core, self._appender, self._reading = self._engine.into, self._engine.appender, self._engine.reading
        self._spec = spec
        self._extras, self._num_extras = tuple(schema.extras), len(schema.extras)
        self._flat = isinstance(schema.obs, Field) and isinstance(schema.action, Field)
        self._schema = schema

    def _goes_on_from(self, manifest: Manifest, *, readers: int, anew: bool) -> None:
        """Its contents are those of a snapshot (`anew`: all but what its sampler kept); saving there goes on."""
        self._num_readers = readers
        self._engine.saver.knows(manifest, anew=anew)

    def push(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        next_obs: Any,
        *,
        truncated: Any = False,
        lane: int | None = None,
        mask: ArrayLike | None = None,
        priority: ArrayLike | None = None,
        **extras: Any,
    ) -> Any:
        """Stores one transition, or one step of every lane.

        One transition: values of the schema's shapes; `lane` says which lane where there are several. One step of every
        lane: each value has a leading axis of size lanes. Everything is copied.

        Args:
            obs: the observation acted upon.
            action: the action taken.
            reward: stored as float32.
            terminated: True if the episode ended in a terminal state: no bootstrapping from next_obs.
            next_obs: the true next observation, also where the episode ends.
            truncated: True if the episode was cut for another reason (a time limit): targets bootstrap from next_obs.
            lane: which lane.
            mask: bool [lanes], False for lanes to leave out of a step.
            priority: |delta| to begin with, finite and at least 0, for samplers that keep priorities; for a step one,
                or one for each lane. None gives the largest priority so far.
            **extras: the extra fields of the schema, all of them.

        Returns:
            int: the id of the transition; for a step int64 [lanes], -1 for lanes left out.

        Raises:
            SchemaError: a value does not fit the schema: name, shape, dtype, bounds.
            ConfigError: a priority, and a sampler that keeps none (or sequences, whose priority is not that of a step).

        Cost: O(bytes of the transition), one native call.
        """
        if self._flat and lane is None and mask is None and priority is None and len(extras) == self._num_extras:
            # Most pushes are this one; it pays for nothing else.
            tail = [extras.get(name) for name in self._extras] if extras else ()
            if self._lanes == 1:
                new_id = self._core.append_one(0, obs, action, reward, terminated, truncated, next_obs, *tail)
                if new_id is not None:
                    return new_id
            else:
                ids = np.empty(self._lanes, np.int64)
                if self._core.append_many(
                    -1, None, None, ids, obs, action, reward, terminated, truncated, next_obs, *tail
                ):
                    return ids
        is_step = lane is None and (self._lanes > 1 or has_lead(self._schema, obs))
        count = self._lanes if is_step else None
        raw = None if priority is None else self._initial(priority, count or 1, many=is_step)
        if is_step and truncated is False:
            truncated = np.zeros(self._lanes, np.bool_)
        chosen = check_mask(mask, self._lanes, is_step=is_step)
        lane = 0 if is_step else check_lane(lane, self._lanes)
        given = (obs, action, reward, terminated, truncated, next_obs, extras)
        values = collect(self._schema or self._adopt(given, count, chosen), *given)
        return self._appender.step(values, chosen, raw) if is_step else self._appender.one(lane, values, raw)

    def extend(
        self,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        next_obs: Any,
        *,
        truncated: Any = None,
        lane: int | None = None,
        priority: ArrayLike | None = None,
        **extras: Any,
    ) -> NDArray[np.int64]:
        """Stores a block of transitions of one lane, in order of time.

        Args:
            obs: with a leading axis of T, as every other value.
            action: see `push`.
            reward: see `push`.
            terminated: see `push`.
            next_obs: see `push`.
            truncated: bool [T]; None for no truncation.
            lane: which lane, where there are several.
            priority: see `push`; one, or one for each transition [T].
            **extras: the extra fields of the schema, all of them.

        Returns:
            int64 [T]: the ids. Where T is larger than the lane, the first of them are overwritten already.

        Raises:
            SchemaError: a value does not fit the schema; then nothing is stored.

        Cost: O(bytes of the block), one native call.
        """
        shape = as_array(reward, "reward", "float32 (T,)").shape
        if len(shape) != 1:
            raise SchemaError(f"reward: expected float32 (T,), a block of T transitions, got shape {shape}. Use push.")
        count = shape[0]
        flags = np.zeros(count, np.bool_) if truncated is None else truncated
        lane = check_lane(lane, self._lanes)
        raw = None if priority is None else self._initial(priority, count, many=True)
        given = (obs, action, reward, terminated, flags, next_obs, extras)
        values = collect(self._schema or self._adopt(given, count, None), *given)
        return self._appender.block(lane, count, values, raw)

    def sample(
        self,
        n: int,
        *,
        beta: float | None = None,
        output: Output = "numpy",
        device: Any = None,
        out: Batch | None = None,
    ) -> Batch:
        """Draws a minibatch of `n`, as the sampler and the view say.

        Args:
            n: batch size B.
            beta: how far importance weights correct for the sampler's probabilities, >= 0; 1 fully. The batch
                has `weight` f32 [B] = (N P(i))^-beta / max; ones where P is uniform. None: no weights.
            output: "numpy", or "torch" for tensors over the same memory.
            device: of the tensors; None leaves them on the CPU, without a copy.
            out: a batch of this size that this buffer returned; its memory is written to, and it is returned. None
                under whole episodes.

        Returns:
            Batch: nobody else's memory. The arrays are recycled only when nothing refers to them any more.

        Raises:
            NotEnoughDataError: nothing can be drawn (the buffer is empty, or holds no window), or `max_uses` leaves
                fewer than n draws.
            ConfigError: a size, beta, output, device or out that cannot be.
            SchemaError: a reward function or a sampler of yours answered something else than expected. The batch it was
                asked for is counted as drawn.

        Cost: O(n * bytes of a row), one native call, GIL released; prioritized draws add O(log capacity) cache lines
            each, and the first call after pushes O(what was pushed). Safe beside writers.

        Paper: Schaul et al. 2016 (arXiv:1511.05952), section 3.4, for the weights.
        """
        if self._schema is None:
            raise NotEnoughDataError(f"sample({n}): expected at least 1 transition, the buffer is empty.")
        return self._reading.sample(n, beta=beta, output=output, device=device, out=out)

    def get(self, ids: ArrayLike, *, output: Output = "numpy", device: Any = None, out: Batch | None = None) -> Batch:
        """Assembles the batch of these transitions, under the buffer's view; goals are never relabelled.

        Args:
            ids: int64 [B], each live. Under `Sequences` any live id: the window is cut where its episode is.
            output: see `sample`.
            device: see `sample`.
            out: see `sample`.

        Returns:
            Batch: row i is the transition `ids[i]`.

        Raises:
            StaleIdError: an id was overwritten or cleared after it was given out, or never given out.

        Cost: as `sample`.
        """
        if self._schema is None:
            raise StaleIdError("ids: expected live transitions, the buffer is empty.")
        return self._reading.get(ids, output=output, device=device, out=out)

    def update_priorities(self, ids: ArrayLike, abs_td: ArrayLike) -> int:
        """Gives transitions (or sequences) new priorities.

        Ids that are not live any more are skipped, so that no priority ever lies on a transition it was not meant for.
        Of an id that comes several times the last value holds.

        Args:
            ids: int64 [B], as a batch of this buffer has them; an array or a tensor.
            abs_td: |delta|, finite and at least 0: float [B]; under `Sequences` also [B, T], one a step: the priority
                of the sequence is eta * max + (1 - eta) * mean over its steps with loss_mask. An array or a tensor.

        Returns:
            int: how many of the ids were live anchors, used-up ones included.

        Raises:
            SchemaError: shapes that do not belong together, NaN, infinite or negative values; then nothing changed.
            ConfigError: the sampler keeps no priorities.

        Cost: O(B log capacity), one native call, GIL released. Safe beside writers.
        Paper: Schaul et al. 2016 (arXiv:1511.05952), section 3.3; Kapturowski et al. 2019, section 2.3 (sequences).
        """
        if self._schema is None:
            check_updates(self._sampler)
            return 0
        return self._reading.update_priorities(ids, abs_td)

    def batches(
        self, size: int, *, beta: Beta = None, prefetch: int = 0, output: Output = "numpy", device: Any = None
    ) -> Batches:
        """An endless iterator over batches.

        Args:
            size: batch size B.
            beta: see `sample`; or a callable () -> float, asked once a batch by the thread that draws it.
            prefetch: batches that a thread of its own draws ahead; the same ones, in the same order, as without it, as
                long as the contents are. What is pushed or updated meanwhile shows up to so many batches later.
            output: see `sample`.
            device: see `sample`. To a CUDA device batches travel from pinned memory on a stream of their own.

        Returns:
            Batches: use it in a `with` block, or `close()` it; dropping it ends its thread too.

        Raises:
            ConfigError: a prefetch, beta or device that cannot be. What `sample` raises comes out of `next()`.
        """
        return Batches(
            lambda strength, place: self.sample(size, beta=strength, output=output, device=place),
            beta,
            prefetch,
            output,
            device,
        )

    def reader(
        self,
        *,
        view: View | Hindsight | None = None,
        sampler: BuiltIn | Sampler | None = None,
        seed: int | None = None,
    ) -> Reader:
        """A second reading of the same bytes: another view or sampler, with its own generator and priorities.

        Args:
            view: what an id becomes; the buffer's by default.
            sampler: which ids are drawn; the buffer's by default. What it keeps (priorities, use counts) is its own;
                priorities given with a push go to the buffer's own sampler.
            seed: of its generator; None derives one from the buffer's seed and the number of readers made before, in a
                process that is attached also from how many were attached before it.

        Returns:
            Reader: with `sample`, `get`, `update_priorities`, `anchors` and `batches` like the buffer's.

        Raises:
            ConfigError: no schema yet, or a view that this schema does not allow or that stacks more frames than this
                buffer keeps for its oldest ones.

        Cost: nothing until it is used; its first call looks at all transitions once. A push costs the same with it.
        """
        if self._schema is None:
            raise ConfigError("reader: expected a schema, got none yet. Give the buffer one, or push first.")
        view, sampler = check_axes(self._view if view is None else view, self._sampler if sampler is None else sampler)
        if history(self._schema, view) > history(self._schema, self._view):
            raise ConfigError(
                f"reader: expected a stack of at most {self._view.stack}, the frames this buffer keeps before its "
                f"oldest transition, got {view.stack}. Give the buffer a view with stack={view.stack}."
            )
        with self._building:
            number = self._num_readers
            self._num_readers += 1
        if seed is None:
            attachment = self._engine.attachment
            here = [attachment.number] if attachment and attachment.number else []  # other processes, other readers
            seed = int(np.random.SeedSequence([self._seed, number, *here]).generate_state(1, np.uint64)[0])
        sizes = measure(self._schema, self._capacity, self._lanes, view, sampler)
        memory = Memory().allocate(sizes.sampler_bytes, [(0, sizes.sampler_bytes)])
        return Reader(self._engine.core, self._schema, view, sampler, (memory, 0), check_seed(seed), primary=False)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        note: Any = None,
        compression: Literal["zstd"] | None = None,
        overwrite: bool = False,
    ) -> int:
        """Saves the whole state to a directory; to one it was saved to before, only what is new.

        Transitions and final observations, priorities, uses, generator and counters, open episodes, schema, sampler and
        view. Not what further readers and a user's own sampler keep. Other threads may push and sample meanwhile: the
        snapshot is the buffer at one moment, and they wait for no longer than it takes to copy what the sampler keeps.
        (Who pushes faster than the disk writes, for long, is made to wait for it.) Killed at any moment, or out of
        room, the directory holds the snapshot that was there before.

        The files are plain `.npy`, checked by checksums when they are loaded; see docs/snapshots.md. Saving to a path
        that this buffer was loaded from goes on there.

        Args:
            path: a directory; new, or one that this buffer was saved to or loaded from.
            note: anything that JSON can hold, committed with the snapshot: `relive.snapshot.read_note`.
            compression: "zstd" for smaller files; for data that is saved from now on. Needs zstandard.
            overwrite: write everything, whatever snapshot is there: of another buffer, or one that is damaged. (Files
                of earlier saves that are gone or cut short are noticed and written again without it.)

        Returns:
            int: bytes written.

        Raises:
            ConfigError: no schema yet, a snapshot of another buffer, or a note that JSON cannot hold.
            SnapshotError: the disk is full or broken, or another process saves there; what was there before stays.

        Cost: O(new transitions) written, plus 8 bytes a live transition where the sampler keeps priorities. Memory:
            about 2 MB, and those 8 bytes.
        """
        if self._schema is None:
            raise ConfigError("save: expected a schema, got none yet. Give the buffer one, or push first.")
        directory = as_path("save", path)
        if compression not in (None, "zstd"):
            raise ConfigError(f"save: expected compression to be 'zstd' or None, got {compression!r}.")
        with self._saving:
            card = {**self._spec.to_dict(), "readers": self._num_readers}
            return self._engine.saver.save(directory, card, note, compression is not None, overwrite)

    def end_episodes(self, mask: ArrayLike | None = None) -> int:
        """Truncates the episodes that go on: the newest transition of each such lane gets truncated=True.

        For whoever resets an environment in the midst of an episode. Without it the next push tells a new episode by
        its obs alone, which may equal the last next_obs by chance. A `Writer` does it by itself.

        Args:
            mask: bool [lanes], which lanes; None for all.

        Returns:
            int: how many episodes went on.

        Raises:
            SchemaError: a mask of another shape or dtype.
        """
        chosen = check_mask(mask, self._lanes, is_step=True)
        return self._core.end_episodes(chosen) if self._schema is not None else 0

    def clear(self) -> None:
        """Forgets every transition. Ids go on where they were; so does the generator."""
        if self._schema is not None:
            self._core.clear()

    def _step(
        self,
        lanes: range,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        next_obs: Any,
        *,
        truncated: Any,
        mask: NDArray[np.bool_] | None,
        **extras: Any,
    ) -> NDArray[np.int64]:
        """One step of these lanes alone, for `Writer`; see `push`."""
        assert self._schema is not None
        values = collect(self._schema, obs, action, reward, terminated, truncated, next_obs, extras)
        return self._appender.step(values, mask, None, lanes)

    def writer(self, envs: Any, *, first_lane: int | None = None) -> Writer:
        """A writer that stores the steps of these Gymnasium environments, whatever their autoreset mode.

        Args:
            envs: a vector environment with as many environments as the buffer has lanes, or a single environment.
            first_lane: for environments that are some of several: environment i writes lane first_lane + i, and other
                lanes are others' (threads', or processes' that share the buffer). None: all lanes are written here.

        Raises:
            ConfigError: another number of environments.
        """
        if self._schema is None and first_lane is None:
            schema = Schema.from_env(envs)
            with self._building:
                if self._schema is None and schema.lanes == self._lanes:
                    self._build(schema)
        if self._schema is None and first_lane is not None:
            raise ConfigError("writer: expected a schema where first_lane is given, got none yet. Give the buffer one.")
        return Writer(self, envs, first_lane)

    def handle(self) -> Handle:
        """What other processes attach to this buffer by: small, picklable. See `relive.attach`.

        Raises:
            ConfigError: the buffer lies elsewhere than in `SharedMemory`, or has no schema yet.
        """
        if not isinstance(self._storage, SharedMemory):
            raise ConfigError(
                f"handle: expected a buffer with storage=SharedMemory(), got {self._storage}. Make it with that."
            )
        if self._schema is None:
            raise ConfigError("handle: expected a schema, got none yet. Give the buffer one, or push first.")
        assert self._engine.segment is not None
        return handle_of(self._engine.segment)

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "ReplayBuffer: expected to stay where it is, cannot be copied or pickled. Share the object; with another "
            "process storage=SharedMemory() and buffer.handle()."
        )

    def __len__(self) -> int:
        return self._core.live if self._schema is not None else 0

    @property
    def ids(self) -> NDArray[np.int64]:
        """Ids of all live transitions, ascending: int64 [len(buffer)]. Cost: O(len)."""
        return self._core.ids() if self._schema is not None else np.empty(0, np.int64)

    @property
    def anchors(self) -> NDArray[np.int64]:
        """Ids that a batch can start with now, ascending: int64.

        Live, valid under the view, not used up, of a priority above zero. Cost: O(len).
        """
        return self._reading.anchors if self._schema is not None else np.empty(0, np.int64)

    @property
    def epochs(self) -> int:
        """Epochs completed under `Shuffled`; 0 under other samplers. A batch may end one and begin the next."""
        return self._reading.epochs if self._schema is not None else 0

    @property
    def owner_alive(self) -> bool:
        """Whether the process that made this buffer lives, and still has it: what actors ask to know when to end.

        Always True for a buffer that is no other process's.
        """
        segment = self._engine.segment if self._schema is not None else None
        return segment is None or segment.owner_alive

    @property
    def num_pushed(self) -> int:
        """Transitions that were ever pushed, in all lanes, by all processes. Takes no lock; cost: O(lanes)."""
        return self._core.num_pushed if self._schema is not None else 0

    @property
    def capacity(self) -> int:
        """Transitions that the buffer keeps."""
        return self._capacity

    @property
    def lanes(self) -> int:
        """Environments that are written side by side."""
        return self._lanes

    @property
    def schema(self) -> Schema | None:
        """What a transition is; None before the first push, where it was not given."""
        return self._schema

    @property
    def sampler(self) -> BuiltIn | Sampler:
        """Which ids are drawn."""
        return self._sampler

    @property
    def view(self) -> View:
        """What an id becomes."""
        return self._view

    @property
    def storage(self) -> Storage:
        """Where the bytes live."""
        return self._storage

    @property
    def seed(self) -> int:
        """Of the buffer's own generator."""
        return self._seed

    def __repr__(self) -> str:
        axes = f"{self._sampler}, {self._view}, {self._storage}, lanes={self._lanes}, seed={self._seed}"
        if self._schema is None:
            return f"ReplayBuffer(0 of {self._capacity:,} transitions, schema from the first push, {axes})"
        fields = [
            *leaves(self._schema.obs, "obs"),
            *leaves(self._schema.action, "action"),
            *self._schema.extras.items(),
        ]
        sizes = measure(self._schema, self._capacity, self._lanes, self._view, self._sampler)
        return (
            f"ReplayBuffer({len(self):,} of {self._capacity:,} transitions, {sizes.transition_bytes:,} B each, "
            f"{format_bytes(sizes.full_bytes)} when full, "
            f"{', '.join(f'{name}: {field}' for name, field in fields)}, {axes})"
        )

    def _initial(self, priority: ArrayLike, count: int, *, many: bool) -> NDArray[np.float64]:
        """Initial priorities as float64 [count], if there is a use for them."""
        raw = check_priority(priority, count, many=many)
        if not keeps_priorities(self._sampler):
            raise ConfigError(f"priority: expected none, got {priority!r}; {self._sampler} keeps no priorities.")
        if isinstance(self._view, Sequences):
            raise ConfigError(
                f"priority: expected none, got {priority!r}; a sequence's priority is not that of one of its steps. "
                "Use update_priorities."
            )
        return raw

    def _adopt(self, given: tuple[Any, ...], count: int | None, mask: NDArray[np.bool_] | None) -> Schema:
        """Takes the schema of the first push, if that push can be stored and no other thread was faster."""
        with self._building:
            if self._schema is None:
                schema = infer_schema(given[0], given[1], given[-1], self._lanes, count)
                conform_all(schema, collect(schema, *given), count, mask)
                self._build(schema)
            assert self._schema is not None
            return self._schema
