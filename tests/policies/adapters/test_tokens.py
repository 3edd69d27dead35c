"""How words become tokens: by hashes, and by a published tokenizer that the checkpoint keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from hypothesis import given
from hypothesis import strategies as st

from ulna.datasets.features import ACTION
from ulna.policies.adapters.tokens import HashedPieces, VisionLanguageError, tokenizer_text
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.conditions.instruction import Instruction, InstructionNet
from ulna.policies.parts import override
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.loop import train

WORDS = ["push", "lift", "cube", "the", "0", "1", "2", "128", "255"]


def published(folder: Path, words: list[str] = WORDS) -> Path:
    """A tokenizer as published ones are stored, which marks the beginning as PaliGemma's."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {w: i for i, w in enumerate(["<pad>", "<unk>", "<bos>", "\n", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\n|\w+|[^\w\s]"), "isolated")
    made.post_processor = tokenizers.processors.TemplateProcessing("<bos> $A", None, [("<bos>", 2)])
    made.enable_truncation(3)
    made.enable_padding(length=64)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_hashed_pieces_are_the_same_everywhere() -> None:
    assert HashedPieces(2048)("Push the cube!\n") == [2, 1298, 1368, 114, 398, 787]
    assert HashedPieces(2048)("push  THE cube !\n") == HashedPieces(2048)("Push the cube!\n")


@given(st.text(max_size=40), st.integers(4, 5000))
def test_hashed_pieces_fit_the_table(text: str, vocabulary: int) -> None:
    ids = HashedPieces(vocabulary)(text)
    assert ids[0] == 2
    assert all(3 <= i < vocabulary for i in ids[1:])


def test_the_state_in_words_is_lerobots() -> None:
    state = np.concatenate([np.linspace(-1.2, 1.2, 97), np.linspace(-1, 1, 257)]).astype(np.float32)
    bins = np.digitize(state, bins=np.linspace(-1, 1, 256 + 1)[:-1]) - 1
    text = Instruction(state=True).text(" push_it \n", torch.from_numpy(state))
    assert text == f"Task: push it, State: {' '.join(map(str, bins))};\nAction: "


def test_a_published_tokenizer_reads_as_its_own_library(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = published(tmp_path / "t")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    net = Instruction(str(folder)).build({}, _Encoder(64), 8)
    assert isinstance(net, InstructionNet)
    for text in ("push the cube\n", "lift strange things, 128\n", "\n"):
        assert net.ids(text) == theirs(text, truncation=False, padding=False)["input_ids"]


def test_a_checkpoint_keeps_its_tokenizer(tmp_path: Path) -> None:
    folder, data = published(tmp_path / "t", [*WORDS, "task"]), tmp_path / "d"
    write_store(data)
    recipe = override(small("pi05_small"), {"conditions.Instruction.tokenizer": str(folder)})
    train(recipe, data, tmp_path / "c", device="cpu", track=())
    (folder / "tokenizer.json").unlink()
    policy = load_checkpoint(tmp_path / "c")
    condition = policy.conditions[0]
    assert isinstance(condition, InstructionNet)
    assert condition.ids("push\n128") == [2, 4, 3, 11]
    state = {k: np.zeros(f.shape, np.float32) for k, f in FEATURES.items() if k != ACTION}
    reply = LocalPolicy(tmp_path / "c").infer({**state, "task": "push the cube"})
    assert np.isfinite(reply["actions"]).all()
    with pytest.raises(VisionLanguageError, match=r"no tokenizer\.json"):
        train(recipe, data, tmp_path / "e", device="cpu", track=())
    assert not (tmp_path / "e").exists()


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VisionLanguageError, match="there is no folder"):
        tokenizer_text(str(tmp_path / "nowhere"))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(VisionLanguageError, match="is no tokenizer"):
        tokenizer_text(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    net = Instruction(str(tmp_path)).build({}, _Encoder(64), 8)
    assert isinstance(net, InstructionNet)
    with pytest.raises(ValueError, match="none that this version reads"):
        net.ids("push")
    net = Instruction(str(published(tmp_path / "t"))).build({}, _Encoder(6), 8)
    assert isinstance(net, InstructionNet)
    with pytest.raises(BadRequest, match="do not belong together"):
        net.ids("the 255")
    other = published(tmp_path / "u", ["nobody", "read", "this", "before"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    net = Instruction(str(other)).build({}, _Encoder(64), 8)
    assert isinstance(net, InstructionNet)
    with pytest.raises(VisionLanguageError, match=r"pip install 'ulna\[vla\]'"):
        net.ids("push")


def test_nothing_of_the_extra_is_imported_by_itself() -> None:
    script = (
        "import sys; import ulna.policies.parts, ulna.policies.recipes.all, ulna.policies.checkpoint; "
        "print([m for m in ('transformers', 'tokenizers', 'peft', 'timm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


class _Encoder(torch.nn.Module):
    """With a language model's table, and no more."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        from ulna.policies.adapters.language import Language

        self.language = Language("gemma", 8, 1, 1, 1, 8, 8, vocabulary).build()
