"""The outcome of a run: as data, as JSON for programs, as Markdown for people."""

import json
import math
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from relive.dqn import AgentConfig, TrainConfig
from relive.train.acting import Shards
from relive.train.actor import in_words
from relive.train.evaluate import Evaluation
from relive.train.rundir import (
    ACTORS,
    CHECKPOINT,
    CONTENTS,
    CURVE,
    RESULT,
    SUMMARY,
    place_in_words,
    status_in_words,
    write_file,
)


@dataclass(frozen=True)
class Result:
    """What a run reached."""

    status: Literal["finished", "stopped early", "interrupted"]
    """All steps made; an evaluation reached `stop_return`; a signal ended it."""
    signal: str | None
    """Name of the signal that ended it."""
    steps: int
    updates: int
    episodes: int
    seconds: float
    """Wall time of the training, evaluations on the way included, the final one not."""
    cpu_seconds: float
    """Processor time of the same."""
    eval_seconds: float
    """Wall time of the evaluations on the way."""
    kept: Literal["best", "last"]
    """The weights that the run ends with."""
    kept_step: int
    """The step they are from; updates from a dataset alone, before the first step, count as steps."""
    final: Evaluation | None
    """Greedy episodes of the kept weights; None if the run was interrupted."""
    threshold: float | None
    restarts: int = 0
    """How often an actor died and was replaced."""
    shards: Shards | None = None
    """The parts of the buffer at the end, where it has some (ray)."""
    resumed_at: int | None = None
    """Place of the checkpoint that it went on from, the last time; None if it was never resumed."""

    @property
    def passed(self) -> bool | None:
        """Whether the final evaluation reached the threshold; None where there is no threshold or no evaluation."""
        return None if self.threshold is None or self.final is None else self.final.mean >= self.threshold


def save_result(run_dir: Path, config: TrainConfig, result: Result) -> None:
    """Write result.json and summary.md."""
    final = result.final
    data: dict[str, Any] = {
        "status": result.status,
        "signal": result.signal,
        "steps": result.steps,
        "updates": result.updates,
        "episodes": result.episodes,
        "seconds": round(result.seconds, 3),
        "cpu_seconds": round(result.cpu_seconds, 3),
        "eval_seconds": round(result.eval_seconds, 3),
        "kept": result.kept,
        "kept_step": result.kept_step,
        "threshold": result.threshold,
        "passed": result.passed,
        "final": None if final is None else {"mean": final.mean, "std": final.std, "returns": final.returns},
        "versions": versions(),
    }
    if result.resumed_at is not None:
        data["resumed_at"] = result.resumed_at
    if config.actors:
        data["restarts"] = result.restarts
    if result.shards is not None:
        data["shards"] = asdict(result.shards)
    write_file(run_dir / SUMMARY, summary(run_dir.resolve().name, config, result).encode())
    write_file(run_dir / RESULT, (json.dumps(data, indent=2) + "\n").encode())  # last: it says that the run has ended


def versions() -> dict[str, str]:
    """What the run was made with."""
    return {"python": platform.python_version()} | {
        name: version(name) for name in ("relive", "torch", "gymnasium", "numpy")
    }


def summary(name: str, config: TrainConfig, result: Result) -> str:
    """The run in a page of Markdown."""
    final = result.final
    learning = result.seconds - result.eval_seconds
    lines = [
        f"# {name}",
        "",
        f"DQN on {config.env}, seed {config.seed}: **{headline(config, result)}**",
        "",
        f"![learning curve]({CURVE})",
        "",
        "| | |",
        "|---|---|",
        f"| ended | {status_in_words(result.status, config)}{f' by {result.signal}' if result.signal else ''} |",
        *_resumed(config, result),
        *_course(config, result),
        *_actors(config, result),
        f"| updates | {result.updates:,} of batch {config.agent.batch_size} |",
        f"| training episodes | {result.episodes:,} |",
        f"| training time | {learning:.1f} s, and {result.eval_seconds:.1f} s for the evaluations on the way |",
        f"| processor time of both | {result.cpu_seconds:.1f} s |",
        f"| weights kept | {result.kept}, from {_kept(config, result)} |",
    ]
    if final is not None:
        lines.append(f"| greedy return | {final}, from {min(final.returns):g} to {max(final.returns):g} |")
        lines.append(f"| episode length | {sum(final.lengths) / len(final.lengths):.1f} steps on average |")
    lines += ["", "## Settings that are not the defaults", ""]
    lines += changed_settings(config) or ["None."]
    lines += ["", "## Files", "", "| file | holds |", "|---|---|"]
    without = {CHECKPOINT} if place_of(config, result) < (config.checkpoint_every or math.inf) else set()
    without |= set() if config.actors else {ACTORS}
    lines += [f"| `{file}` | {what} |" for file, what in CONTENTS.items() if file not in without]
    lines += ["", "Made with " + ", ".join(f"{key} {value}" for key, value in versions().items()) + "."]
    return "\n".join(lines) + "\n"


