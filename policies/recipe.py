"""A recipe: which parts make a policy, and how it is trained. Data, not code; saved as `recipe.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from .backbones.backbone import Backbone
from .codec import Absolute, ActionCodec, NormaliseMode
from .conditions.condition import ConditionPart
from .contexts.context import ContextPart
from .contexts.stack import Stack
from .encoders.vector import Encoder, EncoderPart
from .hooks.hook import Hook
from .objectives.objective import Objective
from .solvers.ddim import DDIM
from .solvers.solver import Solver


@dataclass(frozen=True)
class ParamGroup:
    """Weights that are trained otherwise than the rest. As text: `encoder.*:0.1`, or `encoder.*:0.1:0` with a
    weight decay of its own."""

    pattern: str
    """Of their names, with * and ?; the first group that matches a weight counts."""
    learning_rate: float = 1.0
    """Times the training's."""
    weight_decay: float | None = None
    """Instead of the training's; None: the same."""

    @staticmethod
    def of(value: Any) -> ParamGroup:
        """A group as it is, or from its text or its fields. ValueError says how it is written."""
        if isinstance(value, ParamGroup):
            return value
        if isinstance(value, str):
            pattern, *rest = value.split(":")
            names = ("learning_rate", "weight_decay", "more")
            value = {"pattern": pattern, **dict(zip(names, rest, strict=False))}
        try:
            decay = value.get("weight_decay")
            rate, decay = float(value.get("learning_rate", 1.0)), None if decay is None else float(decay)
            if unknown := set(value) - {"part", "pattern", "learning_rate", "weight_decay"}:
                raise ValueError(f"there is no {unknown.pop()}")
            return ParamGroup(str(value["pattern"]), rate, decay)
        except (AttributeError, KeyError, ValueError, TypeError) as error:
            raise ValueError(
                f"a parameter group is a pattern, a factor of the learning rate and perhaps a weight decay, "
                f"like 'encoder.*:0.1:0', not {value!r}"
            ) from error

    def __str__(self) -> str:
        decay = "" if self.weight_decay is None else f":{self.weight_decay}"
        return f"{self.pattern}:{self.learning_rate}{decay}"


