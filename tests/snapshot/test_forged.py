"""Snapshots made up by somebody, with right checksums: refused by name, or a buffer that works; never harm."""

from __future__ import annotations

import contextlib
import copy
import json
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from snapshot_worlds import WORLDS, contents, write

import relive
from relive.disk import BLOCK
from relive.snapshot import FORMAT, MANIFEST

NAN, INF = float("nan"), float("inf")
EVIL: list[Any] = [
    *(-1, 0, 1, 2, 3, 7, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63)),
    *(
        NAN,
        INF,
        -INF,
        1.5,
        1e308,
        None,
        True,
        "",
        "x",
        "../x",
        "/etc/passwd",
        "O",
        "|O",
        "V",
        "S0",
        "f4,O",
        "(3)",
        "\0",
    ),
    *([], {}, [[]], [1], [[["a", "|O"]]], {"dict": {}}, {"tuple": []}, {"custom": "os.system"}),
]
NAMES = [
    "",
    ".",
    "..",
    "../s/manifest.json",
    "/etc/passwd",
    "a\0b",
    "manifest.json",
    "000001-records.npy/..",
    "x" * 300,
]


def forge(files: dict[str, bytes], content: Any) -> dict[str, bytes]:
    """The files with another manifest, whose checksum is right."""
    text = json.dumps(content).encode()
    head = f'{{"format": "{FORMAT}", "version": 1, "crc32": "{zlib.crc32(text):08x}", "content":\n'.encode()
    return {**files, MANIFEST: head + text + b"\n}\n"}


def content_of(files: dict[str, bytes]) -> Any:
    """What a manifest says."""
    return json.loads(files[MANIFEST])["content"]


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a JSON tree; of long lists the first two and the last."""
    yield path
    if isinstance(tree, dict):
        for key, child in tree.items():
            yield from places(child, (*path, key))
    elif isinstance(tree, list):
        for index in sorted({0, 1, len(tree) - 1} & set(range(len(tree)))):
            yield from places(tree[index], (*path, index))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with another value at a path."""
    if not path:
        return value
    changed = copy.deepcopy(tree)
    at = changed
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return changed


def without(tree: Any, path: tuple[Any, ...]) -> Any:
    """The tree without what is at a path."""
    changed = copy.deepcopy(tree)
    at = changed
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    return changed


def use(buffer: relive.ReplayBuffer, directory: Path) -> None:
    """Everything one does with a buffer."""
    ids = buffer.ids
    assert len(ids) == len(buffer) <= buffer.capacity
    if len(ids):
        buffer.get(ids)
        newest = getattr(buffer.sampler, "newest", 0)
        for size in (newest + 1, newest + 5) if newest < 100 else ():
            with contextlib.suppress(relive.NotEnoughDataError):
                batch = buffer.sample(size, beta=0.5)
                if not isinstance(buffer.sampler, relive.Uniform | relive.Shuffled):
                    buffer.update_priorities(batch.ids, np.ones(size))
    if buffer.capacity <= 100 and buffer.lanes <= 4:
        row = {}
        for name, tree in (("obs", buffer.schema.obs), ("action", buffer.schema.action), *buffer.schema.extras.items()):
            if not isinstance(tree, relive.Field) or np.prod(tree.shape) > 10_000:
                return
            low = 0 if tree.low is None else tree.low
            row[name] = np.resize(np.array(low), tree.shape).astype(tree.dtype)
        for _ in range(buffer.capacity + 5):
            for lane in range(buffer.lanes):
                buffer.push(**row, reward=0.0, terminated=False, next_obs=row["obs"], lane=lane)
        assert len(buffer) == buffer.capacity
        buffer.get(buffer.ids)
        buffer.save(directory / "again", overwrite=True)
        relive.load(directory / "again")
    buffer.clear()


def tried(directory: Path, work: Path) -> bool:
    """Whether it loads; then it must work."""
    try:
        buffer = relive.load(directory)
    except (relive.SnapshotError, relive.ConfigError):
        return False
    use(buffer, work)
    return True


def saved(name: str, directory: Path) -> dict[str, bytes]:
    """A snapshot with everything in it that this kind can have."""
    world = WORLDS[name]
    buffer, times = world.make(), [0] * world.lanes
    for count in (30, 9):
        world.drive(buffer, times, np.random.default_rng(3), count)
        world.save(buffer, directory, times)
    return contents(directory)


