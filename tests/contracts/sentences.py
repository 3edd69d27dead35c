"""A tiny sentence encoder, as published ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ulna.policies.conditions.sentence import Sentence, SentenceNet

WORDS = ["push", "lift", "cube", "the", "red", "task", "0", "1"]
TINY = {"width": 32, "depth": 2, "heads": 4, "ffn": 48, "vocabulary": 16, "positions": 12, "most": 10}


def net(weights: str, **sizes: int) -> SentenceNet:
    made = Sentence(weights, **{**TINY, **sizes}).build({}, torch.nn.Identity(), 8)
    assert isinstance(made, SentenceNet)
    return made


def published(folder: Path, **sizes: int) -> Path:
    """A tiny sentence encoder of random weights, as published ones are stored. sizes: other than TINY."""
    tokenizers = pytest.importorskip("tokenizers", reason="published tokenizers need the extra vla")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    torch.manual_seed(3)
    weights = net("", **sizes).model.state_dict()
    save_file(
        {f"bert.{k}": 20 * v if "dense" in k else v for k, v in weights.items()}, folder / "model.safetensors"
    )
    return folder
