"""Who acts in a run: what each actor has done, who died, and the file that tells; wherever the actors are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relive.dqn import TrainConfig
from relive.train.actor import Report, Role, epsilons
from relive.train.actor_log import ActorLog, Tally
from relive.train.state import LoopState

MOST_DEATHS = 5
"""Deaths of one actor in a row, none of which made a step, after which the run gives up."""


@dataclass
class _Place:
    """One actor: what all who had its place did, and the one who has it now."""

    tally: Tally
    life: int = 0
    """How many had this place before, in this session."""
    in_vain: int = 0
    """Deaths in a row without a step."""
    stepped: bool = False
    """Whether the one who has it now has made a step."""


class Roster:
    """The books of the actors; `Acting` implementations keep one.

    Args:
        config: of the run.
        run_dir: where actors.csv is written, from `begin` on.
        step: at which this session begins.
        saved: what `state_dict` gave at the checkpoint; None or empty for a new run.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, step: int, saved: Mapping[str, Any] | None = None) -> None:
        self._config, self._run_dir, self._begun = config, run_dir, step
        self._epsilons = epsilons(config)
        tallies = [Tally.from_state(one) for one in saved["actors"]] if saved else [Tally() for _ in self._epsilons]
        self._places = [_Place(tally) for tally in tallies]
        self._before: str = saved["log"] if saved else ""  # actors.csv
        self._log: ActorLog | None = None
        self._row_at = 0.0
        self._notes: list[str] = []

    @property
    def begun(self) -> bool:
        """Whether `begin` was called."""
        return self._log is not None

    @property
    def restarts(self) -> int:
        """How often an actor was replaced."""
        return sum(place.tally.restarts for place in self._places)

    def begin(self) -> None:
        """Open actors.csv. Called when nothing can be refused any more."""
        self._log = ActorLog(self._run_dir, self._before)
        self._row_at = time.perf_counter()

    def role(self, number: int) -> Role:
        """For whoever takes this place now."""
        return Role(self._config, number, self._begun, self._places[number].life)

    def report(self, number: int, report: Report, state: LoopState) -> None:
        """Take in what a round of an actor came to."""
        place = self._places[number]
        place.tally.add(report)
        place.stepped = place.stepped or report.steps > 0
        state.ended(report.returns)

    def died(self, number: int, how: str) -> None:
        """Note the death of an actor that is about to be replaced.

        Args:
            number: whose.
            how: in words.

        Raises:
            ChildProcessError: it died too often without a step.
        """
        place = self._places[number]
        place.in_vain = 0 if place.stepped else place.in_vain + 1
        if place.in_vain == MOST_DEATHS:
            raise ChildProcessError(
                f"actor {number}: expected it to play, it died {MOST_DEATHS} times in a row before its first step, the "
                f"last time {how}. The run has given up."
            )
        place.life, place.stepped = place.life + 1, False
        place.tally.restarts += 1
        self._notes.append(f"actor {number} died ({how}) and was replaced; restarts: {place.tally.restarts}")

    def epsilon(self, step: int) -> float:
        """The mean of the actors' after so many steps."""
        return 1.0 if step < self._config.learning_starts else float(self._epsilons.mean())

    def notes(self) -> list[str]:
        """Who died and was replaced since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def write_row(self, state: LoopState) -> None:
        """One row an actor, if they have begun."""
        if self._log is None:
            return
        now = time.perf_counter()
        for number, place in enumerate(self._places):
            epsilon = float(self._epsilons[number])
            self._log.write(place.tally.row(state.step, number, epsilon, now - self._row_at, state.updates))
        self._row_at = now

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values: what actors did so far, and actors.csv."""
        log = self._before if self._log is None else self._log.text()
        return {"actors": [place.tally.state_dict() for place in self._places], "log": log}

    def close(self) -> None:
        """Close actors.csv. Idempotent."""
        if self._log is not None:
            self._log.close()
