"""Instructions by their meaning: a published sentence encoder, which stays as it is and lies in the
checkpoint."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from contracts.sentences import TINY, net, published
from safetensors.torch import load_file

from ulna.datasets.features import ACTION
from ulna.policies.adapters.tokens import SENTENCES, VisionLanguageError, published_file
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.conditions.sentence import Sentence, SentenceNet
from ulna.policies.parts import override
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.train.loop import train
from ulna.sim.planar.phrases import FORMS, NAMES, OTHER_FORMS


def test_its_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the judge needs the extra vla")
    folder = published(tmp_path / "s")
    ours = net(str(folder))
    assert "37 weights" in ours.begin()
    config = transformers.BertConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=12,
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    weights = load_file(folder / "model.safetensors")
    theirs.load_state_dict({k.removeprefix("bert."): v for k, v in weights.items()})
    texts = ["push", "lift the red cube", "push the cube", "push"]
    vectors = ours.vectors(texts) / 32**0.5
    for text, vector in zip(texts, vectors, strict=True):
        mean = theirs(torch.tensor([ours.ids(text)])).last_hidden_state.mean(1)
        assert torch.allclose(F.normalize(mean, dim=-1)[0], vector, atol=1e-5)
    assert (vectors[0] - vectors[1]).abs().max() > 0.02


def test_a_checkpoint_keeps_it_as_it_was(tmp_path: Path) -> None:
    folder, data = published(tmp_path / "s"), tmp_path / "d"
    write_store(data)
    changes = {f"conditions.Sentence.{k}": v for k, v in {"weights": str(folder), **TINY}.items()}
    recipe = override(small("vla_small"), changes)
    said: list[str] = []
    train(recipe, data, tmp_path / "c", device="cpu", track=(), say=said.append)
    assert any("sentence encoder" in s for s in said)
    before = load_file(folder / "model.safetensors")
    shutil.rmtree(folder)
    policy = load_checkpoint(tmp_path / "c")
    condition = policy.conditions[0]
    assert isinstance(condition, SentenceNet)
    assert all(torch.equal(v, before[f"bert.{k}"]) for k, v in condition.model.state_dict().items())
    state = {k: np.zeros(f.shape, np.float32) for k, f in FEATURES.items() if k != ACTION}
    local = LocalPolicy(tmp_path / "c")
    first, other, again = (
        local.infer({**state, "task": task, "_rt": {"seed": 1}})["actions"]
        for task in ("push the cube", "lift", "push the cube")
    )
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-6)


def test_a_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "shipped_sentences" / "model")
    (tmp_path / "shipped_sentences" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert len(net("shipped_sentences").tokenizer()("push the cube")) == 5
    with pytest.raises(VisionLanguageError, match=r"has no config\.json"):
        published_file("shipped_sentences", "config.json")


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / "s")
    with monkeypatch.context() as hidden:
        hidden.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(VisionLanguageError, match=r"is installed: pip install 'ulna\[vla\]'"):
            net(SENTENCES).begin()
    with pytest.raises(BadRequest, match=r"--conditions\.Sentence\.most 12"):
        net(str(folder)).ids("the " * 10)
    with pytest.raises(VisionLanguageError, match=r"give --conditions\.Sentence their sizes"):
        net(str(folder), ffn=40).begin()
    with pytest.raises(VisionLanguageError, match=r"it lacks encoder\.layer\.2"):
        net(str(folder), depth=3).begin()
    with pytest.raises(ValueError, match=r"--conditions\.Sentence\.positions"):
        net("", most=13)


def test_the_shipped_one_understands_sentences_that_it_never_heard() -> None:
    """Each is nearest to the mean of the heard sentences about the same colour."""
    if importlib.util.find_spec(SENTENCES) is None:
        pytest.skip("needs the extra vla")
    shipped = Sentence().build({}, torch.nn.Identity(), 8)
    assert isinstance(shipped, SentenceNet)
    shipped.begin()

    def said(forms: Sequence[str]) -> torch.Tensor:
        """`(colours, sentences, W)`."""
        return torch.stack(
            [
                shipped.vectors([f.format(colour=n, way="left") for f in forms for n in NAMES[c]])
                for c in NAMES
            ]
        )

    heard, other = said(FORMS[:4]), said(OTHER_FORMS[:3])
    means = heard.mean(1) - heard.mean((0, 1))
    nearest = ((other - heard.mean((0, 1))) @ means.T).argmax(-1)
    right = (nearest == torch.arange(len(NAMES))[:, None]).float().mean()
    assert right > 0.9
