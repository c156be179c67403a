"""Q networks: observations in, one value per action out.

Every network has the same parts: the observation as floats, convolutions where it is an image, fully connected layers,
and a plain or a dueling head. All parameters are views of one flat vector and all gradients views of another, so that
the optimiser, clipping and the target network are each one call on one tensor.

The fully connected part carries its own derivative, written out: on small networks autograd's bookkeeping takes longer
than the matrix products. Convolutions are bound by arithmetic and go through autograd.

Papers: Mnih et al. 2015 (the Nature network); Young & Tian 2019 (MinAtar, arXiv:1903.03176); Wang et al. 2016 (dueling,
arXiv:1511.06581).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Discrete, MultiBinary
from torch import Tensor
from torch.nn import functional

from relive.dqn.config import AgentConfig
from relive.errors import ConfigError


class Conv(NamedTuple):
    """A convolution without padding, followed by a ReLU."""

    channels: int
    kernel: int
    stride: int


_CONVS = {
    "mlp": (),
    "nature": (Conv(32, 8, 4), Conv(64, 4, 2), Conv(64, 3, 1)),
    "minatar": (Conv(16, 3, 1),),
}
_HIDDEN = {"mlp": (256, 256), "nature": (512,), "minatar": (128,)}
_SMALLEST = {"nature": 36, "minatar": 3}  # pixels a side; below, a convolution has nothing left to read


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is, resolved from the spaces and the config."""

    frame: tuple[int, ...]
    """Shape of one observation, without a stack axis."""
    stack: int
    """Observations stacked; where > 1, an axis of this size precedes `frame`."""
    scale: tuple[float, ...]
    """What observations are divided by: one number a feature, or a single one for all; empty for nothing."""
    one_hot: int | None
    """Number of values of a Discrete observation, counted from `first`; None for every other space."""
    first: int
    convs: tuple[Conv, ...]
    hidden: tuple[int, ...]
    dueling: bool
    num_actions: int


def network_spec(
    observation_space: Space[Any], action_space: Space[Any], config: AgentConfig, stack: int = 1
) -> NetworkSpec:
    """Choose the network for these spaces.

    Args:
        observation_space: of one environment, without a stack axis.
        action_space: of one environment.
        config: `network`, `hidden`, `dueling` and `scale_inputs` are read.
        stack: observations stacked by the buffer's view.

    Raises:
        ConfigError: an action space that is not Discrete, an observation space that no network reads, or an image
            asked for where there is none.
    """
    if not isinstance(action_space, Discrete):
        raise ConfigError(
            f"action_space: expected Discrete, got {action_space}. DQN compares a finite number of actions."
        )
    if not isinstance(observation_space, Box | MultiBinary | Discrete):
        raise ConfigError(
            f"observation_space: expected Box, MultiBinary or Discrete, got {observation_space}. "
            "Wrap the environment in gymnasium.wrappers.FlattenObservation."
        )
    frame = tuple(observation_space.shape or ())
    name = _choose(frame) if config.network == "auto" else config.network
    if name != "mlp" and not (2 <= len(frame) <= 3 and min(_image(frame)[1:]) >= _SMALLEST[name]):
        raise ConfigError(
            f"network: expected images of at least {_SMALLEST[name]} x {_SMALLEST[name]} for {name}, got observations "
            f"of shape {frame}. Use network=mlp."
        )
    discrete = observation_space if isinstance(observation_space, Discrete) else None
    return NetworkSpec(
        frame=frame,
        stack=stack,
        scale=_scale(observation_space, config.scale_inputs),
        one_hot=int(discrete.n) if discrete else None,
        first=int(discrete.start) if discrete else 0,
        convs=_CONVS[name],
        hidden=config.hidden or _HIDDEN[name],
        dueling=config.dueling,
        num_actions=int(action_space.n),
    )


def _scale(space: Space[Any], scale_inputs: bool) -> tuple[float, ...]:
    """The bounds that observations are divided by; 1 where a feature has none."""
    if not isinstance(space, Box):
        return ()
    bound = np.maximum(np.abs(space.low.astype(np.float64)), np.abs(space.high.astype(np.float64)))
    if space.dtype == np.uint8:
        return (float(bound.max()) or 1.0,)
    if not scale_inputs:
        return ()
    # Spaces without bounds are written with infinities or with the largest float of their dtype.
    return tuple(np.where((bound > 0) & (bound < 1e30), bound, 1.0).ravel().tolist())


def _choose(frame: tuple[int, ...]) -> Literal["mlp", "nature", "minatar"]:
    if len(frame) <= 1:
        return "mlp"
    if len(frame) > 3:
        raise ConfigError(
            f"observation_space: expected at most 3 axes, got shape {frame}. Use network=mlp, which flattens."
        )
    return "nature" if min(_image(frame)[1:]) >= _SMALLEST["nature"] else "minatar"