@pytest.mark.parametrize("name", ["max_uses", *(pytest.param(name, marks=pytest.mark.slow) for name in WORLDS)])
def test_every_value_of_the_manifest_forged(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a number that is believed, another exception, a place outside, a huge allocation."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    files = saved(name, tmp_path / "s")
    content = content_of(files)
    write(tmp_path / "d", files)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = np.random.default_rng(2)
    few = not any(mark.name == "slow" for mark in request.node.iter_markers())
    loaded = count = 0
    for path in places(content):
        evil = [*EVIL, *(NAMES if path and path[-1] == "name" else [])]
        if few:
            evil = [evil[i] for i in rng.choice(len(evil), 12, replace=False)]
        changed = [put(content, path, value) for value in evil]
        changed += [without(content, path)] if path else []
        for forged in changed:
            (tmp_path / "d" / MANIFEST).write_bytes(forge({}, forged)[MANIFEST])
            loaded += tried(tmp_path / "d", tmp_path)
            count += 1
    assert loaded < 0.2 * count  # the note, the seed and such
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000, "KiB"


def test_manifests_that_are_deep_long_or_no_json(tmp_path: Path) -> None:
    """Would catch: a parser's own exceptions."""
    files = saved("plain", tmp_path / "s")
    content = content_of(files)
    deep: Any = {"dtype": "<f4", "shape": [], "low": None, "high": None}
    for _ in range(300):
        deep = {"tuple": [deep]}
    texts = [b"", b"null", b"[" * 100_000, b"1" * 10_000, b'{"a": NaN}', b"\xff\xfe", json.dumps("x" * 10**6).encode()]
    for text in texts:
        head = f'{{"format": "{FORMAT}", "version": 1, "crc32": "{zlib.crc32(text):08x}", "content":\n'.encode()
        write(tmp_path / "d", {**files, MANIFEST: head + text + b"\n}\n"})
        with pytest.raises(relive.SnapshotError):
            relive.load(tmp_path / "d")
    for version in (b"0", b"2", b"99999999999", b"9" * 5000):
        changed = files[MANIFEST].replace(b'"version": 1', b'"version": ' + version, 1)
        write(tmp_path / "d", {**files, MANIFEST: changed})
        with pytest.raises(relive.SnapshotError):
            relive.load(tmp_path / "d")
    for depth in (10, 300):
        tree = deep
        for _ in range(300 - depth):
            tree = tree["tuple"][0]
        write(tmp_path / "d", forge(files, put(content, ("buffer", "schema", "obs"), tree)))
        with pytest.raises((relive.SnapshotError, relive.ConfigError)):
            relive.load(tmp_path / "d")


def array_of(files: dict[str, bytes], part: str) -> tuple[str, int, bytearray]:
    """The newest file of a part: its name, the length of its head, its bytes."""
    name = max(name for name in files if name.endswith(f"-{part}.npy"))
    head = int.from_bytes(files[name][8:10], "little") + 10
    return name, head, bytearray(files[name])


def with_file(files: dict[str, bytes], name: str, data: bytes) -> dict[str, bytes]:
    """The files with other bytes in one of them, and the checksums of those."""

    def resum(tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("name") == name:
            head = tree["head"]
            sums = [data[:head], *(data[at : at + BLOCK] for at in range(head, len(data), BLOCK))]
            crc32 = "".join(f"{zlib.crc32(block):08x}" for block in sums)
            return {**tree, "bytes": len(data), "crc32": crc32}
        if isinstance(tree, dict):
            return {key: resum(child) for key, child in tree.items()}
        return [resum(child) for child in tree] if isinstance(tree, list) else tree

    return forge({**files, name: data}, resum(content_of(files)))


@pytest.mark.parametrize(
    ("kind", "part", "dtype", "values", "loads"),
    [
        ("max_uses", "masses", "f8", [NAN, 0.0, 1e-300], True),
        ("max_uses", "masses", "f8", [INF, -INF, -2.0, -0.5, 1.7e308, 1e290], False),
        ("max_uses", "uses", "u4", [3, 2**32 - 1], False),
        ("ranked", "places", "u4", [1, 2**32 - 1, 500], False),
        ("ranked", "masses", "f8", [INF, -3.0], False),
        ("shuffled", "uses", "u4", [4, 2**31], False),
    ],
)
def test_forged_values(kind: str, part: str, dtype: str, values: list[float], loads: bool, tmp_path: Path) -> None:
    """Would catch: priorities that are no numbers or too large, places that are no permutation, too many uses."""
    files = saved(kind, tmp_path / "s")
    name, head, data = array_of(files, part)
    for value in values:
        for index in (0, 5):
            array = np.frombuffer(data[head:], dtype).copy()
            if part == "places":
                index = np.flatnonzero(array != value)[index]
            array[index] = value
            write(tmp_path / "d", with_file(files, name, bytes(data[:head]) + array.tobytes()))
            assert tried(tmp_path / "d", tmp_path) == loads, value


@pytest.mark.parametrize(
    "kind",
    [
        *("max_uses", "stacked", "columns"),
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("plain", "shuffled", "sequences", "ranked")),
    ],
)
def test_forged_records(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a slot, place or position out of a file that is believed: reads and writes beside the arena."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
    files = saved(kind, tmp_path / "s")
    rng = np.random.default_rng(0)
    outcomes = []
    for name in sorted(name for name in files if name.endswith("-records.npy")):
        head = int.from_bytes(files[name][8:10], "little") + 10
        records = np.load(tmp_path / "s" / name)
        words = [word for word in records.dtype.names if word.startswith("episode.")]
        for word in words:
            for value in [0, 1, 2, 5, 2**30, 2**31 + 3, 2**32 - 1, rng.integers(2**32)]:
                changed = records.copy()
                changed[word][rng.integers(len(records))] = value
                data = bytearray(files[name])
                data[head:] = changed.tobytes()
                write(tmp_path / "d", with_file(files, name, bytes(data)))
                outcomes.append(tried(tmp_path / "d", tmp_path))
    assert outcomes.count(False) > len(outcomes) // 3


def test_rows_that_contradict(tmp_path: Path) -> None:
    """Would catch: lanes, runs and extents that do not belong together; a stack that begins before the first row."""
    files = saved("columns", tmp_path / "s")
    content = content_of(files)
    lanes = content["lanes"]
    assert lanes[0][3] < lanes[0][0], "frames are kept before the oldest transition"
    forged = [
        put(content, ("lanes", 0, 3), lanes[0][0]),
        put(content, ("lanes", 0), [lanes[0][0] + 1, lanes[0][1] + 1, *lanes[0][2:]]),
        put(content, ("lanes", 0, 2), 1 - lanes[0][2]),
        put(content, ("lanes",), lanes[::-1]),
        put(content, ("lanes",), lanes[:1]),
        put(content, ("lanes",), []),
        put(content, ("segments",), content["segments"][::-1]),
        put(content, ("segments",), content["segments"][1:]),
        put(content, ("segments", 0, "runs"), content["segments"][0]["runs"][::-1]),
        put(content, ("tail",), content["segments"][0]),
        put(content, ("epochs",), []),
        put(content, ("number",), 1),  # the next save would write over files that count
    ]
    for number, change in enumerate(forged):
        write(tmp_path / "d", forge(files, change))
        with pytest.raises(relive.SnapshotError):
            relive.load(tmp_path / "d")
            pytest.fail(f"number {number} was loaded")


def test_files_outside_of_the_directory(tmp_path: Path) -> None:
    """Would catch: a name that leads elsewhere, though what is there has the right bytes; a raw ValueError."""
    files = saved("plain", tmp_path / "s")
    content = content_of(files)
    good = content["segments"][0]["files"][0]["name"]
    write(tmp_path / "d", files)
    (tmp_path / "d" / "copy.npy").write_bytes(files[good])
    for name in [f"../s/{good}", str(tmp_path / "s" / good), f"./{good}", "copy.npy", f"{good}\0", *NAMES]:
        forged = put(content, ("segments", 0, "files", 0, "name"), name)
        (tmp_path / "d" / MANIFEST).write_bytes(forge({}, forged)[MANIFEST])
        for read in (relive.load, relive.snapshot.verify):
            with pytest.raises(relive.SnapshotError, match="impossible file"):
                read(tmp_path / "d")


def test_files_that_hold_more(tmp_path: Path) -> None:
    """Would catch: bytes behind the last entry, with the right checksum, that nobody looks at."""
    files = saved("max_uses", tmp_path / "s")
    for part in ("records", "finals", "masses", "uses"):
        name, _, data = array_of(files, part)
        for more in (b"\0", bytes(data[-64:])):
            write(tmp_path / "d", with_file(files, name, bytes(data) + more))
            with pytest.raises(relive.SnapshotError, match="expected no more entries"):
                relive.load(tmp_path / "d")
