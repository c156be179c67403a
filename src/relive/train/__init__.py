"""Training runs: the loop, its evaluations, and the directory a run leaves behind. Needs the extra `train`."""

from relive.train.evaluate import Evaluation, evaluate, film
from relive.train.loop import Progress
from relive.train.plot import plot_runs
from relive.train.rundir import load_config, load_policy, new_run_dir
from relive.train.runs import resume, train
from relive.train.summary import Result

__all__ = [
    "Evaluation",
    "Progress",
    "Result",
    "evaluate",
    "film",
    "load_config",
    "load_policy",
    "new_run_dir",
    "plot_runs",
    "resume",
    "train",
]