def place_of(config: TrainConfig, result: Result) -> int:
    """How far the run came, of `config.length`."""
    return min(result.updates, config.updates_before) + result.steps


def _kept(config: TrainConfig, result: Result) -> str:
    """Where in the run the weights are from."""
    words = place_in_words(config, result.kept_step)
    return f"{words} (no step yet)" if words.startswith("update") else words


def _resumed(config: TrainConfig, result: Result) -> list[str]:
    """That the run was not made in one go, and where the last part of it began."""
    at = result.resumed_at
    return [] if at is None else [f"| resumed | from {place_in_words(config, at)}, the last time |"]


def _course(config: TrainConfig, result: Result) -> list[str]:
    """What the run learned from: a dataset, steps, or the one after and beside the other."""
    lines = []
    if config.offline is not None:
        alone = min(result.updates, config.offline_updates)
        lines.append(f"| dataset | {config.offline}, {alone:,} of {config.offline_updates:,} updates from it alone |")
    if config.offline is None or config.online:
        lines.append(f"| environment steps | {result.steps:,} of {config.steps:,} |")
    if config.online:
        lines.append(f"| share of the dataset beside them | {config.offline_share:g} |")
    return lines


def _actors(config: TrainConfig, result: Result) -> list[str]:
    """Who acted, if not the learner itself."""
    if not config.actors:
        return []
    died = f"; {result.restarts:,} died and were replaced" if result.restarts else ""
    return [f"| actors | {in_words(config)}{died} |", *_shards(config, result)]


def _shards(config: TrainConfig, result: Result) -> list[str]:
    """Where the transitions were."""
    shards = result.shards
    if shards is None:
        return []
    each = " and ".join(f"{number:,}" for number in shards.transitions)
    restarts = f"; {shards.restarts:,} restarted" if shards.restarts else ""
    lost = f"{shards.lost:,}" if shards.lost else "none"
    one = f"{config.shards} shard{'s' if config.shards > 1 else ''} in Ray ({config.ray})"
    return [f"| buffer | {one} with {each} transitions; {lost} lost{restarts} |"]


def headline(config: TrainConfig, result: Result) -> str:
    """The outcome in one sentence."""
    if result.final is None:
        return f"interrupted at {place_in_words(config, place_of(config, result))}; not evaluated."
    reached = f"greedy return {result.final}"
    if result.passed is None:
        return f"{reached}."
    return f"{reached}: threshold {result.threshold:g} {'reached' if result.passed else 'missed'}."


def changed_settings(config: TrainConfig) -> list[str]:
    """Every setting that differs from a plain TrainConfig, as a Markdown list."""
    ours, plain = config.to_dict(), TrainConfig(env=config.env).to_dict()
    agent, plain_agent = ours.pop("agent"), AgentConfig().__dict__
    changed = {key: value for key, value in ours.items() if value != plain[key]}
    if config.actors:  # which have epsilons of their own
        changed = {key: value for key, value in changed.items() if not key.startswith("epsilon_")}
    changed |= {f"agent.{key}": value for key, value in agent.items() if value != plain_agent[key]}
    return [f"- `{key}` = {value}" for key, value in changed.items()]
