"""A sentence encoder: BERT's layers (Devlin et al. 2019, arXiv 1810.04805) and the mean of what they make of
a text's tokens, trained so that sentences of one meaning lie close (Sentence-BERT, Reimers and Gurevych 2019,
arXiv 1908.10084). Names of weights are those of the published checkpoints.

Legend: B texts, S tokens, H heads, W width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .tokens import VisionLanguageError, published_file

FILE = "model.safetensors"
KINDS_OF_TEXT = 2  # first and second text of a pair; here all are first
EPS = 1e-12


class SentenceEncoder(nn.Module):
    """Token numbers `(B, S)` int and which of them there are `(B, S)` bool to vectors `(B, W)` of length
    1."""

    def __init__(self, width: int, depth: int, heads: int, ffn: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a sentence encoder's heads {heads} must divide its width {width}")
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(vocabulary, width),
                "position_embeddings": nn.Embedding(positions, width),
                "token_type_embeddings": nn.Embedding(KINDS_OF_TEXT, width),
                "LayerNorm": nn.LayerNorm(width, EPS),
            }
        )
        layers = nn.ModuleList(Layer(width, heads, ffn) for _ in range(depth))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        places = torch.arange(ids_BS.shape[1], device=ids_BS.device)
        return F.normalize(self.read(self.embeddings["word_embeddings"](ids_BS), places, mask_BS), dim=-1)

    def read(self, tokens_BSW: Tensor, places_S: Tensor, mask_BS: Tensor) -> Tensor:
        """The mean `(B, W)` of what the layers make of tokens, words' or others, that stand at these places
        of the text."""
        table = self.embeddings
        kind = table["token_type_embeddings"](torch.zeros_like(places_S))
        x = table["LayerNorm"](tokens_BSW + table["position_embeddings"](places_S) + kind)
        for layer in self.encoder["layer"]:  # type: ignore[union-attr]
            x = layer(x, mask_BS)
        share = mask_BS.to(x.dtype) / mask_BS.sum(1, keepdim=True).clamp(min=1)
        return (x * share[..., None]).sum(1)


class Layer(nn.Module):
    """Attention of all tokens to all, then two dense layers; norms come after each."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        own = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": own, "output": _dense(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, ffn)})
        self.output = _dense(ffn, width)

    def forward(self, x: Tensor, mask_BS: Tensor) -> Tensor:
        own = self.attention["self"]
        q, k, v = (
            own[name](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[index]
            for name in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BS[:, None, None])
        x = _added(self.attention["output"], seen.transpose(1, 2).flatten(2), x)
        return _added(self.output, F.gelu(self.intermediate["dense"](x)), x)


def take_published(model: SentenceEncoder, name: str) -> int:
    """Put the published weights of `name` (see `tokens.published_file`) into `model`; says how many they
    are. VisionLanguageError in one sentence where they do not fit, before any is changed."""
    path, here = published_file(name, FILE), model.state_dict()
    try:
        with safe_open(path, "pt") as file:
            names = {key.removeprefix("bert."): key for key in file.keys()}  # noqa: SIM118  it is no map
            there = {ours: file.get_tensor(names[ours]) for ours in here if ours in names}
    except (SafetensorError, OSError) as error:
        raise VisionLanguageError(f"{path} holds no weights that can be read: {error}") from None
    if missing := [key for key in here if key not in there]:
        raise VisionLanguageError(f"{path} is no sentence encoder of BERT's kind: it lacks {missing[0]}")
    for key, value in there.items():
        if value.shape != here[key].shape:
            raise VisionLanguageError(
                f"the weights of {path} do not fit: {key} is {tuple(value.shape)} there and "
                f"{tuple(here[key].shape)} here; give --conditions.Sentence their sizes"
            )
    model.load_state_dict(there)
    return len(there)


def _dense(inputs: int, outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, outputs), "LayerNorm": nn.LayerNorm(outputs, EPS)})


def _added(layers: nn.Module, x: Tensor, before: Tensor) -> Tensor:
    return layers["LayerNorm"](layers["dense"](x) + before)  # type: ignore[index]
