"""In-context robot transformer: demonstrations and the present are one sequence, which a causal transformer
goes on (ICRT, Fu et al. 2024, arXiv 2408.15980).

Legend: L links of a chain, B batch, T = n_obs_steps, K tokens of a frame, N = T·K tokens of a decision, C
condition tokens, S = 1 + C, D width of the encodings, W inner width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..adapters.language import KeysValues, Language
from ..remembered import Remembered, acts
from .context import Conditions, Context, ContextNet, Layers, carried


@dataclass(frozen=True)
class ICRT:
    """Layers as Llama's over the tokens of the conditions, demonstrations for the most part, and then those
    of all decisions of the episode; what they give at the newest is the context. What is asked for is read
    once, and its keys and values are kept for the rest of the episode. The memory that is carried holds the
    tokens of the decisions so far. Trained on a chain at once, told by its first decision; there is no loss
    on what was demonstrated."""

    width: int = 128
    """Of a token in the layers; a multiple of heads."""
    depth: int = 4
    """Number of layers."""
    heads: int = 4
    """Of the attention, in each layer."""
    ffn: int = 512
    """Hidden units of a layer."""
    chain: int = 40
    """Decisions that are read, the newest last: then the oldest are forgotten. As many in a row does training
    see."""
    begin: Literal["anywhere", "episode"] = "episode"
    """Where a chain begins: at any tick, or where its episode does, as it will when the policy acts."""

    def build(
        self, width: int, tokens_per_frame: int, n_obs_steps: int, conditions: int, condition_tokens: int
    ) -> ContextNet:
        if self.chain < 2 or self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"ICRT reads a chain of at least 2 decisions, not {self.chain}, and its heads {self.heads} "
                f"are of an even width and make up {self.width}: set --context.width, heads or chain"
            )
        return ICRTNet(self, width, tokens_per_frame * n_obs_steps)


class ICRTNet(ContextNet):
    told_once = True

    def __init__(self, part: ICRT, width: int, per_decision: int) -> None:
        super().__init__()
        self.token_width = self.pooled_width = part.width
        self.tokens, self.per_decision, self.kept = 1, per_decision, part.chain - 1
        self.memory_width = 1 + self.kept * per_decision * width  # how many decisions, and their tokens
        head = part.width // part.heads
        language = Language(
            "llama", part.width, part.depth, part.heads, part.heads, head, part.ffn, 1, "words"
        )
        self.shape: Layers = language.layers
        self.enter, self.reader = nn.Linear(width, part.width), language.build()
        self._told = Remembered()

    def forward(
        self,
        z_BTKD: Tensor,
        conditions: Conditions | None = None,
        memory: Tensor | None = None,
        fresh: Tensor | None = None,
    ) -> Context:
        b, now = len(z_BTKD), z_BTKD.flatten(1)
        memory, _ = carried(memory, fresh, now.new_zeros(b, self.memory_width))
        count = memory[:, 0].round().long().clamp(0, self.kept)
        past = memory[:, 1:].unflatten(1, (self.kept, -1)).to(now.dtype)
        decisions = torch.cat([past, torch.zeros_like(past[:, :1])], dim=1)
        newest = torch.arange(self.kept + 1, device=now.device) == count[:, None]
        decisions = torch.where(newest[..., None], now[:, None], decisions)
        full = count[:, None, None] == self.kept
        kept = torch.where(full, decisions[:, 1:], decisions[:, :-1])
        after = torch.cat([(count + 1).clamp(max=self.kept)[:, None].to(now.dtype), kept.flatten(1)], dim=1)
        # nothing is read behind the newest of all rows
        tokens = decisions[:, : int(count.max()) + 1].unflatten(2, (self.per_decision, -1)).flatten(1, 2)
        read = self._goes_on(tokens, b, conditions).unflatten(1, (-1, self.per_decision))[:, :, -1]
        return _context(read[torch.arange(b, device=now.device), count], after)

    def along(self, z: Tensor, conditions: Conditions | None, fresh: Tensor) -> Context:
        links, b = fresh.shape
        tokens = z.flatten(1, 2).unflatten(0, (links, b)).transpose(0, 1).flatten(1, 2)
        told = None if conditions is None else conditions.rows(slice(b))
        read = self._goes_on(tokens, b, told)[:, self.per_decision - 1 :: self.per_decision]
        return _context(read.transpose(0, 1).flatten(0, 1))

    def _goes_on(self, tokens: Tensor, b: int, conditions: Conditions | None) -> Tensor:
        """What the layers make of the decisions' tokens `(B, n, D)` after what is asked for: `(B, n, W)`."""
        if conditions is None:
            mask = torch.ones(b, 1, dtype=torch.bool, device=tokens.device)
            told = self._read(tokens[:, :0], mask)
        else:
            mask = torch.cat([torch.ones_like(conditions.mask[:, :1]), conditions.mask], dim=1)
            given = (conditions.tokens, conditions.mask)
            if acts(self):
                told = self._told.rows(given, lambda rows: self._read(given[0][rows], mask[rows]))
            else:
                told = self._read(conditions.tokens, mask)
        before: KeysValues = [(k.transpose(1, 2), v.transpose(1, 2)) for k, v in self.shape.of(told)]
        return self.reader.further(self.enter(tokens), before, mask, causal=True)[0]

    def _read(self, tokens_BCD: Tensor, mask_BS: Tensor) -> Tensor:
        """Keys and values of all layers `(B, S, ·)`, of a token that begins and those of the conditions."""
        begin = self.reader.embed(torch.zeros(len(mask_BS), 1, dtype=torch.long, device=mask_BS.device))
        tokens = torch.cat([begin.to(tokens_BCD.dtype), self.enter(tokens_BCD)], dim=1)
        return self.reader(tokens, mask_BS, torch.arange(tokens.shape[1], device=mask_BS.device))


def _context(read_BW: Tensor, memory: Tensor | None = None) -> Context:
    everywhere = torch.full((1,), -1, device=read_BW.device)
    return Context(read_BW[:, None], read_BW, None, everywhere, memory)
