"""What lies at a path: a snapshot, whose bytes are verified first, or a file that `relive.interop` opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import relive.interop
from relive.audit.one_pass import check
from relive.audit.priorities import check_priorities
from relive.audit.report import Check, Finding, Report
from relive.buffer import ReplayBuffer
from relive.durable import load
from relive.errors import SnapshotError
from relive.interop.files import detect
from relive.samplers import Uniform
from relive.snapshot import MANIFEST, Manifest, steadily, verify
from relive.views import Transitions


def check_path(path: str | Path, *, format: str | None = None, trust_pickle: bool = False) -> Report:
    """Looks for what is wrong in a snapshot or a dataset.

    Args:
        path: file or directory.
        format: of a dataset, where its looks do not tell.
        trust_pickle: read Stable-Baselines3's pickles.

    Returns:
        Report: of a damaged snapshot one error, with the file and the place in it.

    Raises:
        ReplayError: nothing that can be read.
        OSError: it must not be read.

    Cost: as `check`. A snapshot is read twice, and loaded: its memory comes on top.
    """
    path = Path(path)
    if format is None and path.exists():
        format = detect(path)
    if format != "snapshot":
        return check(relive.interop.open(path, format=format, trust_pickle=trust_pickle))
    sums = Check("checksums", "every file is, byte for byte, as it was saved")

    def read(manifest: Manifest) -> tuple[ReplayBuffer, tuple[Check, ...], tuple[Finding, ...]]:
        verify(path)
        buffer = load(path, sampler=Uniform(), view=Transitions())  # whatever code the saved ones need
        return buffer, *check_priorities(path, manifest)

    try:
        buffer, checks, findings = steadily(path, read)
    except SnapshotError as error:
        if not (path / MANIFEST).exists():
            raise  # none at all
        return Report(f"{path}: snapshot", 0, (sums,), (Finding("checksums", "error", 1, None, str(error)),))
    report = check(relive.interop.of_buffer(buffer, format="snapshot", path=path))
    return replace(report, checks=(sums, *report.checks, *checks), findings=(*report.findings, *findings))
