"""Co-training with words: a vision-language policy goes on writing text beside its actions, so that what its
language model knew of words is not lost to them (pi0.5, Black et al. 2025, arXiv 2504.16054; knowledge
insulation, Driess et al. 2025, arXiv 2505.23705).

An option of training (`recipe.Training.words`), for every recipe whose language model `gives` words. What is
written is a label of the data: the step that is under way, or the task's own words where it is told in
others (`WindowSpec.answer`). The model has read pictures and instruction, as for a decision, and writes the
text after them, by next-token cross-entropy of the text alone. Nothing that was read looks at what is
written, so the expert and a decision are the same as without.

Faithful: the loss, and that it is added to that of the actions in the same training. Not: the published data
of the web, which this has none of; the text is written after the same prefix that the actions are, where
pi0.5 has a prompt for each kind; a decision does not write the step and then act on it, as pi0.5's does.

Legend: B batch, S tokens of a text, V vocabulary, N texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapters.language import Reader
from .adapters.tokens import BEGIN
from .backbones.action_tokens import GoesOn
from .conditions.tokenized import TokenizedNet, padded
from .contexts.context import Context, Layers
from .recipe import Recipe

ANSWER = "answer"  # key of the text in training batches
END = 1  # the token after a text, as Gemma's


class Writes:
    """The language model of a policy, to write text. ValueError in one sentence for a policy that has none,
    or whose model gives no words."""

    def __init__(self, policy: Any) -> None:
        recipe: Recipe = policy.recipe
        language = getattr(policy.encoder, "language", None)
        layers: Layers | None = policy.context_net.layers
        reading = [m for m in policy.conditions if isinstance(m, TokenizedNet)]
        if layers is None or not isinstance(language, Reader) or not reading:
            raise ValueError(
                f"{recipe.name} has no language model that reads pictures and an instruction, and so none "
                "that writes words: leave out training.words, or take a recipe such as pi05_ki or pi0_fast"
            )
        if language.part.gives != "words":
            raise ValueError(
                f"training.words needs a language model that gives words, and that of {recipe.name} gives "
                f"{language.part.gives}: set --encoder.language.gives words"
            )
        self.language, self.layers, self.reads = language, layers, reading[0]

    def tokens(self, text: str) -> list[int]:
        """Those of a text and its end; none for an empty one. ValueError where it has too many."""
        if not (text := text.strip()):
            return []
        ids = self.reads.ids(text)
        return [*ids[1 if ids[:1] == [BEGIN] else 0 :], END]

    def nats(self, context: Context, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(how much each token of the texts, one for each row, surprises the model, 0 where there is none,
        `(B, S)` float32; which tokens there are `(B, S)` bool)."""
        ids, there = padded([self.tokens(text) for text in texts])
        ids, there = ids.to(context.tokens.device), there.to(context.tokens.device)
        logits = GoesOn(self.language, self.layers, context).told(ids, BEGIN)
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none")
        return nats.view_as(there) * there, there


def written(
    policy: nn.Module, context: Context, batch: Mapping[str, Any], weight_B: Tensor | None
) -> dict[str, Tensor]:
    """What the words add to the loss: the mean over the tokens of all texts of a batch, times the training's
    weight. Nothing where the training has no words, or the batch holds no text."""
    share = policy.recipe.training.words  # type: ignore[union-attr]
    if not share or ANSWER not in batch:
        return {}
    nats, there = Writes(policy).nats(context, batch[ANSWER])
    if weight_B is not None:
        nats = nats * weight_B[:, None].to(nats.dtype)
    return {"text": share * nats.sum() / there.sum().clamp(min=1)}


def likelihoods(policy: nn.Module, context: Context, texts: Sequence[str]) -> Tensor:
    """`(B, N)` float32, the logarithm of how likely it is that the model writes each of N texts, of each of B
    contexts. For texts of different length, too: the end of a text is one of its tokens."""
    writes = Writes(policy)
    rows = [-writes.nats(context, [text] * len(context.tokens))[0].sum(1) for text in texts]
    return torch.stack(rows, dim=1)
