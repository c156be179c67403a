"""Where a buffer that lies in a file was saved to: whoever attaches to it goes on there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from relive import disk
from relive.errors import SnapshotError
from relive.snapshot import frame, unframe

SAVES = "saves.json"
_KIND = "relive saves"
_MOST = 16  # directories that are remembered


class Saves:
    """The last snapshots of one buffer, by directory. A copy of the buffer's files knows no snapshot made after it."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def identities(self, directory: Path) -> tuple[str, ...]:
        """Of the snapshots that may lie there and be this buffer's; of none where nothing can be read."""
        return self._read().get(str(directory), ())

    def remember(self, directory: Path, identities: Iterable[str]) -> None:
        """Before a snapshot appears, in the place of another one: either may be there after a crash.

        Raises:
            OSError: the disk refuses.
        """
        known = {name: found for name, found in self._read().items() if name != str(directory)}
        newest = dict([*known.items(), (str(directory), tuple(identities))][-_MOST:])
        disk.replace(self._path, SAVES, frame(_KIND, newest))

    def forget(self) -> None:
        """The buffer is no longer what was saved, with more behind it: some of it was lost."""
        disk.remove(self._path / SAVES)
        disk.sync_directory(self._path)

    def _read(self) -> dict[str, tuple[str, ...]]:
        try:
            content = unframe(self._path / SAVES, _KIND)
            return {str(name): tuple(map(str, found)) for name, found in content.items()}
        except (OSError, SnapshotError, TypeError, AttributeError):
            return {}  # then saving there takes overwrite=True, as it does to somebody else's snapshot