def _channels_last(frame: tuple[int, ...]) -> bool:
    """Whether three axes are [H, W, C] rather than [C, H, W]: the channels are the shorter end."""
    return len(frame) == 3 and frame[2] < frame[0]


def _image(frame: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of one frame."""
    if len(frame) == 2:
        return 1, frame[0], frame[1]
    return (frame[2], frame[0], frame[1]) if _channels_last(frame) else (frame[0], frame[1], frame[2])


class Layer(NamedTuple):
    """The parameters of one layer and their gradients, all views of two flat vectors."""

    weight: Tensor
    weight_t: Tensor
    """`weight` with its last two axes swapped."""
    bias: Tensor
    grad_weight: Tensor
    grad_bias: Tensor


class Tape(NamedTuple):
    """What `backward` needs of a forward pass."""

    leaves: list[Tensor]
    """The convolutions' weights and biases as autograd saw them; empty for vectors."""
    features: Tensor
    """What the fully connected layers read, [B, F]; carries autograd's graph of the convolutions."""
    activations: list[Tensor]
    """`features`, then the output of each hidden layer, [B, width]."""


def aggregate(value: Tensor, advantage: Tensor) -> Tensor:
    """Dueling: Q = V + A - mean over the actions of A (Wang et al. 2016, equation 9). [B, 1], [B, A] -> [B, A]."""
    return value + (advantage - advantage.mean(1, keepdim=True))


def aggregate_backward(grad_q: Tensor) -> tuple[Tensor, Tensor]:
    """The derivative of `aggregate`: d loss / d V [B, 1] and d loss / d A [B, A] from d loss / d Q [B, A]."""
    return grad_q.sum(1, keepdim=True), grad_q - grad_q.mean(1, keepdim=True)


class QNetwork:
    """The network of a spec, with its derivative.

    A dueling network's last hidden layer is two streams side by side: the value reads its first half, the advantages
    its second.

    Attributes:
        params: [P], every parameter.
        gradient: [P], d loss / d params as the last `backward` left it.
        named: views of `params` by name: `conv0.weight` [out, in, k, k], `hidden0.weight` [in, out] and so on, then
            `q.weight` [in, A], or `value.weight` [in, 1] and `advantage.weight` [in, A]; a `.bias` beside each.
    """

    def __init__(
        self,
        spec: NetworkSpec,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw all parameters from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as PyTorch's own layers do (CPU generator)."""
        self.spec = spec
        drawn: dict[str, Tensor] = {}
        for name, shape, fan_in in _layout(spec):
            bound = fan_in**-0.5
            drawn[name] = torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
        self.params = torch.cat([tensor.flatten() for tensor in drawn.values()]).to(device)  # f[P]
        self.gradient = torch.zeros_like(self.params)  # f[P]
        scale = torch.tensor(spec.scale, dtype=dtype, device=device)  # f[1], or one a feature
        self._scale = scale.view(spec.frame if len(scale) > 1 else ()) if spec.scale else None
        self.named = _views(self.params, drawn)
        grads = _views(self.gradient, drawn)
        layers = {
            name: Layer(
                weight=self.named[f"{name}.weight"],
                weight_t=self.named[f"{name}.weight"].mT,
                bias=self.named[f"{name}.bias"],
                grad_weight=grads[f"{name}.weight"],
                grad_bias=grads[f"{name}.bias"],
            )
            for name in dict.fromkeys(name.split(".")[0] for name in drawn)
        }
        self._convs = [layer for name, layer in layers.items() if name.startswith("conv")]
        self._hidden = [layer for name, layer in layers.items() if name.startswith("hidden")]
        self._heads = [layers[name] for name in (("value", "advantage") if spec.dueling else ("q",))]

    def __call__(self, obs: Tensor) -> Tensor:
        """Q [B, A] of observations as the buffer returns them, [B, (stack,) *frame]; records nothing."""
        features = self._features(obs, [tensor for conv in self._convs for tensor in (conv.weight, conv.bias)])
        return self._head(self._activations(features)[-1])

    def forward(self, obs: Tensor) -> tuple[Tensor, Tape]:
        """Q [B, A], and what `backward` needs."""
        leaves: list[Tensor] = []
        if not self._convs:
            features = self._features(obs, [])
        else:
            with torch.inference_mode(False), torch.enable_grad():
                leaves += [t.detach().requires_grad_() for conv in self._convs for t in (conv.weight, conv.bias)]
                features = self._features(obs, leaves)
        activations = self._activations(features.detach() if leaves else features)
        return self._head(activations[-1]), Tape(leaves, features, activations)

    def backward(self, tape: Tape, grad_q: Tensor) -> None:
        """Write d loss / d params over `gradient`, given d loss / d Q [B, A]."""
        grad = self._head_backward(tape.activations[-1], grad_q)
        for i in reversed(range(len(self._hidden))):
            layer, below, above = self._hidden[i], tape.activations[i], tape.activations[i + 1]
            # The ReLU's slope from its output, in one pass; `grad * (above > 0)` takes five times as long.
            grad = torch.ops.aten.threshold_backward(grad, above, 0)  # f[B, width]
            _linear_backward(layer, below, grad)
            if i > 0 or tape.leaves:
                grad = torch.mm(grad, layer.weight_t)  # f[B, width below]
        if tape.leaves:
            grads = torch.autograd.grad(tape.features, tape.leaves, grad)
            slots = [tensor for conv in self._convs for tensor in (conv.grad_weight, conv.grad_bias)]
            for slot, value in zip(slots, grads, strict=True):
                slot.copy_(value)

    def _features(self, obs: Tensor, conv_params: list[Tensor]) -> Tensor:
        """What the fully connected layers read, [B, F]."""
        spec = self.spec
        x = obs if spec.one_hot is None else functional.one_hot(obs.long() - spec.first, spec.one_hot)
        x = x.to(self.params.dtype)
        if self._scale is not None:
            x = x / self._scale
        if spec.convs:
            if _channels_last(spec.frame):
                x = x.movedim(-1, -3)
            x = x.reshape(len(x), -1, *_image(spec.frame)[1:])  # f[B, stack * C, H, W]
            for i, conv in enumerate(spec.convs):
                x = functional.conv2d(x, conv_params[2 * i], conv_params[2 * i + 1], stride=conv.stride).relu()
        return x.reshape(len(x), -1)

    def _activations(self, features: Tensor) -> list[Tensor]:
        """`features`, then the output of each hidden layer."""
        activations = [features]
        for layer in self._hidden:
            activations.append(torch.addmm(layer.bias, activations[-1], layer.weight).relu_())
        return activations

    def _head(self, x: Tensor) -> Tensor:
        """Q [B, A] from the output of the last hidden layer."""
        parts = zip(self._heads, self._streams(x), strict=True)
        out = [torch.addmm(head.bias, part, head.weight) for head, part in parts]
        return aggregate(*out) if self.spec.dueling else out[0]

    def _head_backward(self, x: Tensor, grad_q: Tensor) -> Tensor:
        """Write the head's gradients; returns d loss / d x, shaped as `x`."""
        below = []
        grads = aggregate_backward(grad_q) if self.spec.dueling else (grad_q,)
        for head, part, grad in zip(self._heads, self._streams(x), grads, strict=True):
            _linear_backward(head, part, grad)
            below.append(torch.mm(grad, head.weight_t))
        return torch.cat(below, 1) if self.spec.dueling else below[0]

    def _streams(self, x: Tensor) -> tuple[Tensor, ...]:
        """The share of the last hidden layer's output that each head reads."""
        return x.chunk(2, 1) if self.spec.dueling else (x,)


def _linear_backward(layer: Layer, x: Tensor, grad: Tensor) -> None:
    """Write the gradients of `x @ weight + bias`, given d loss / d output [B, out]."""
    torch.mm(x.t(), grad, out=layer.grad_weight)
    torch.sum(grad, 0, out=layer.grad_bias)


def _layout(spec: NetworkSpec) -> list[tuple[str, tuple[int, ...], int]]:
    """Name, shape and fan-in of every parameter, in the order of the flat vector."""
    layout: list[tuple[str, tuple[int, ...], int]] = []

    def add(name: str, weight: tuple[int, ...], out: int) -> None:
        fan_in = math.prod(weight) // out
        layout.extend([(f"{name}.weight", weight, fan_in), (f"{name}.bias", (out,), fan_in)])

    width = spec.stack * math.prod(spec.frame) * (spec.one_hot or 1)
    if spec.convs:
        channels, height, length = _image(spec.frame)
        channels *= spec.stack
        for i, conv in enumerate(spec.convs):
            add(f"conv{i}", (conv.channels, channels, conv.kernel, conv.kernel), conv.channels)
            channels = conv.channels
            height, length = ((side - conv.kernel) // conv.stride + 1 for side in (height, length))
        width = channels * height * length
    last = len(spec.hidden) - 1
    for i, out in enumerate(spec.hidden):
        wide = 2 * out if spec.dueling and i == last else out
        add(f"hidden{i}", (width, wide), wide)
        width = wide
    width = spec.hidden[-1]
    for name, out in (("value", 1), ("advantage", spec.num_actions)) if spec.dueling else (("q", spec.num_actions),):
        add(name, (width, out), out)
    return layout


def _views(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """`flat` cut into tensors of these names and shapes, in their order, sharing its memory."""
    parts = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {name: part.view(tensor.shape) for (name, tensor), part in zip(like.items(), parts, strict=True)}
