"""Published weights: their names, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from contracts.data import write_store
from contracts.recipes import small
from contracts.vla import FEATURES, policy
from safetensors.torch import save_file

from ulna.policies.adapters.tokens import VisionLanguageError
from ulna.policies.adapters.weights import our_name, take_published
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.train.loop import train


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        (
            "model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.encoder.layers.3.mlp.fc1.bias",
            "encoder.vision.layers.3.mlp.fc1.bias",
        ),
        (
            "paligemma_with_expert.paligemma.language_model.model.layers.0.self_attn.q_proj.weight",  # openpi
            "encoder.language.layers.0.self_attn.q_proj.weight",
        ),
        ("paligemma_with_expert.paligemma.lm_head.weight", "encoder.language.embed_tokens.weight"),
        (
            "language_model.model.embed_tokens.weight",
            "encoder.language.embed_tokens.weight",
        ),  # older PaliGemma
        ("model.language_model.embed_tokens.weight", "encoder.language.embed_tokens.weight"),
        ("multi_modal_projector.linear.weight", "encoder.vision.projector.weight"),
        ("model.connector.modality_projection.proj.weight", "encoder.vision.projector.weight"),
        (
            "model.vision_model.embeddings.patch_embedding.weight",
            "encoder.vision.patch_embedding.weight",
        ),
        (
            "model.text_model.layers.15.self_attn.k_proj.weight",
            "encoder.language.layers.15.self_attn.k_proj.weight",
        ),
        ("model.vlm_with_expert.lm_expert.norm.weight", "net.norm.weight"),
        (
            "model.paligemma_with_expert.gemma_expert.model.layers.1.input_layernorm.dense.bias",
            "net.layers.1.input_layernorm.dense.bias",
        ),
        ("model.action_time_mlp_in.weight", "net.time_in.weight"),
        ("time_mlp_out.bias", "net.time_out.bias"),
        ("model.state_proj.weight", "state_proj.weight"),
        ("model.text_model.norm.weight", "encoder.language.norm.weight"),
        ("model.paligemma_with_expert.paligemma.model.vision_tower.vision_model.head.probe", None),
    ],
)
def test_names(published: str, ours: str | None) -> None:
    assert our_name(published) == ours


def theirs(of: Policy, half: bool = False) -> dict[str, torch.Tensor]:
    """Weights of SmolVLA under LeRobot's names, or of the vision-language half under transformers'."""
    names = {
        "encoder.vision.projector.": "connector.modality_projection.proj.",
        "encoder.vision.layers.": "vision_model.encoder.layers.",
        "encoder.vision.post": "vision_model.post",
        "encoder.vision.": "vision_model.embeddings.",
        "encoder.language.": "text_model.",
    }
    published = {}
    for key, value in of.state_dict().items():
        new = next((n + key.removeprefix(o) for o, n in names.items() if key.startswith(o)), None)
        if new is not None:
            published[f"model.{new}" if half else f"model.vlm_with_expert.vlm.model.{new}"] = value
        elif not half and key.startswith(("net.layers.", "net.norm.")):
            published["model.vlm_with_expert.lm_expert." + key.removeprefix("net.")] = value
        elif not half and key.startswith("net.time_"):
            published["model.action_time_mlp_" + key.removeprefix("net.time_")] = value
        elif not half and key.startswith(("net.", "context_net.")):
            published["model." + key.split(".", 1)[1]] = value
    return {k: torch.randn_like(v) for k, v in published.items()}


@pytest.mark.parametrize("half", [False, True])
def test_a_folder_is_taken_whole_or_its_vision_language_half(half: bool, tmp_path: Path) -> None:
    of = policy("smolvla_small")
    weights = theirs(of, half)
    save_file({**weights, "model.text_model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    before = of.state_dict()["net.action_in_proj.weight"].clone()
    says = take_published(of, str(tmp_path))
    assert ("and the action expert" in says) != half
    assert f"{len(weights)} weights" in says
    assert torch.equal(before, of.state_dict()["net.action_in_proj.weight"]) == half
    table = next(v for k, v in weights.items() if "embed_tokens" in k)
    assert torch.equal(of.state_dict()["encoder.language.embed_tokens.weight"], table)


def test_several_files_by_their_index(tmp_path: Path) -> None:
    of = policy("smolvla_small")
    weights = list(theirs(of).items())
    for i in range(2):
        save_file(dict(weights[i::2]), tmp_path / f"part-{i}.safetensors")
    index = {"weight_map": {k: f"part-{i % 2}.safetensors" for i, (k, _) in enumerate(weights)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{len(weights)} weights" in take_published(of, str(tmp_path))
    index["weight_map"]["more"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(VisionLanguageError, match="names files elsewhere"):
        take_published(of, str(tmp_path))


def test_what_does_not_fit_is_a_sentence_and_changes_nothing(tmp_path: Path) -> None:
    of = policy("smolvla_small")
    before = {k: v.clone() for k, v in of.state_dict().items()}
    torch.save(theirs(of), tmp_path / "pytorch_model.bin")  # is never read
    with pytest.raises(VisionLanguageError, match=r"has no model\.safetensors"):
        take_published(of, str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x80\x04}q\x00.")
    with pytest.raises(VisionLanguageError, match="holds no weights that can be read"):
        take_published(of, str(tmp_path))
    weights = theirs(of)
    key = next(k for k in weights if k.endswith("action_in_proj.weight"))
    for bad, says in (
        ({**weights, key: torch.zeros(3, 3)}, r"net.action_in_proj.weight is \(3, 3\) there"),
        ({k: v for k, v in weights.items() if k != key}, "of the action expert: they are of another recipe"),
        ({key: weights[key]}, "another kind of model"),
    ):
        save_file(bad, file)
        with pytest.raises(VisionLanguageError, match=says):
            take_published(of, str(tmp_path))
    with pytest.raises(VisionLanguageError, match="there is no folder"):
        take_published(of, str(tmp_path / "nowhere"))
    assert all(torch.equal(v, before[k]) for k, v in of.state_dict().items())


def test_training_begins_with_them_and_its_checkpoint_needs_them_no_more(tmp_path: Path) -> None:
    data = {k: f for k, f in FEATURES.items() if "wrist" not in k}
    write_store(tmp_path / "d", features=data)
    recipe = override(
        small("smolvla", data, steps=2, learning_rate=0.0, checkpoint_every=1),
        {"encoder.weights": str(tmp_path)},
    )
    weights = theirs(policy("smolvla", data))
    save_file(weights, tmp_path / "model.safetensors")
    said: list[str] = []
    train(recipe, tmp_path / "d", tmp_path / "c", device="cpu", track=(), say=said.append)
    assert any("began with the vision-language model and the action expert" in s for s in said)
    (tmp_path / "model.safetensors").unlink()
    loaded = load_checkpoint(tmp_path / "c").state_dict()
    table = next(v for k, v in weights.items() if "embed_tokens" in k)
    assert torch.equal(loaded["encoder.language.embed_tokens.weight"], table)
