"""Which snapshots are of a buffer that lies in a file: whoever attaches to it goes on with them."""

from __future__ import annotations

from pathlib import Path

from relive import disk
from relive.errors import SnapshotError
from relive.snapshot import frame, unframe

SAVES = "saves.json"
_KIND = "relive saves"

MOST = 4096
"""Snapshots that a buffer remembers as its own: so many saves elsewhere may come between two to one directory."""


class Saves:
    """The last snapshots of one buffer, wherever they lie. A copy of the buffer's files knows none made after it."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()

    def identities(self) -> tuple[str, ...]:
        """Of the snapshots that are this buffer's; none where nothing can be read."""
        try:
            return tuple(map(str, unframe(self._path / SAVES, _KIND)))
        except (OSError, SnapshotError, TypeError):
            return ()  # then saving there takes overwrite=True, as it does to somebody else's snapshot

    def remember(self, identity: str) -> None:
        """Before a snapshot appears: it may be there after a crash, or the one before.

        Raises:
            OSError: the disk refuses.
        """
        known = [*(other for other in self.identities() if other != identity), identity]
        disk.replace(self._path, SAVES, frame(_KIND, known[-MOST:]))

    def forget(self) -> None:
        """The buffer is no longer what was saved, with more behind it: some of it was lost."""
        disk.remove(self._path / SAVES)
        disk.sync_directory(self._path)
