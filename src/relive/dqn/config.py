"""What an agent is and what a run is, as frozen data.

`TrainConfig` is the whole of a run: it is what the command line edits, what a preset is, and what `config.json` in a
run's directory holds. The docstring below each field is the help text of the command line.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from relive.errors import ConfigError

NetworkName = Literal["auto", "mlp", "nature", "minatar"]
SamplerName = Literal["uniform", "prioritized", "rank-based"]


def _require(ok: bool, subject: str, expected: str, got: object) -> None:
    """Refuse a setting: `subject: expected X, got Y.`"""
    if not ok:
        raise ConfigError(f"{subject}: expected {expected}, got {got!r}.")


def _require_int(subject: str, value: object, least: int) -> None:
    _require(
        isinstance(value, int) and not isinstance(value, bool) and value >= least,
        subject,
        f"an integer >= {least}",
        value,
    )


def _require_unit(subject: str, value: float) -> None:
    _require(0.0 <= value <= 1.0, subject, "a number in [0, 1]", value)


def _require_positive(subject: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, subject, "a finite number > 0", value)


@dataclass(frozen=True)
class AgentConfig:
    """The learner: its network, its targets, its optimiser.

    Raises:
        ConfigError: a value outside its range.

    Papers: Mnih et al. 2015 (DQN); van Hasselt et al. 2016 (double, arXiv:1509.06461); Wang et al. 2016 (dueling,
    arXiv:1511.06581); Hessel et al. 2018 (n-step in DQN, arXiv:1710.02298); Lillicrap et al. 2016 (soft target);
    Kumar et al. 2020 (conservative Q-learning, arXiv:2006.04779).
    """

    network: NetworkName = "auto"
    """What reads the observation: mlp (vectors), nature (frames), minatar (small grids); auto chooses by its shape."""
    hidden: tuple[int, ...] | None = None
    """Widths of the fully connected hidden layers. None: the network's own (mlp 256 256, nature 512, minatar 128)."""
    scale_inputs: bool = False
    """Divide each feature of an observation by its bound in the space, where that is finite (always done for uint8)."""
    double: bool = False
    """Choose the next action by the online network, value it by the target network (van Hasselt et al. 2016)."""
    dueling: bool = False
    """Split the last hidden layer into a value and an advantage stream of its width each (Wang et al. 2016)."""
    n_step: int = 1
    """Steps of reward in a target."""
    gamma: float = 0.99
    """Discount per step."""
    batch_size: int = 64
    """Transitions per update."""
    learning_rate: float = 1e-3
    """Adam's step size."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    loss: Literal["squared", "huber"] = "squared"
    """Per transition: squared, half the squared TD error; huber, linear beyond an error of 1."""
    max_grad_norm: float | None = 10.0
    """Scale the gradient down to this Euclidean norm where it is longer. None: never."""
    target: Literal["periodic", "soft"] = "periodic"
    """The target network: a copy every `target_every` updates, or moved by `tau` to the online one every update."""
    target_every: int = 500
    """Updates between two copies (target=periodic)."""
    tau: float = 0.005
    """Share of the way that a soft target moves at each update (target=soft)."""
    cql_alpha: float = 0.0
    """Weight of the conservative term, which holds down the values of actions the data lacks (Kumar et al. 2020)."""

    def __post_init__(self) -> None:
        """Check every range."""
        networks = get_args(NetworkName)
        _require(self.network in networks, "network", f"one of {', '.join(networks)}", self.network)
        if self.hidden is not None:
            _require(len(self.hidden) > 0, "hidden", "at least one width, or None", self.hidden)
            for width in self.hidden:
                _require_int("hidden", width, 1)
        _require_int("n_step", self.n_step, 1)
        _require_unit("gamma", self.gamma)
        _require_int("batch_size", self.batch_size, 1)
        _require_positive("learning_rate", self.learning_rate)
        _require_positive("adam_eps", self.adam_eps)
        _require(self.loss in ("squared", "huber"), "loss", "squared or huber", self.loss)
        if self.max_grad_norm is not None:
            _require_positive("max_grad_norm", self.max_grad_norm)
        _require(self.target in ("periodic", "soft"), "target", "periodic or soft", self.target)
        _require_int("target_every", self.target_every, 1)
        _require(0.0 < self.tau <= 1.0, "tau", "a number in (0, 1]", self.tau)
        ok = math.isfinite(self.cql_alpha) and self.cql_alpha >= 0
        _require(ok, "cql_alpha", "a finite number >= 0", self.cql_alpha)


@dataclass(frozen=True)
class TrainConfig:
    """A training run, whole: with the same versions and one thread, the same config gives the same run.

    Not with `actors`: the order in which their steps come is a matter of timing.

    Raises:
        ConfigError: a value outside its range, or two that contradict each other.

    Papers: Schaul et al. 2016 (arXiv:1511.05952), section 3.3 (the two prioritized samplers) and 3.4 (importance
    weights, beta annealed to 1); Zhang & Sutton 2017 (arXiv:1712.01275; `newest`). Deviations from the former: the
    learning rate is that of uniform replay (the paper divides it by 4, section 4); |delta| is not clipped to 1 before
    it becomes a priority; weights are divided by the largest of the batch. Ball et al. 2023 (arXiv:2302.02948), section
    4.1 (`offline_share`).
    """

    env: str
    """Gymnasium id of the environment."""
    steps: int = 100_000
    """Environment steps to train for, summed over the environments."""
    num_envs: int = 1
    """Environments stepped together, by each actor where there are any."""
    actors: int = 0
    """Processes that act while this one learns, each at an epsilon of its own; 0: none, this one does both."""
    actor_epsilon: float = 0.4
    """Probability of a random action of the first actor once learning has started (actors; Horgan et al. 2018)."""
    actor_alpha: float = 7.0
    """The last actor's is actor_epsilon^(1 + actor_alpha), the others' lie in between on a geometric scale (actors)."""
    publish_every: int = 32
    """Updates between two times that the actors are given the newest weights (actors)."""
    ray: str | None = None
    """Act and keep transitions on the hosts of a Ray: its HOST:PORT, `auto` for the one here, `local` for a new one.
    With checkpoints its hosts must share the run's directory. None: actors are processes of this host."""
    shards: int = 1
    """Parts of the buffer, each in a process on one of Ray's hosts (ray)."""
    stack: int = 1
    """Observations stacked into one, assembled by the buffer (frames: 4)."""
    capacity: int = 100_000
    """Transitions that the buffer holds; a multiple of num_envs (times actors), the default is rounded down to one."""
    sampler: SamplerName = "uniform"
    """How batches are drawn: uniformly, by priority |TD error|, or by its rank (Schaul et al. 2016)."""
    priority_alpha: float = 0.6
    """How much priorities matter: 0 is uniform. The paper has 0.6 for prioritized, 0.7 for rank-based."""
    priority_beta: float = 0.4
    """Exponent of the importance weights at the first step; rises in a straight line to 1 at step `steps`."""
    priority_eps: float = 1e-6
    """Added to |TD error|, so that no transition is out of reach (sampler=prioritized)."""
    newest: int = 0
    """Newest transitions in every batch, whatever the sampler: 1 is combined experience replay."""
    offline: str | None = None
    """Dataset to learn from, a file or directory; alone, or before and beside the environment (online)."""
    offline_updates: int = 20_000
    """Updates from the dataset alone, in passes over it; `eval_every` then counts updates (offline)."""
    online: bool = False
    """After those updates act in the environment for `steps` steps, at epsilon_end from the first (offline)."""
    offline_share: float = 0.5
    """Share of each batch that comes from the dataset while the agent acts (online)."""
    learning_starts: int = 1_000
    """Environment steps before the first update; actions are random until then."""
    replay_ratio: float = 1.0
    """Updates per environment step: 0.25 is one in four steps, 2 two a step."""
    update_every: int = 1
    """Environment steps between two rounds of updates; a round makes up all that the replay ratio owes."""
    epsilon_start: float = 1.0
    """Probability of a random action at the first step. With actors see actor_epsilon instead."""
    epsilon_end: float = 0.05
    """The same once the decay is over."""
    epsilon_fraction: float = 0.1
    """Share of `steps` over which epsilon falls, in a straight line."""
    eval_every: int = 5_000
    """Environment steps between two evaluations of the greedy policy."""
    eval_episodes: int = 10
    """Episodes of each such evaluation; the same seeds every time."""
    final_eval_episodes: int = 100
    """Episodes of the evaluation at the end, with seeds that no evaluation before has used."""
    keep: Literal["best", "last"] = "best"
    """Which weights the run ends with: those of its best evaluation (the newest of equals), or the last ones."""
    stop_return: float | None = None
    """Stop before `steps` once an evaluation's mean return reaches this. None: train all steps."""
    checkpoint_every: int | None = None
    """Environment steps between two checkpoints, at which every episode is truncated. None: none are made.
    Updates from a dataset alone count too, before the steps (offline).
    With actors none is truncated, and a resumed run goes on from there, but not bit for bit."""
    threshold: float | None = None
    """Mean return that the final evaluation must reach for the run to count as a success. None: any."""
    seed: int = 0
    """Seed of everything: environments, network, exploration, buffer."""
    device: str = "cpu"
    """Device of the networks, as PyTorch names it: cpu, cuda, cuda:1."""
    threads: int = 1
    """Threads PyTorch may use on the CPU. Small networks are fastest with one."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """The learner."""

    def __post_init__(self) -> None:
        """Check every range, and the settings against each other."""
        _require(bool(self.env), "env", "the id of an environment", self.env)
        counts = ("steps", "num_envs", "stack", "capacity", "update_every", "eval_every", "eval_episodes")
        for name in (*counts, "final_eval_episodes", "threads"):
            _require_int(name, getattr(self, name), 1)
        if self.checkpoint_every is not None:
            _require_int("checkpoint_every", self.checkpoint_every, 1)
        _require_int("learning_starts", self.learning_starts, 0)
        _require_int("seed", self.seed, 0)
        _require_positive("replay_ratio", self.replay_ratio)
        samplers = get_args(SamplerName)
        _require(self.sampler in samplers, "sampler", f"one of {', '.join(samplers)}", self.sampler)
        _require(0.0 <= self.priority_alpha <= 100.0, "priority_alpha", "a number in [0, 100]", self.priority_alpha)
        _require_unit("priority_beta", self.priority_beta)
        _require_positive("priority_eps", self.priority_eps)
        _require_int("newest", self.newest, 0)
        batch_size = self.agent.batch_size
        _require(self.newest <= batch_size, "newest", f"at most batch_size={batch_size}", self.newest)
        for name in ("epsilon_start", "epsilon_end", "epsilon_fraction"):
            _require_unit(name, getattr(self, name))
        self._check_offline()
        self._check_use()
        for name in ("stop_return", "threshold"):
            value = getattr(self, name)
            _require(value is None or not math.isnan(value), name, "a number or None", value)
        _require(self.keep in ("best", "last"), "keep", "best or last", self.keep)
        self._check_actors()

    def _check_actors(self) -> None:
        """Check what has to do with actors."""
        _require_int("actors", self.actors, 0)
        _require_unit("actor_epsilon", self.actor_epsilon)
        ok = math.isfinite(self.actor_alpha) and self.actor_alpha >= 0
        _require(ok, "actor_alpha", "a finite number >= 0", self.actor_alpha)
        _require_int("publish_every", self.publish_every, 1)
        below = self.capacity // self.lanes * self.lanes
        if self.actors:
            nearest = f"{below} or {below + self.lanes}" if below else f"{self.lanes}"
            what = f"a multiple of actors={self.actors} times num_envs={self.num_envs}: {nearest}"
            without = "none with actors: a run with a dataset acts in its own process"
            _require(self.offline is None, "offline", without, self.offline)
            self._check_ray()
        else:
            _require(self.ray is None, "actors", "at least 1 with ray", self.actors)
            what = f"a multiple of num_envs={self.num_envs}"
        _require(self.capacity % self.lanes == 0, "capacity", what, self.capacity)

    def _check_ray(self) -> None:
        """Check what has to do with Ray, where there are actors."""
        _require_int("shards", self.shards, 1)
        if self.ray is None:
            return
        ok = self.ray in ("local", "auto") or re.fullmatch(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}", self.ray)
        _require(bool(ok), "ray", "HOST:PORT of its head, auto or local", self.ray)
        most = min(self.lanes, 126)
        what = f"at most {most}: each of the {self.lanes} environments (actors times num_envs) writes to one"
        _require(self.shards <= most, "shards", what, self.shards)
        without = "uniform or prioritized with ray: one shard does not know the ranks of another's transitions"
        _require(self.sampler in ("uniform", "prioritized"), "sampler", without, self.sampler)
        _require(self.newest == 0, "newest", "0 with ray: one shard does not know what is newest of all", self.newest)

    def _check_offline(self) -> None:
        """Check what has to do with datasets."""
        _require_int("offline_updates", self.offline_updates, 0)
        _require(0.0 <= self.offline_share < 1.0, "offline_share", "a number in [0, 1)", self.offline_share)
        if self.offline is None:
            _require(not self.online, "offline", "a dataset, as online is set", self.offline)
            return
        _require(bool(self.offline), "offline", "the path of a dataset", self.offline)
        if self.online:
            least = "a number above 0, or offline_updates: else nothing is learned from the dataset"
            _require(self.offline_updates > 0 or self.offline_share > 0, "offline_share", least, self.offline_share)
        else:
            _require_int("offline_updates", self.offline_updates, 1)
            where = "where nothing but the dataset is learned from, in passes over it"
            _require(self.sampler == "uniform", "sampler", f"uniform {where}", self.sampler)
            _require(self.newest == 0, "newest", f"0 {where}", self.newest)

    def _check_use(self) -> None:
        """Refuse settings that would change nothing, as something else is missing."""
        priorities = f"while sampler={self.sampler}"
        conditions = {
            "priority_alpha": (self.sampler != "uniform", priorities),
            "priority_beta": (self.sampler != "uniform", priorities),
            "priority_eps": (self.sampler == "prioritized", priorities),
            "actor_epsilon": (self.actors > 0, "without actors"),
            "actor_alpha": (self.actors > 0, "without actors"),
            "publish_every": (self.actors > 0, "without actors"),
            "shards": (self.ray is not None, "without --ray"),
            "offline_updates": (self.offline is not None, "without a dataset (offline)"),
            "offline_share": (self.online, "where no steps follow the dataset (offline with online)"),
        }
        defaults = {one.name: one.default for one in fields(self)}
        for name, (used, otherwise) in conditions.items():
            value, default = getattr(self, name), defaults[name]
            _require(used or value == default, name, f"{default:g}, its default, {otherwise}", value)

    @property
    def lanes(self) -> int:
        """Environments in all, one a lane of the buffer."""
        return max(1, self.actors) * self.num_envs

    @property
    def updates_before(self) -> int:
        """Updates from the dataset alone, before the first step."""
        return 0 if self.offline is None else self.offline_updates

    @property
    def length(self) -> int:
        """The whole run: updates from the dataset alone, then environment steps."""
        return self.updates_before + (self.steps if self.offline is None or self.online else 0)

    def to_dict(self) -> dict[str, Any]:
        """The config as plain JSON values; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TrainConfig":
        """The config that `to_dict` (or a `config.json` made from it) describes.

        Raises:
            ConfigError: an unknown name, or a value that the config refuses.
        """
        agent = dict(data.get("agent", {}))
        if agent.get("hidden") is not None:
            agent["hidden"] = tuple(agent["hidden"])
        try:
            return cls(**{**data, "agent": AgentConfig(**agent)})
        except TypeError as error:
            raise ConfigError(f"config: expected the fields of TrainConfig, got others ({error}).") from None
