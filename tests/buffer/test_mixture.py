"""Several buffers, one batch: exact shares, ids that find their way back, and nothing half done."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import relive
from model.marked import check, contents, make, run, transition

STEPS = 40
SHARES = ((1.0,), (0.5, 0.5), (0.25, 0.75), (0.1, 0.2, 0.7), (0.3, 0.3, 0.3, 0.1))


def filled(seed: int, lanes: int = 2, **options: Any) -> relive.ReplayBuffer:
    buffer = make(lanes, STEPS, **options, seed=seed)
    for step in range(STEPS):
        buffer.push(**transition(np.full(lanes, step), np.arange(lanes)) if lanes > 1 else transition(step, 0))
    return buffer


def mixed(shares: tuple[float, ...], seed: int = 9, **options: Any) -> relive.Mixture:
    return relive.Mixture([(filled(part, **options), share) for part, share in enumerate(shares)], seed=seed)


def counts_of(batch: relive.Batch, parts: int) -> np.ndarray:
    return np.bincount(np.asarray(batch.ids) // 2**56 - 1, minlength=parts)


def rows_of(batch: relive.Batch, rows: Any) -> relive.Batch:
    """Some rows of a batch."""

    def cut(value: Any) -> Any:
        return {key: cut(child) for key, child in value.items()} if isinstance(value, dict) else value[rows]

    return relive.Batch({name: cut(value) for name, value in vars(batch).items()})


class Small:
    """A source of whole rows of its own number: what a mixture needs of one, and nothing else."""

    def __init__(self, mark: int, fails: int = -1, keeps: bool = True) -> None:
        self.mark, self.fails, self.keeps = mark, fails, keeps
        self.schema = relive.Schema(relive.Field("float32"), relive.Field("int64"))
        self.view = relive.Transitions()
        self.calls = 0
        self.updated: list[tuple[list[int], list[Any]]] = []

    def __len__(self) -> int:
        return 10

    def sample(self, n: int, *, beta=None, output="numpy", device=None, out=None) -> relive.Batch:
        self.calls += 1
        if self.calls == self.fails:
            raise relive.NotEnoughDataError(f"sample({n}): expected more.")
        batch = out or relive.Batch({"obs": np.empty(n, np.float32), "ids": np.empty(n, np.int64)})
        if out is None and beta is not None:
            batch.weight = np.empty(n, np.float32)
        batch.obs[:], batch.ids[:] = self.mark, np.arange(n)
        if beta is not None:
            batch.weight[:] = beta
        return batch

    def get(self, ids: Any, **_: Any) -> relive.Batch:
        return relive.Batch({"obs": np.full(len(ids), self.mark, np.float32), "ids": ids})

    def update_priorities(self, ids: Any, abs_td: Any) -> int:
        if not self.keeps:
            raise relive.ConfigError("no priorities")
        self.updated.append((list(ids), np.asarray(abs_td).tolist()))
        return len(ids)


# Shares.


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_every_batch_has_each_share_within_a_row(shares, size):
    mixture = relive.Mixture([(Small(part), share) for part, share in enumerate(shares)], seed=1)
    for _ in range(200):
        batch = mixture.sample(size)
        counts = counts_of(batch, len(shares))
        assert counts.sum() == size
        assert (np.abs(counts - size * np.array(shares)) < 1 + 1e-9).all()
        assert batch.obs.tolist() == np.repeat(np.arange(len(shares)), counts).tolist()  # part 0 first


@pytest.mark.parametrize("shares", SHARES)
def test_shares_are_exact_over_many_batches(shares):
    """Rounded to the nearest, 0.25 of 7 rows would be 2 in every batch, and the mean off by a seventh."""
    mixture = relive.Mixture([(Small(part), share) for part, share in enumerate(shares)], seed=2)
    batches, size = 4_000, 7
    total = sum(counts_of(mixture.sample(size), len(shares)) for _ in range(batches))
    # A count takes one of two values in each batch: at most 1/4 of variance, over independent batches.
    assert (np.abs(total - batches * size * np.array(shares)) < 5 * np.sqrt(batches / 4)).all()


def test_batch_k_is_a_function_of_seed_and_k():
    expected = [contents(batch) for batch in (mixed((0.3, 0.7)).sample(9) for _ in range(1))]
    one, two, other = mixed((0.3, 0.7)), mixed((0.3, 0.7)), mixed((0.3, 0.7), seed=10)
    batches = [one.sample(9) for _ in range(50)]
    assert contents(batches[0]) == expected[0]
    assert [contents(two.sample(9)) for _ in range(50)] == [contents(batch) for batch in batches]
    counts = [counts_of(batch, 2).tolist() for batch in batches]
    assert counts != [counts_of(other.sample(9), 2).tolist() for _ in range(50)]
    assert [count for count, _ in counts] == [
        int(np.floor(9 * 0.3 + np.random.Generator(np.random.Philox(key=9, counter=k)).random())) for k in range(50)
    ]


def test_no_global_generator_is_read_or_touched():
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    mixture = mixed((0.5, 0.5))
    mixture.sample(5)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# Rows.


@pytest.mark.parametrize("lanes", [1, 3])
def test_rows_are_those_that_the_parts_draw(lanes):
    """Including the first batch, which is put together another way than the later ones."""
    mixture = mixed((0.5, 0.5), lanes=lanes)
    twins = [filled(part, lanes=lanes) for part in range(2)]
    for number in range(12):
        size = 8 + 2 * (number % 3)
        batch = mixture.sample(size)
        for part, twin in enumerate(twins):
            mine, own = rows_of(batch, slice(part * size // 2, (part + 1) * size // 2)), twin.sample(size // 2)
            assert (mine.ids == own.ids + (part + 1) * 2**56).all()
            mine.ids = own.ids
            assert contents(mine) == contents(own)
            check(mine, lanes, 3)


def test_ids_find_their_way_back():
    mixture = mixed((0.2, 0.3, 0.5))
    batch = mixture.sample(50)
    order = np.random.default_rng(0).permutation(50)
    again = mixture.get(batch.ids[order])
    assert contents(again) == contents(rows_of(batch, order))
    for part in range(3):  # of one part alone
        some = mixture.part_of(batch.ids) == part
        assert contents(mixture.get(batch.ids[some])) == contents(rows_of(batch, some))
    empty = mixture.get([])
    assert empty.obs["large"].shape == (0, 150)
    assert empty.ids.dtype == np.int64
    with pytest.raises(relive.SchemaError, match="ids"):
        mixture.get([0.5])


def test_the_callers_ids_are_not_written_to():
    mixture = mixed((0.5, 0.5))
    ids = mixture.sample(8).ids
    batch, before = mixture.get(ids), ids.tolist()
    batch.ids[:] = 0
    assert ids.tolist() == before


def test_an_id_that_is_gone_names_its_part():
    old, new = filled(0), make(2, STEPS, seed=1)
    new.push(**transition(np.zeros(2, np.int64), np.arange(2)))
    mixture = relive.Mixture([(old, 0.5), (new, 0.5)])
    with pytest.raises(relive.StaleIdError, match=r"part 1.*17"):
        mixture.get([2**56 + 4, 2 * 2**56 + 17])
    for stranger in (-1, 4, 3 * 2**56 + 4):  # a part's own id is none of the mixture's
        with pytest.raises(relive.StaleIdError, match="of this mixture"):
            mixture.get([stranger])
        assert mixture.part_of([stranger]) not in (0, 1)
    own = old.ids[:4]
    keeps = relive.Mixture([(old.reader(sampler=relive.Prioritized()), 1.0)])
    assert keeps.update_priorities(own, np.ones(4)) == 0
    assert keeps.update_priorities(own + 2**56, np.ones(4)) == 4


def test_one_buffer_may_be_several_parts():
    buffer = filled(0)
    mixture = relive.Mixture([(buffer, 0.5), (buffer, 0.5)], seed=0)
    batch = mixture.sample(20)
    assert contents(mixture.get(batch.ids)) == contents(batch)
    assert not np.array_equal(batch.ids[:10] % 2**56, batch.ids[10:] % 2**56)
    assert len(mixture) == 2 * len(buffer)


def test_batches_of_tensors_are_batches_of_arrays():
    torch = pytest.importorskip("torch")
    arrays, tensors, moved = mixed((0.5, 0.5)), mixed((0.5, 0.5)), mixed((0.5, 0.5))
    for _ in range(4):
        expected, batch = arrays.sample(10), tensors.sample(10, output="torch")
        assert isinstance(batch.obs["small"], torch.Tensor)
        assert contents(batch) == contents(expected) == contents(moved.sample(10, output="torch", device="cpu"))
        assert contents(tensors.get(batch.ids, output="torch")) == contents(expected)


def test_outputs_that_cannot_be_are_refused():
    pytest.importorskip("torch")
    mixture, twin = mixed((0.5, 0.5)), mixed((0.5, 0.5))
    for options in ({"output": "jax"}, {"device": "cpu"}, {"output": "torch", "device": "abacus"}):
        with pytest.raises(relive.ConfigError):
            mixture.sample(4, **options)
        with pytest.raises(relive.ConfigError):
            mixture.get([], **options)
    for size in (0, -1, 1.5, "4", 2**62, None):
        with pytest.raises(relive.ConfigError, match="batch size"):
            mixture.sample(size)
    assert contents(mixture.sample(4)) == contents(twin.sample(4))


# Memory.


HOLD = {
    "batch": lambda batch: batch,
    "array": lambda batch: batch.obs["large"],
    "row": lambda batch: batch.obs["large"][3],
    "bytes": lambda batch: memoryview(batch.reward),
    "tensor": lambda batch: pytest.importorskip("torch").from_numpy(batch.next_obs["small"]),
}


@pytest.mark.parametrize("how", HOLD)
def test_whatever_is_held_of_a_batch_stays(how):
    mixture = mixed((0.5, 0.5))
    for _ in range(3):
        mixture.sample(16)
    held = [HOLD[how](mixture.sample(16)) for _ in range(5)]
    before = [contents(one) if how == "batch" else bytes(np.asarray(one)) for one in held]
    for _ in range(20):
        mixture.sample(16)
        mixture.get(mixture.sample(16).ids)
    assert [contents(one) if how == "batch" else bytes(np.asarray(one)) for one in held] == before


def test_memory_is_used_again_once_nobody_holds_it():
    mixture = mixed((0.5, 0.5))
    mixture.sample(16)
    places = {mixture.sample(16).obs["large"].__array_interface__["data"][0] for _ in range(20)}
    assert len(places) == 1


def test_what_a_holder_does_to_its_arrays_is_its_own():
    mixture, twin = mixed((0.5, 0.5)), mixed((0.5, 0.5))
    for _ in range(6):
        batch, expected = mixture.sample(16), twin.sample(16)
        assert contents(batch) == contents(expected)
        batch.reward.shape = (4, 4)
        batch.ids.setflags(write=False)
        batch.obs["small"][:] = -1
        del batch.obs["large"], batch.action


# Errors.


def test_what_is_no_mixture_is_refused():
    one, two = filled(0), filled(1)
    for shares in ((0.5, 0.4), (0.5, 0.5 + 1e-8), (1.5, -0.5), (1.0, 0.0), (np.nan, 1.0), (True, 0.0), ("1", 0)):
        with pytest.raises(relive.ConfigError, match="share"):
            relive.Mixture(list(zip((one, two), shares, strict=True)))
    with pytest.raises(relive.ConfigError, match="share"):
        relive.Mixture([])
    for seed in (-1, 2**64, 0.5):
        with pytest.raises(relive.ConfigError, match="seed"):
            relive.Mixture([(one, 1.0)], seed=seed)
    third = 1 / 3
    assert len(relive.Mixture([(one, third), (two, third), (one, third)]).sample(9).ids) == 9


def test_parts_must_give_the_same_fields_under_the_same_view():
    def of(obs: Any, action: str = "int64", high: int | None = None, **extras: Any) -> relive.ReplayBuffer:
        field = relive.Field(action, (), None if high is None else 0, high)
        return relive.ReplayBuffer(10, relive.Schema(obs, field, extras))

    plain = of(relive.Field("float32", (4,)))
    for other, match in (
        (of(relive.Field("float32", (5,))), r"obs.*\(4,\).*\(5,\).*part 1"),
        (of(relive.Field("float64", (4,))), "obs.*float32.*float64"),
        (of({"x": relive.Field("float32", (4,))}), r"obs"),
        (of(relive.Field("float32", (4,)), "int8"), "action.*int64.*int8"),
        (of(relive.Field("float32", (4,)), logp=relive.Field("float32")), "logp.*None.*float32"),
        (make(2, STEPS), "obs"),
    ):
        with pytest.raises(relive.ConfigError, match=match):
            relive.Mixture([(plain, 0.5), (other, 0.5)])
    bounded = of(relive.Field("float32", (4,)), high=3)
    relive.Mixture([(plain, 0.5), (bounded, 0.5)])  # a bound is no difference to a batch
    with pytest.raises(relive.ConfigError, match=r"view.*n=3.*n=2"):
        relive.Mixture([(filled(0, n=3), 0.5), (filled(1, n=2), 0.5)])


def test_a_schema_may_come_with_the_first_push():
    """Online learning beside old data: the new buffer is still empty when the mixture is made."""
    old, new, wrong = (relive.ReplayBuffer(50, seed=seed) for seed in range(3))
    for step in range(50):
        old.push(np.zeros(4, np.float32), 0, 0.0, step == 49, np.zeros(4, np.float32))
    mixture = relive.Mixture([(old, 0.5), (new, 0.5)], seed=0)
    other = relive.Mixture([(old, 0.5), (wrong, 0.5)], seed=0)
    for _ in range(2):
        with pytest.raises(relive.NotEnoughDataError, match="part 1"):
            mixture.sample(8)
    new.push(np.ones(4, np.float32), 1, 1.0, True, np.ones(4, np.float32))
    assert mixture.sample(8).action.tolist() == [0] * 4 + [1] * 4
    wrong.push(np.ones(5, np.float32), 1, 1.0, True, np.ones(5, np.float32))
    with pytest.raises(relive.ConfigError, match=r"obs.*\(4,\).*\(5,\)"):
        other.sample(8)


def test_an_empty_part_costs_the_others_no_batch():
    old, twin, new = filled(0), filled(0), make(2, STEPS, seed=1)
    mixture = relive.Mixture([(old, 0.5), (new, 0.5)], seed=0)
    for _ in range(3):
        with pytest.raises(relive.NotEnoughDataError, match="part 1"):
            mixture.sample(8)
    new.push(**transition(np.zeros(2, np.int64), np.arange(2)))
    assert (mixture.sample(8).ids[:4] % 2**56).tolist() == twin.sample(4).ids.tolist()


@pytest.mark.parametrize("fails", [1, 4])
def test_an_error_of_a_part_names_it_and_the_batch_is_drawn_by_the_next_call(fails):
    """In the first batch, and in a later one, which is written in place."""
    parts = [(Small(0), 0.3), (Small(1, fails), 0.7)]
    mixture = relive.Mixture(parts, seed=3)
    fine = relive.Mixture([(Small(part), share) for part, share in ((0, 0.3), (1, 0.7))], seed=3)
    got = []
    for number in range(8):
        if number == fails - 1:
            with pytest.raises(relive.NotEnoughDataError, match=r"part 1 of the mixture.*expected more") as raised:
                mixture.sample(5)
            assert isinstance(raised.value.__cause__, relive.NotEnoughDataError)
        got.append(mixture.sample(5).ids.tolist())
    assert got == [fine.sample(5).ids.tolist() for _ in range(8)]


# Priorities.


def test_priorities_go_back_to_their_parts_in_order():
    parts = [Small(0), Small(1, keeps=False), Small(2)]
    mixture = relive.Mixture([(parts[0], 0.25), (parts[1], 0.25), (parts[2], 0.5)], seed=0)
    ids = np.array([4, 5, 6, 4, 1]) + 2**56 * np.array([3, 1, 2, 3, 1])
    assert mixture.update_priorities(ids, np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == 4  # the uniform part's is skipped
    assert parts[0].updated == [([5, 1], [0.2, 0.5])]
    assert parts[2].updated == [([4, 4], [0.1, 0.4])]  # the last one holds
    assert mixture.update_priorities(ids[2:3], [1.0]) == 0
    steps = np.arange(10.0).reshape(5, 2)
    assert mixture.update_priorities(ids.tolist(), steps) == 4
    assert parts[2].updated[-1] == ([4, 4], [[0.0, 1.0], [6.0, 7.0]])
    torch = pytest.importorskip("torch")
    assert mixture.update_priorities(torch.tensor(ids), torch.ones(5, requires_grad=True)) == 4


def test_priorities_that_cannot_be_change_no_part():
    parts = [Small(0), Small(1)]
    mixture = relive.Mixture([(part, 0.5) for part in parts])
    for errors in ([0.5, np.nan], [0.5, -1.0], [0.5], [[[1.0]], [[1.0]]], ["a", "b"], 0.5, [np.inf, 0.0]):
        with pytest.raises(relive.SchemaError, match="abs_td"):
            mixture.update_priorities([0, 1], errors)
    with pytest.raises(relive.SchemaError, match="ids"):
        mixture.update_priorities([[0, 1]], [0.5, 0.5])
    assert parts[0].updated == parts[1].updated == []
    with pytest.raises(relive.ConfigError, match="priorities"):
        relive.Mixture([(Small(0, keeps=False), 1.0)]).update_priorities([0], [0.5])


def test_weights_are_the_parts_own():
    mixture = relive.Mixture([(Small(0), 0.5), (Small(1), 0.5)], seed=0)
    for number in range(6):
        beta = None if number % 2 else 0.25 * number
        batch = mixture.sample(4, beta=beta)
        assert ("weight" in vars(batch)) == (beta is not None)
        assert beta is None or batch.weight.tolist() == [beta] * 4


# Threads, forks, iterators.


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_the_same_batches_however_many_are_drawn_ahead(prefetch):
    mixture = mixed((0.3, 0.7))
    expected = [contents(mixture.sample(9)) for _ in range(20)]
    with mixed((0.3, 0.7)).batches(9, prefetch=prefetch) as iterator:
        assert [contents(next(iterator)) for _ in range(20)] == expected


def test_threads_draw_the_batches_that_one_thread_draws():
    one, many = mixed((0.3, 0.7)), mixed((0.3, 0.7))
    expected = sorted(contents(one.sample(9)) for _ in range(80))
    drawn: list[list[bytes]] = []
    run(*[lambda: drawn.extend([contents(many.sample(9)) for _ in range(20)])] * 4)
    assert sorted(drawn) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_of_a_fork_can_draw():
    """The lock may be held by a thread that the child does not have."""
    code = (
        "import os, threading, numpy as np, relive\n"
        "buffer = relive.ReplayBuffer(500, seed=0)\n"
        "frame = np.zeros((84, 84), np.uint8)\n"
        "for _ in range(200): buffer.push(frame, 0, 0.0, False, frame)\n"
        "mixture = relive.Mixture([(buffer, 0.5), (buffer, 0.5)])\n"
        "done = False\n"
        "def loop():\n"
        "    while not done: mixture.sample(64)\n"
        "thread = threading.Thread(target=loop); thread.start()\n"
        "for _ in range(8):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        mixture.sample(4); os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "done = True\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["7"] * 8


def test_a_mixture_says_what_it_is():
    buffer = filled(0)
    mixture = relive.Mixture([(buffer, 0.25), (buffer, 0.75)], seed=4)
    assert mixture.parts == ((buffer, 0.25), (buffer, 0.75))
    assert mixture.seed == 4
    for piece in ("Mixture([(ReplayBuffer(", "0.25", "0.75", "seed=4"):
        assert piece in repr(mixture)
