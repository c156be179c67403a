"""`relive study NAME`: experiments that answer a question about replay, each with a table and a figure."""

import difflib
import signal
from collections.abc import Sequence

from relive.cli.options import parse
from relive.errors import ConfigError

STUDIES = {
    "capacity": "learning curves over buffer capacities and samplers, in any environment",
    "cliffwalk": "the Blind Cliffwalk: updates until rare successes are learned, by sampler",
    "offline": "what DQN and CQL learn from data of mixed quality, alone and with steps after",
}
"""Study -> what it does."""


def run(args: Sequence[str]) -> int:
    """Make the study that is named; returns the exit code."""
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    name, *rest = args
    if name == "capacity":
        return _capacity(rest)
    if name == "cliffwalk":
        return _cliffwalk(rest)
    if name == "offline":
        return _offline(rest)
    close = difflib.get_close_matches(name, STUDIES, n=1)
    remedy = f"Did you mean {close[0]}?" if close else "See relive study --help."
    raise ConfigError(f"study: expected one of {', '.join(STUDIES)}, got {name!r}. {remedy}")


def _capacity(args: Sequence[str]) -> int:
    from relive.cli.progress import study_spectator
    from relive.study import capacity

    description = (
        "Train with buffers of several capacities and samplers, and compare: a run for each capacity, sampler, seed, "
        "60 by default. Leaves a figure of learning curves and a table, interquartile means over the seeds with 95 % "
        "bootstrap intervals. Ctrl-C ends it; the same call goes on."
    )
    config = parse(capacity.CapacityConfig, args, prog="relive study capacity", description=description)
    jobs = capacity.plan(config).values()
    there = sum(job.finished for job in jobs)
    print(
        f"{len(jobs)} runs in {config.env}, {there} of them there already, {config.jobs} at a time.\n"
        f"Study: {config.directory}",
        flush=True,
    )
    with study_spectator() as report:
        outcome = capacity.run(config, report)
    if isinstance(outcome, signal.Signals):
        print(f"Ended by {outcome.name}; finished runs are kept. Call again to go on.")
        return 128 + outcome
    table = outcome[0].read_text(encoding="utf-8").split("\n\n")[2]
    print(f"\n{table}\n")
    print("Written: " + ", ".join(map(str, outcome)))
    return 0


def _cliffwalk(args: Sequence[str]) -> int:
    from relive.study import cliffwalk

    description = (
        "Q-learning with a table on the Blind Cliffwalk of Schaul et al. 2016: updates until the values are learned, "
        "by sampler: uniform, rank-based, proportional, greedy, oracle."
    )
    config = parse(cliffwalk.CliffwalkConfig, args, prog="relive study cliffwalk", description=description)
    print("Written: " + ", ".join(map(str, cliffwalk.run(config))))
    return 0


def _offline(args: Sequence[str]) -> int:
    from relive.cli.progress import study_spectator
    from relive.study import offline

    description = (
        "Record data with policies of several qualities, learn from them alone with DQN and with conservative "
        "Q-learning (Kumar et al. 2020), then go on in the environment with half of each batch from the data. Leaves a "
        "figure and a table. Ctrl-C ends it; the same call goes on."
    )
    config = parse(offline.OfflineConfig, args, prog="relive study offline", description=description)
    runs = len(offline.plan_behaviours(config)) + len(offline.plan(config))
    print(f"{runs} runs in {config.env}, {config.jobs} at a time.\nStudy: {config.directory}", flush=True)
    with study_spectator() as report:
        outcome = offline.run(config, report)
    if isinstance(outcome, signal.Signals):
        print(f"Ended by {outcome.name}; finished runs are kept. Call again to go on.")
        return 128 + outcome
    print(f"\n{outcome[0].read_text(encoding='utf-8').split(chr(10) * 2)[2]}\n")
    print("Written: " + ", ".join(map(str, outcome)))
    return 0


def _help() -> str:
    width = max(map(len, STUDIES))
    studies = "\n".join(f"  {name:<{width}}  {what}" for name, what in STUDIES.items())
    return (
        "usage: relive study NAME ...\n\n"
        "Experiments that answer a question about replay; each leaves a table and a figure.\n\n"
        f"studies:\n{studies}\n\n"
        "`relive study NAME --help` tells about one.\n\n"
        "examples:\n"
        "  relive study capacity CartPole-v1 --steps 10000 --seeds 3\n"
        "  relive study cliffwalk --seeds 3\n"
        "  relive study offline CartPole-v1"
    )
