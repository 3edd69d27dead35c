"""The composition: encoder, conditions, context, backbone, objective, codec and solver as one module that
trains and acts.

Legend: B batch, T = n_obs_steps, K links of a chain, H horizon, A action dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..datasets.features import ACTION, PAST, Features, image_keys, is_image, state_keys
from ..datasets.reading.extras import TARGET
from ..datasets.stats import Stats
from .backbones.backbone import Sizes
from .caps import Heard, smoothness, wants
from .codec import Affine, NormaliseMode, input_normaliser
from .conditions.condition import (
    ConditionNet,
    condition_features,
    feature_of,
    features_for,
    require_dropped,
)
from .conditions.gathered import carried, gathered, joined
from .contexts.context import Conditions, Context
from .cotraining import written
from .hooks.hook import Hook
from .objectives.objective import masked_mean
from .recipe import Recipe
from .request import TASK, Request
from .sampler import Sampled, sample
from .solvers.solver import Solver

ENCODING = "observation.encoding"  # what the encoder gave, in training batches


class Policy(nn.Module):
    """A recipe made real for the features and statistics of one dataset.

    Observations are `{key: (B, T, *shape)}` in their own units (images uint8 HWC), with what the conditions
    need beside them; actions `(B, H, A)` in theirs."""

    def __init__(self, recipe: Recipe, features: Features, stats: Mapping[str, Stats]) -> None:
        super().__init__()
        self.recipe, self.features, self.stats = recipe, dict(features), dict(stats)
        hidden = {k for c in recipe.conditions for k in c.hides(features)}
        self.encoded_keys = tuple(
            k for k in (*state_keys(features), *image_keys(features)) if k not in hidden
        )
        if not self.encoded_keys:
            raise ValueError("the features hold no observation: a policy needs a state or an image")
        of_part = [(c, features_for(c, recipe.conditions, self.features)) for c in recipe.conditions]
        self.condition_keys = tuple(dict.fromkeys(k for c, of in of_part for k in c.keys(of)))
        labels = [k for k in self.condition_keys if k in features and k not in self.encoded_keys]
        self.observation_keys = (*self.encoded_keys, *labels)
        self.conditions_needed = condition_features(recipe.conditions, features)
        self.conditions_optional = condition_features(recipe.conditions, features, optional=True)
        # commands that a condition is told are on the scale of the last one, which the encoder sees beside
        modes: dict[str, NormaliseMode] = {
            ACTION: getattr(recipe.codec, "normalise_last", recipe.normalise_state)
        }
        self.normalisers = nn.ModuleDict(
            {
                module_name(k): input_normaliser(stats[k], modes.get(k, recipe.normalise_state))
                for k in self._vectors()
            }
        )
        self.codec = recipe.codec.build(features, stats, recipe.n_past_actions)
        seen = {k: f for k, f in features.items() if k not in hidden}
        self.encoder = recipe.encoder.build(seen | recipe.codec.observes(features))
        width: int = self.encoder.width  # type: ignore[assignment]
        per_frame = getattr(self.encoder, "tokens_per_frame", 1)
        self.conditions = nn.ModuleList(c.build(of, self.encoder, width) for c, of in of_part)
        for part, condition in zip(recipe.conditions, self.conditions, strict=True):
            condition.register_parameter("nothing", nn.Parameter(torch.zeros(width)))
            if (kept := getattr(part, "kept", None)) is not None and isinstance(condition, ConditionNet):
                condition.use(other := Policy(*kept.parts()))
                other.content_hash = kept.content_hash
        n_tokens = sum(int(c.n_tokens) for c in self.conditions)  # type: ignore[arg-type]
        self.context_net = recipe.context.build(
            width, per_frame, recipe.n_obs_steps, len(self.conditions), n_tokens
        )
        self.context_net.use(self.encoder)
        sizes = Sizes(
            self.codec.width,
            recipe.horizon,
            self.context_net.token_width,
            self.context_net.pooled_width,
            self.context_net.tokens,
            recipe.n_past_actions,
            getattr(self.encoder, "places", (None,) * per_frame),
            self.context_net.layers,
            recipe.n_obs_steps,
            getattr(self.encoder, "language", None),
            len(self.conditions),
        )
        self.net = recipe.backbone.build(sizes, recipe.objective.needs)
        self.content_hash = ""  # set by loading a checkpoint

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def n_past_actions(self) -> int:
        return self.recipe.n_past_actions

    @property
    def memory_width(self) -> int:
        """Numbers that are carried from one decision of an episode to the next, by conditions and context."""
        return sum(c.memory_width for c in self._condition_nets()) + self.context_net.memory_width

    def encode(
        self,
        observation: Mapping[str, Any],
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
        drop: bool = False,
        seed: Any = None,
    ) -> Context:
        """What the backbone sees of an observation. Besides the observation keys it may hold `action.past`
        `(B, n_past_actions, A)`, and it holds what the conditions need.

        memory `(B, M)`: of the decision before; fresh `(B,)` bool: where it is to be forgotten, or `(L, B)`,
        for L decisions in a row whose rows are given one after the other (`ContextNet.along`). drop: tell the
        network none of its conditions. seed: of what conditions draw, one or B."""
        seen = self._seen(observation)
        z, extras = self._encoded(seen, observation)
        z_BTKD = z[:, :, None] if z.ndim == 3 else z
        links, told = 1, (seen, observation)
        if fresh is not None and fresh.ndim == 2 and self.context_net.told_once:
            links, first = len(fresh), slice(fresh.shape[1])
            told = _rows(seen, first), _rows(observation, first)
        ticks = self.recipe.ticks_per_decision
        more, own, memory = carried(self._condition_nets(), told[1], memory, ticks, seed, drop)
        conditions = self._conditions(*told, drop, more)
        if fresh is not None and fresh.ndim == 2:
            context = self.context_net.along(z_BTKD, conditions, fresh)
        else:
            context = self.context_net(z_BTKD, conditions, memory, fresh)
        task = None if conditions is None else conditions.task
        task = task if task is None or links == 1 else task.repeat(links)
        return dataclasses.replace(
            context,
            memory=joined([*own, context.memory]),
            present=self.codec.present(observation),
            task=task,
            reference=self._reference(conditions, observation),
            extras=extras,
        )

    def encodings(self, observation: Mapping[str, Any]) -> Tensor:
        """What the encoder makes of an observation, `(B, T, D)` or `(B, T, K, D)`. Where this was done
        before, an observation may hold it as `ENCODING`, in the place of its images."""
        return self.encoder(self._seen(observation))

    def _encoded(
        self, seen: Mapping[str, Any], observation: Mapping[str, Any]
    ) -> tuple[Tensor, Mapping[str, Tensor] | None]:
        """(what the encoder makes of it; what it adds to the loss where a batch holds what it learns
        from)."""
        if ENCODING in observation:
            return observation[ENCODING], None
        targets = {k.removeprefix(TARGET): v for k, v in observation.items() if k.startswith(TARGET)}
        if not targets:
            return self.encoder(seen), None
        learned: Callable[..., tuple[Tensor, dict[str, Tensor]]] = self.encoder.learned  # type: ignore[assignment]
        return learned(seen, targets)

    def _seen(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        if ENCODING in observation:  # in the place of the images; conditions may look at the rest
            vectors = (k for k in self.encoded_keys if not is_image(k))
            return {k: self._normal(k, observation[k]) for k in vectors}
        steps = observation[self.observation_keys[0]].shape[1]
        return self.normalised(observation) | self.codec.observe(observation, steps)

    def normalised(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """The observations as the encoder sees them: vectors normalised, images as they are."""
        return {k: self._normal(k, observation[k]) for k in self.encoded_keys}

    def _normal(self, key: str, value: Any) -> Any:
        return self.normaliser(key)(value) if self.has_normaliser(key) else value

    def _vectors(self) -> list[str]:
        """Those that are normalised here: what the encoder sees, and what conditions are told, unless it is
        whole numbers."""
        told = {feature_of(k) for k in self.condition_keys} - {TASK}
        fractions = {k for k in told if k in self.features and np.dtype(self.features[k].dtype).kind == "f"}
        return [k for k in (*state_keys(self.features), ACTION) if k in self.encoded_keys or k in fractions]

    def _reference(self, conditions: Conditions | None, observation: Mapping[str, Any]) -> Tensor | None:
        """What another policy would do in the ticks of the chunk, as the network sees actions `(B, H, A)`."""
        if conditions is None or conditions.reference is None:
            return None
        actions, there = conditions.reference.ahead(self.recipe.horizon, self.recipe.n_past_actions)
        return torch.where(there[..., None], self.codec.encode(actions, observation), 0.0)

    def _conditions(
        self,
        seen: Mapping[str, Any],
        observation: Mapping[str, Any],
        drop: bool,
        more: Mapping[Any, Mapping[str, Any]],
    ) -> Conditions | None:
        """seen: what the encoder was shown, normalised. observation: all that is given. more: what some of
        them are called with besides."""
        if not len(self.conditions):
            return None
        told = self._told(seen, observation)
        given = []
        for net in self.conditions:
            future = self.training and getattr(net, "learns_from_future", False)
            given.append({**(self._rest(observation) if future else {}), **told, **more.get(net, {})})
        return gathered(self.recipe.conditions, self.conditions, given, drop, self.training)

    def _told(self, seen: Mapping[str, Any], observation: Mapping[str, Any]) -> dict[str, Any]:
        """`seen`, and what the conditions are told, normalised."""
        told = dict(seen)
        for key in self.condition_keys:
            value = observation.get(key)
            if value is None and key in self.conditions_optional:
                like = next(v for v in observation.values() if isinstance(v, Tensor))
                shape = len(like), *self.conditions_optional[key].shape
                value = [""] * len(like) if key == TASK else torch.full(shape, torch.nan, device=like.device)
            elif value is None:
                raise KeyError(key)
            told[key] = self._normal(feature_of(key), value)
        return told

    def _rest(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch of windows, in which what lies ahead is normalised as what is seen is."""
        return {k: self._normal(feature_of(k), v) for k, v in batch.items()}

    def learned_losses(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What parts that learn by themselves, a codec or conditions, add to the loss: scalars by name,
        weighted. Of links in a row the first one's."""
        link = first_link(batch)
        losses = self.codec.losses(link[ACTION], link)
        if any(type(c).losses is not ConditionNet.losses for c in self._condition_nets()):
            told = {**self._rest(link), **self._told(self._seen(link), link)}
            for net in self._condition_nets():
                losses = losses | net.losses(told)
        return losses

    def _condition_nets(self) -> list[ConditionNet]:
        return [c for c in self.conditions if isinstance(c, ConditionNet)]

    def loss(self, batch: Mapping[str, Any], progress: float = 1.0) -> Tensor:
        """Scalar loss on windows, as `examples` takes them. progress: share of the training that is over. The
        objective is given `mask` `(B, H)` bool, the actions that count, and where they are there `weight`
        `(B,)` and `table` `(B, C)`. What the context asks for (`Context.cost`) is added, growing with
        progress from nothing to all of it, and so are the words that a language model learns to write, where
        the batch has `answer`, and what the encoder learns of its own, where it has `target.<key>`; in
        training mode the terms of CAPS, too, where the recipe asks for them."""
        action, context, mask, weight = self.examples(batch)
        objective = self.recipe.objective
        draw = objective.draw(action, progress, None)
        given = {"mask": mask, "weight": weight, "table": batch.get("table")}
        more = draw.more | {k: v for k, v in given.items() if v is not None}
        draw = dataclasses.replace(draw, more=more)
        own = _costs(context, mask, progress) | written(self, context, batch, weight)
        own |= context.extras or {}
        if not (self.training and wants(self.recipe)):
            losses = objective.losses(self.net, action, context, draw)
            own |= losses.extras | self.learned_losses(batch)
            return sum(own.values(), masked_mean(losses.error, mask, weight))
        heard = Heard(self.net)
        losses = objective.losses(heard, action, context, draw)
        own |= losses.extras | self.learned_losses(batch)
        own |= smoothness(self, heard, batch, mask, weight)
        return sum(own.values(), masked_mean(losses.error, mask, weight))

    def examples(self, batch: Mapping[str, Any]) -> tuple[Tensor, Context, Tensor, Tensor | None]:
        """What there is to learn from windows: (normalised chunks `(B, H, A)`, their contexts, which of their
        actions count `(B, H)` bool, the weights of the rows `(B,)` or None).

        batch: the observation keys, `action` `(B, H, A)`, `mask` `(B, H)` (True = real), and where they are
        there `valid` `(B, H)` (False = its device doubted it) and `weight` `(B,)` of the rows. In chains
        every one has a second axis K, and `fresh` `(B, K)` says where the memory is forgotten; their links
        are given one after the other."""
        chained, fresh = batch[ACTION].ndim == 4, None
        if chained:
            links = batch[ACTION].shape[1]
            fresh = batch["fresh"].transpose(0, 1)
            batch = {
                k: v.transpose(0, 1).flatten(0, 1) if isinstance(v, Tensor) else [*v] * links
                for k, v in batch.items()
            }
        action, context = self.codec.encode(batch[ACTION], batch), self.encode(batch, fresh=fresh)
        mask = batch["mask"]
        if not (self.recipe.mask_padding or chained):
            mask = batch.get("valid", torch.ones_like(mask))
        if not self.recipe.loss_on_past:
            mask = mask & (torch.arange(mask.shape[1], device=mask.device) >= self.recipe.n_past_actions)
        return action, context, mask, batch.get("weight")

    forward = loss  # so that wrappers for several GPUs, which intercept forward, see it

    def sample(
        self,
        request: Request,
        steering: Sequence[Hook] = (),
        steps: int | None = None,
        solver: Solver | None = None,
        keep_chain: bool = False,
        grad: bool = False,
        noise: Callable[[], Tensor] | None = None,
        context: Context | None = None,
    ) -> Sampled:
        """One chunk for each of B questions, `Sampled.chunk` `(B, H, A)` and `candidates` in the action's
        units. `request.seed` must be given, one or B. steering: hooks after the recipe's own. steps, solver:
        the recipe's by default. keep_chain, grad, noise: see `sampler.sample`; the chain stays normalised.
        context: the request's, where it is known."""
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            context = self.context(request) if context is None else context
            sampled = sample(
                self.net,
                self.recipe.objective,
                solver or self.recipe.solver,
                context,
                (len(context.pooled), self.recipe.horizon, self.codec.width),
                steps or self.recipe.sampling_steps,
                request.seed,
                (*self.recipe.steering, *steering),
                request=request,
                policy=self,
                keep_chain=keep_chain,
                grad=grad,
                noise=noise,
            )
            if sampled.execute is not None:
                ahead = self.recipe.horizon - self.recipe.n_past_actions
                sampled = dataclasses.replace(sampled, execute=sampled.execute.clamp(max=ahead))
            observation = self._known(request)
            chunk = self.codec.decode(sampled.chunk, observation)
            if (n := sampled.candidates.shape[1]) == 1:
                return dataclasses.replace(sampled, chunk=chunk, candidates=chunk[:, None])
            each = {
                k: v.repeat_interleave(n, dim=0) if isinstance(v, Tensor) else v
                for k, v in observation.items()
            }
            candidates = self.codec.decode(sampled.candidates.flatten(0, 1), each)
            return dataclasses.replace(sampled, chunk=chunk, candidates=candidates.unflatten(0, (-1, n)))

    def context(self, request: Request, drop: bool = False) -> Context:
        """What the network sees of B questions. drop: ValueError for a policy that does not know how to act
        without its conditions."""
        if drop:
            require_dropped(self.recipe.conditions)
        return self.encode(self._known(request), request.memory, drop=drop, seed=request.seed)

    def _known(self, request: Request) -> dict[str, Any]:
        known = {**request.observation}
        if request.past is not None:
            known[PAST] = request.past
        if request.task is not None:
            known[TASK] = request.task
        return known

    def normalise_action(self, action: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """A chunk `(B, H, A)` in the action's units as the network sees it. observation: the one that the
        chunk answers."""
        return self.codec.encode(action, observation)

    def normalise_past(self, past_BdA: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The actions sent before now, in their units, as the network sees the first ones of a chunk."""
        if past_BdA.shape[1] != self.recipe.n_past_actions:
            raise ValueError(
                f"the request brings {past_BdA.shape[1]} actions sent before now, the policy's "
                f"n_past_actions is {self.recipe.n_past_actions}"
            )
        return self.codec.encode_past(past_BdA, {PAST: past_BdA, **observation})

    def denormalise_action(self, chunk: Tensor, observation: Mapping[str, Any]) -> Tensor:
        """The inverse of `normalise_action`."""
        return self.codec.decode(chunk, observation)

    def has_normaliser(self, key: str) -> bool:
        return module_name(key) in self.normalisers

    def normaliser(self, key: str) -> Affine:
        module = self.normalisers[module_name(key)]
        assert isinstance(module, Affine)
        return module


def first_link(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a batch of chains the first window of each, as a batch; else the batch."""
    if batch[ACTION].ndim == 3:
        return batch
    return {k: v[:, 0] if isinstance(v, Tensor) else v for k, v in batch.items()}


def _rows(observation: Mapping[str, Any], rows: slice) -> Mapping[str, Any]:
    return {k: v[rows] for k, v in observation.items()}


def module_name(key: str) -> str:
    """Of the normaliser of the feature `key`: names of modules may hold no dots."""
    return key.replace(".", "/")


def _costs(context: Context, mask_BH: Tensor, progress: float) -> dict[str, Tensor]:
    """The context's own cost, of the rows that count."""
    if context.cost is None:
        return {}
    counts = mask_BH.any(1).to(context.cost.dtype)
    return {"context": progress * (context.cost * counts).sum() / counts.sum().clamp(min=1)}