@dataclass(frozen=True)
class Training:
    """AdamW, warm-up then cosine to zero, EMA with decay 1 - (1 + n)^-power (as diffusers' EMAModel)."""

    steps: int = 5000
    """Updates of the weights."""
    batch_size: int = 256
    """Windows in a batch, of all processes together."""
    learning_rate: float = 1e-4
    """Highest, at the end of the warm-up."""
    optimiser: Literal["adamw", "adamw8bit"] = "adamw"
    """AdamW, or AdamW that keeps its two moments in 8 bits (Dettmers et al. 2022), by the package
    bitsandbytes: a quarter of their memory."""
    betas: tuple[float, float] = (0.95, 0.999)
    """AdamW's decay of its two moments."""
    weight_decay: float = 1e-6
    """AdamW's, of all weights."""
    warmup: int = 500
    """Steps over which the learning rate rises from zero."""
    grad_clip: float = 1.0
    """Largest norm of all gradients together."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    ema_power: float = 0.75
    """p of the decay 1 - (1 + n)^-p, at step n, of the moving average of the weights that is saved."""
    ema_max: float = 0.9999
    """Highest decay of that average."""
    checkpoint_every: int = 500
    """Steps between the states that --resume can go on from."""
    compile: bool = False
    """Compile the network by torch.compile; worth it for long trainings on a GPU."""
    recompute: bool = False
    """Keep of each block of the network what enters it, and compute its inside again for the gradients
    (gradient checkpointing): less memory, more time."""
    start: str = ""
    """Folder of a checkpoint to begin from, its weights and its statistics, or lerobot:FOLDER of an ACT or
    diffusion policy of LeRobot; empty: from random weights."""
    freeze: tuple[str, ...] = ()
    """Patterns, such as encoder.*, of the names of weights that stay as they are."""
    unfreeze: tuple[str, ...] = ()
    """Patterns of the names of weights that are trained although freeze or lora would leave them."""
    lora: tuple[str, ...] = ()
    """Patterns, such as net.*, of the names of modules (linear layers, convolutions, attention) that learn
    through low-rank adapters only; what else came from start stays as it is. The checkpoint holds the
    sums."""
    lora_rank: int = 16
    """Of the adapters: columns of one factor, rows of the other."""
    lora_alpha: float = 16.0
    """How much the adapters count: alpha / rank times their product."""
    lora_dropout: float = 0.0
    """Share of the inputs that an adapter does without in a step, 0 to below 1."""
    groups: tuple[ParamGroup, ...] = ()
    """Weights with a learning rate of their own, as PATTERN:FACTOR or PATTERN:FACTOR:WEIGHT_DECAY."""
    ema_skip: tuple[str, ...] = ()
    """Patterns of the names of weights that are saved as trained, not as their moving average."""
    cache_encodings: bool = False
    """Let the encoder, which must be frozen, see every frame once, and train on what it gave."""
    words: float = 0.0
    """Weight of the cross-entropy of words that a vision-language policy learns to write beside its actions,
    so that its language model keeps them (co-training); 0: none."""
    words_of: Literal["steps", "task"] = "steps"
    """Which words: the step under way, of episodes that are labelled with steps; or the task as it was
    recorded, of episodes that have other wordings, of which the policy is told one."""
    caps_temporal: float = 0.0
    """Weight of how far what is decided at one tick lies from what is at the next, squared (CAPS); try 0.1
    to 1. 0: not asked."""
    caps_spatial: float = 0.0
    """Weight of how far what is decided moves when the observed vectors are shaken, squared (CAPS); try 0.1
    to 1. 0: not asked."""
    caps_spread: float = 0.05
    """Deviation of that shaking, where vectors are scaled to [-1, 1]."""


@dataclass(frozen=True)
class Recipe:
    """A published method as a choice of parts. Times are in control ticks."""

    name: str
    """Under which `ulna recipes` lists it."""
    paper: str
    """Authors, year, title, arXiv number."""
    objective: Objective
    """What the network learns, and what its output means."""
    backbone: Backbone
    """The network that gives the chunk."""
    encoder: EncoderPart = Encoder()
    """What makes one vector of each observation."""
    context: ContextPart = Stack()
    """What the backbone is told of those vectors, and of the conditions."""
    conditions: tuple[ConditionPart, ...] = ()
    """What the policy is asked for, beside what it sees: words, goals, labels."""
    codec: ActionCodec = Absolute()
    """What an action is to the network, and how it is normalised."""
    solver: Solver = DDIM()
    """How a chunk gets from noise to data."""
    sampling_steps: int = 10
    """Steps of the solver for one chunk."""
    steering: tuple[Hook, ...] = ()
    """Hooks that act while sampling, in this order."""
    n_obs_steps: int = 2
    """Observations that the policy sees; the newest is now."""
    horizon: int = 16
    """Actions in the predicted chunk, the n_past_actions that lie before now among them."""
    n_past_actions: int = 0
    """Leading actions of the chunk that lie before now."""
    n_action_steps: int = 8
    """Actions executed of each chunk, by the slice decoder."""
    decoder: Literal["slice", "ensemble"] = "slice"
    """Execute the first n_action_steps of a chunk and ask again, or ask at every tick and average all chunks
    that reach it (ensemble)."""
    ensemble_decay: float = 0.01
    """Weights exp(-decay i) of that average, the oldest chunk heaviest."""
    normalise_state: NormaliseMode = "minmax"
    """Scale vectors that are observed to [-1, 1] by their range (minmax) or by their 1 % and 99 % quantiles,
    to mean 0 and deviation 1 (meanstd), or not."""
    loss_on_past: bool = True
    """Learn the past actions of a chunk, too."""
    mask_padding: bool = False
    """Leave actions beyond the ends of an episode out of the loss; else its first and last ones stand for
    them, and count. Those that their device doubted never do."""
    training: Training = Training()
    """How it is trained."""

    def __post_init__(self) -> None:
        ahead = self.horizon - self.n_past_actions
        if self.codec.needs_past and self.n_past_actions < 1:
            raise ValueError(
                f"{type(self.codec).__name__} needs the last command: set n_past_actions to at least 1"
            )
        if self.n_obs_steps < 1 or self.n_past_actions < 0:
            raise ValueError("n_obs_steps must be at least 1 and n_past_actions not negative")
        if not 1 <= self.n_action_steps <= ahead:
            raise ValueError(
                f"n_action_steps is {self.n_action_steps}, but a chunk of horizon {self.horizon} with "
                f"{self.n_past_actions} past actions has {ahead} actions ahead: choose 1..{ahead}"
            )
        for hook in self.steering:
            hook.require(self)

    @property
    def ticks_per_decision(self) -> int:
        """Control ticks from one decision to the next, by the decoder."""
        return 1 if self.decoder == "ensemble" else self.n_action_steps

    @property
    def needs_past(self) -> bool:
        """Whether requests must bring the actions sent before now."""
        wanted = self.codec.needs_past or any(hook.needs_past for hook in self.steering)
        return wanted and self.n_past_actions > 0
