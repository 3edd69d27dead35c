"""A diffusion model's maps: equal to diffusers' own, frozen whatever is trained, told by a prompt, and whole
in the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contracts.data import WITH_IMAGE, write_store
from contracts.recipes import small
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from ulna.policies.checkpoint import load_checkpoint, read_train
from ulna.policies.encoders.feature_maps import FeatureMaps
from ulna.policies.encoders.scr import MODELS, SCR, SCRTrunk
from ulna.policies.parts import override
from ulna.policies.train.loop import train

TINY = MODELS["tiny"]
PART = SCR(grid=4, width=8, side=32)


def pictures(n: int = 3) -> Tensor:
    return torch.rand(n, 3, 40, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def trunk(part: SCR = PART) -> SCRTrunk:
    torch.manual_seed(0)
    net, channels = part.trunk()
    assert isinstance(net, SCRTrunk)
    assert channels == part.width
    return net


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves a model, of random weights."""
    pytest.importorskip("transformers")
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(7)
    UNet2DConditionModel(**TINY.unet).save_pretrained(folder / "unet")
    AutoencoderKL(**TINY.vae).save_pretrained(folder / "vae")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    sizes: dict[str, Any] = {"hidden_size": TINY.unet["cross_attention_dim"], "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": TINY.tokens}
    sizes |= {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    CLIPTextModel(CLIPTextConfig(**sizes)).save_pretrained(folder / "text_encoder")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return folder


def judged(folder: Path, pixels: Tensor, net: SCRTrunk) -> dict[str, Tensor]:
    """What diffusers' own model makes of pixels in [-1, 1], by its blocks; told as `net` is told."""
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    vae: Any = AutoencoderKL.from_pretrained(folder / "vae").eval()
    found: dict[str, Tensor] = {}

    def keep(name: str, block: Any) -> None:
        block.register_forward_hook(lambda _, __, out: found.__setitem__(name, out))

    keep("mid", unet.mid_block)
    for i, block in enumerate(unet.up_blocks):
        keep(f"up{i}", block)
    level = torch.tensor([100])
    with torch.no_grad():
        resized = F.interpolate(pixels, (net.side, net.side), mode="bilinear", antialias=True)
        latents = vae.encode(resized).latent_dist.mode() * vae.config.scaling_factor
        noised = DDPMScheduler(1000, 0.00085, 0.012, "scaled_linear").add_noise(latents, net.noise, level)  # type: ignore[arg-type]
        unet(noised, level, encoder_hidden_states=net.prompt.expand(len(pixels), -1, -1))
    return found


def test_it_gives_what_diffusers_own_gives_by_the_same_weights(published: Path) -> None:
    net = trunk(replace(PART, weights=str(published), grid=8, prompt="lift it"))
    before = net.maps(pictures())
    assert "by the diffusion model of" in net.begin()
    maps, own = net.maps(pictures()), judged(published, pictures(), net)
    resized = [F.interpolate(own[b], (8, 8), mode="bilinear", antialias=True) for b in ("mid", "up0", "up1")]
    assert torch.allclose(maps, torch.cat(resized, dim=1), atol=1e-4)
    assert not torch.allclose(maps, before, atol=1e-2)

    from transformers import CLIPTextModel

    text = CLIPTextModel.from_pretrained(published / "text_encoder").eval()
    letters = {c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")}
    ids = [52, letters["l"], letters["i"], letters["f"], 26 + letters["t"], letters["i"], 26 + letters["t"]]
    with torch.no_grad():
        told = text(torch.tensor([[*ids, *[53] * (TINY.tokens - len(ids))]])).last_hidden_state[0]
    assert torch.allclose(net.prompt, told, atol=1e-5)


def test_maps_follow_the_picture_and_the_prompt_and_nothing_else() -> None:
    net = trunk()
    maps = net.maps(pictures())
    assert maps.shape == (3, 3 * 64, 4, 4)
    assert torch.allclose(net.maps(pictures()[1:2]), maps[1:2], atol=1e-5), "whatever is beside it"
    assert torch.equal(net.train().maps(pictures()), net.eval().maps(pictures()))
    assert not torch.allclose(maps[0], maps[1], atol=1e-3)
    told = trunk(replace(PART, prompt="a photo of a banana"))
    ours, theirs = net.net.state_dict(), told.net.state_dict()
    assert all(torch.equal(v, ours[k]) for k, v in theirs.items()), "it is the prompt alone"
    assert not torch.allclose(told.maps(pictures()), maps, atol=1e-3)
    again = trunk(replace(PART, prompt="a photo of a banana"))
    assert torch.equal(again.prompt, told.prompt)
    noisier = trunk(replace(PART, noise=900))
    assert not torch.allclose(noisier.maps(pictures()), maps, atol=1e-3)


def test_what_is_not_asked_for_is_left_out() -> None:
    whole = trunk(replace(PART, blocks=("mid", "up0", "up1", "up2")))
    middle = trunk(replace(PART, blocks=("mid",)))
    assert len(middle.net["unet"].up_blocks) == 0  # type: ignore[arg-type]
    assert torch.equal(middle.maps(pictures()), whole.maps(pictures())[:, :64])


def test_only_the_head_is_trained(tmp_path: Path) -> None:
    write_store(tmp_path / "d", features=WITH_IMAGE)
    said: list[str] = []
    recipe = replace(small("flow", WITH_IMAGE, steps=2), encoder=FeatureMaps(8, PART))
    recipe = override(recipe, {"backbone": "Transformer", "backbone.width": 32, "backbone.depth": 1})
    train(recipe, tmp_path / "d", tmp_path / "c", device="cpu", track=(), say=said.append)
    assert [s for s in said if "(tiny) of random weights" in s]
    assert read_train(tmp_path / "c").pretrained == {"encoder.trunks.0": "random"}
    net = load_checkpoint(tmp_path / "c").encoder.trunks[0]  # type: ignore[index]
    assert isinstance(net, SCRTrunk)
    more = replace(recipe, training=replace(recipe.training, start=str(tmp_path / "c")))
    train(more, tmp_path / "d", tmp_path / "more", device="cpu", track=())
    later = load_checkpoint(tmp_path / "more").encoder.trunks[0]  # type: ignore[index]
    assert isinstance(later, SCRTrunk)
    before = net.state_dict()
    for name, value in later.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head.")), name

    frozen = replace(more.training, freeze=("encoder.*",), cache_encodings=True)
    train(replace(more, training=frozen), tmp_path / "d", tmp_path / "kept", device="cpu", track=())
    kept = load_checkpoint(tmp_path / "kept").encoder.trunks[0]  # type: ignore[index]
    assert torch.equal(kept.head[0].weight, net.head[0].weight)  # type: ignore[union-attr, index]


def test_a_checkpoint_keeps_published_weights_and_the_prompt(tmp_path: Path, published: Path) -> None:
    shutil.copytree(published, tmp_path / "w")
    write_store(tmp_path / "d", features=WITH_IMAGE)
    changes = {"encoder.image": "SCR", "encoder.image.weights": str(tmp_path / "w"), "encoder.image.side": 32}
    recipe = override(small("flow", WITH_IMAGE, steps=1), {**changes, "encoder.image.prompt": "lift it"})
    said: list[str] = []
    train(recipe, tmp_path / "d", tmp_path / "c", device="cpu", track=(), say=said.append)
    assert [s for s in said if "by the diffusion model of" in s and "'lift it'" in s]
    shutil.rmtree(tmp_path / "w")
    net = load_checkpoint(tmp_path / "c").encoder.images[0][0]  # type: ignore[index]
    assert isinstance(net, SCRTrunk)
    assert read_train(tmp_path / "c").pretrained == {"encoder.images.0.0": net.came_from()}
    assert len(net.came_from()) == 64
    own = judged(published, pictures(), net)
    assert torch.allclose(
        net.maps(pictures())[:, :64], F.interpolate(own["mid"], (16, 16), mode="bilinear"), atol=1e-4
    )


def test_what_does_not_fit_is_a_sentence(tmp_path: Path, published: Path) -> None:
    for change, says in (
        ({"blocks": ("up7",)}, "tiny has the blocks mid, up0, up1, up2, and SCR's blocks are up7"),
        ({"side": 20}, "multiple of 16"),
        ({"width": 12}, "its width 12, which is a multiple of 8"),
        ({"noise": 1000}, "a level from 0 to 999, not 1000"),
    ):
        with pytest.raises(ValueError, match=says):
            trunk(replace(PART, **change))
    with pytest.raises(ValueError, match="there is no folder"):
        trunk(replace(PART, weights=str(tmp_path / "none"))).begin()

    def broken(name: str, change: Any) -> SCRTrunk:
        folder = tmp_path / name
        shutil.copytree(published, folder)
        change(folder)
        return trunk(replace(PART, weights=str(folder)))

    def pickled(folder: Path) -> None:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")

    def another(folder: Path) -> None:
        config = folder / "vae" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 0.5}))

    def cut(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights.pop("conv_in.weight")
        save_file(weights, file)

    def speechless(folder: Path) -> None:
        (folder / "text_encoder" / "model.safetensors").write_bytes(b"\xff" * 64)

    for name, change, says in (
        ("pickled", pickled, r"unet holds no weights in safetensors that can be read"),
        ("another", another, r"vae is not of tiny: its scaling_factor is 0\.5, not 0\.18215"),
        ("cut", cut, r"unet holds no whole unet: it lacks conv_in\.weight"),
        ("speechless", speechless, r"text_encoder holds no weights in safetensors that can be read"),
    ):
        net = broken(name, change)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(ValueError, match=says):
            net.begin()
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert net.came_from() == "random"
