"""The contract of a backbone: the network that turns a noisy chunk, its time and what was observed into what
the objective asks for. Legend: B batch, H horizon, A action dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from ..contexts.context import Context, Layers

Place = tuple[float, float]
"""Row and column in a picture, as shares of its height and width, above 0 and up to 1."""


@dataclass(frozen=True)
class Head:
    """What an objective needs of the network, and what a backbone offers."""

    output: Literal["chunk", "energy", "mixture", "codes", "tokens"] = "chunk"
    """A chunk `(B, H, A)`; its energy `(B,)`; several chunks `(B, C, H, A)` and the logits `(B, C)` of which;
    codes, see `backbones.codes.Coded`; or tokens that a language model writes, see
    `backbones.action_tokens.Writing`."""
    times: Literal[1, 2] = 1
    """One time; or two, s and t, as flow maps need."""
    forward_mode: bool = False
    """Derivatives along a direction (`torch.func.jvp`)."""
    second_order: bool = False
    """Derivatives of derivatives, as training through a gradient needs."""
    token_times: bool = False
    """A time for each action of the chunk, t `(B, H)`."""
    latent: int = 0
    """Width of a latent by which the network tells demonstrations of one observation apart. In training it is
    made of the chunk that `Context.shown` holds, and `Output.extras` has its divergence from a standard
    normal as `kl`; else it is 0. 0: there is none."""
    words: bool = False
    """Beside its output, what a language model writes of the same context, see
    `backbones.insulated.InsulatedNet`."""


@dataclass(frozen=True)
class Sizes:
    """What a network must fit."""

    action_dim: int
    """Elements of an action as the network sees it."""
    horizon: int
    """Actions in a chunk."""
    token_width: int
    """Last dimension of `Context.tokens`."""
    pooled_width: int
    """Last dimension of `Context.pooled`."""
    tokens: int = 64
    """Most tokens that a context can have."""
    n_past_actions: int = 0
    """Leading actions of the chunk that lie before now."""
    places: tuple[Place | None, ...] = (None,)
    """Of each token of an observation step, in their order; None for one that is of no place in a picture.
    The last tokens of a context are those of its steps, the newest step last."""
    layers: Layers | None = None
    """Whose keys and values the tokens are; None: they are no layers'."""
    steps: int = 1
    """Observation steps: the pooled context is the conditions, then the tokens of each step, where it is
    `Stack`'s; a memory comes after those."""
    language: nn.Module | None = None
    """The encoder's language model, for a network that has it go on from those; its weights stay the
    encoder's."""
    conditions: int = 0
    """How many conditions there are, each as wide as a token in the pooled context."""


@dataclass(frozen=True)
class Output:
    """All that a network says at once, for training. chunk: `(B, H, A)`. views: other chunks that have the
    same target, each with the mask `(H,)` of the actions that it is about, as (chunk, mask). extras: losses
    of the network's own, scalars by name, weighted. weights: `(B, V, H)`, how much of each view is in the
    chunk, where it is their mixture; they sum to 1 over the views."""

    chunk: Tensor
    views: tuple[tuple[Tensor, Tensor], ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None


class Backbone(Protocol):
    """A frozen dataclass whose fields are the settings of the network that `build` makes."""

    def build(self, sizes: Sizes, head: Head) -> nn.Module:
        """A network `(x (B, H, A), s (B,), t (B,), context: Context) -> (B, H, A)`, or what `head.output`
        says; s = t unless `head.times` is 2. It may also have `outputs`, with the same arguments, giving an
        `Output`, and `evaluations`, how many passes through a whole network one call is, where it is not 1.
        ValueError says what does not fit, such as a horizon that the network cannot have, or a head
        (see `require_head`)."""
        ...


def require_head(backbone: object, needs: Head, offers: Head) -> None:
    """ValueError unless `offers` has all that is needed. offers.output is the one output that the backbone
    has."""
    name = type(backbone).__name__
    if needs.output != offers.output:
        wrapper = {"energy": "Energy", "mixture": "Mixture", "codes": "Codes"}.get(needs.output)
        hint = f": wrap it, --backbone {wrapper}" if wrapper else ""
        hint = ": use --backbone ActionTokens or FAST" if needs.output == "tokens" else hint
        raise ValueError(
            f"the objective needs a backbone that gives {_a(needs.output)}, and {name} gives "
            f"{_a(offers.output)}{hint}"
        )
    if needs.times > offers.times:
        raise ValueError(f"the objective needs a backbone of two times, and {name} is told one")
    for what, word in (("forward_mode", "forward-mode"), ("second_order", "second-order")):
        if getattr(needs, what) and not getattr(offers, what):
            raise ValueError(f"the objective needs {word} derivatives of the network, and {name} has none")
    if needs.token_times and not offers.token_times:
        raise ValueError(
            f"the objective needs a backbone that is told a time for each action, and {name} is told one for "
            "all: wrap it, --backbone TokenTimes"
        )
    if needs.words and not offers.words:
        raise ValueError(
            f"the objective needs a backbone whose language model writes, too, and that of {name} does not: "
            "wrap it, --backbone Insulated"
        )
    if needs.latent and not offers.latent:
        raise ValueError(
            f"the objective needs a backbone with a latent, and {name} has none: wrap it, --backbone Latent"
        )


def outputs(net: nn.Module, x_BHA: Tensor, s: Tensor, t: Tensor, context: Context) -> Output:
    """All that the network says, whether it has views and extras or only a chunk."""
    own: Any = getattr(net, "outputs", None)
    return own(x_BHA, s, t, context) if own else Output(net(x_BHA, s, t, context))


def _a(output: str) -> str:
    if output in ("codes", "tokens"):
        return output
    return f"an {output}" if output[0] in "aeiou" else f"a {output}"
