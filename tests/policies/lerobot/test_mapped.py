"""LeRobot's ACT and DiffusionPolicy as recipes of ours, and back: the same actions from the same noise."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.recipes import FEATURES, small
from lerobot_folders import policy_folder

from ulna.datasets.features import ACTION, is_image
from ulna.datasets.stats import vector_stats
from ulna.policies.checkpoint import load_checkpoint, save_checkpoint
from ulna.policies.export.onnx import export_onnx
from ulna.policies.hashed import CheckpointError
from ulna.policies.lerobot.export import export_lerobot, import_lerobot
from ulna.policies.lerobot.mapped import NotMapped, mapped
from ulna.policies.lerobot.policy import load_lerobot
from ulna.policies.opened import open_policy
from ulna.policies.policy import Policy
from ulna.policies.request import Request
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.train.error import TrainingError
from ulna.policies.train.record import TrainingRecord
from ulna.policies.train.start import started_recipe

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders of policies, each made once."""
    folders: dict[str, Path] = {}

    def of(kind: str, **settings: Any) -> Path:
        name = f"{kind} {settings}"
        if name not in folders:
            place = tmp_path_factory.mktemp(kind) / "pretrained_model"
            folders[name] = policy_folder(place, kind, **settings)
        return folders[name]

    return of


def request(policy: Policy, seed: int = 0) -> Request:
    rng = np.random.default_rng(seed)
    drawn: dict[str, Any] = {}
    for key in sorted(policy.observation_keys):
        f = policy.features[key]
        shape = (2, policy.recipe.n_obs_steps, *f.shape)
        value = rng.integers(0, 256, shape) if f.dtype == "uint8" else rng.uniform(-1, 1, shape)
        drawn[key] = torch.from_numpy(value.astype(f.dtype))
    return Request(drawn, [1, 2])


def chunks(policy: Policy, third: float | None = None) -> np.ndarray:
    """Of two observations, from one noise. third: where the third joint stands."""
    rng = torch.Generator().manual_seed(3)
    shape, asked = (2, policy.recipe.horizon, 6), request(policy)
    if third is not None:
        asked.observation["observation.state"][..., 2] = third
    return policy.sample(asked, noise=lambda: torch.randn(shape, generator=rng)).chunk.numpy()


CAMERAS: dict[str, Any] = {"cameras": ("wrist", "front")}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("act", {}),
    ("act", {**CAMERAS, "environment": 0}),
    ("act", {"use_vae": False, "n_decoder_layers": 2}),
    ("diffusion", {}),
    ("diffusion", {"prediction_type": "sample"}),
    ("diffusion", {**CAMERAS, "crop_shape": (56, 56), "use_film_scale_modulation": False}),
    ("diffusion", {**CAMERAS, "use_group_norm": False, "use_separate_rgb_encoder_per_camera": False}),
]


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_the_same_actions_from_the_same_noise(made: Made, kind: str, settings: dict[str, Any]) -> None:
    folder = made(kind, **settings)
    ours, theirs = mapped(f"lerobot:{folder}"), load_lerobot(folder)
    assert ours.recipe.name == {"act": "act", "diffusion": "diffusion_unet"}[kind]
    assert (ours.recipe.horizon, ours.recipe.n_past_actions) == (
        theirs.recipe.horizon,
        theirs.recipe.n_past_actions,
    )
    np.testing.assert_allclose(chunks(ours), chunks(theirs), atol=1e-4)
    assert np.abs(chunks(ours)[0] - chunks(ours)[1]).max() > 1e-3, "it looks at what it sees"


RANGES = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}


@pytest.mark.parametrize(
    ("kind", "settings"), [("act", {}), ("act", {"normalization_mapping": RANGES}), ("diffusion", {})]
)
def test_a_joint_that_never_moved(made: Made, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    """By its mean LeRobot makes 0 of it, by its range -1."""
    folder = made(kind, still=True, **settings)
    ours, theirs = mapped(f"lerobot:{folder}"), load_lerobot(folder)
    np.testing.assert_allclose(chunks(ours, 0.5), chunks(theirs, 0.5), atol=1e-4)
    np.testing.assert_allclose(chunks(ours, 0.5)[..., 2], 0.5, atol=1e-4)
    save_checkpoint(tmp_path / "ck", ours, TrainingRecord())
    exported = export_lerobot(tmp_path / "ck", tmp_path / "out")
    assert (exported.type, exported.why) == (kind, "")


def test_acts_latent_is_made_as_lerobot_makes_it(made: Made) -> None:
    """In training: the divergence, and the loss, of one demonstrated chunk."""
    folder = made("act", **CAMERAS, environment=0, dropout=0.0)
    ours, theirs = mapped(f"lerobot:{folder}"), load_lerobot(folder)
    seen = request(ours).observation
    action = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(0))
    context: Any = theirs.encode(seen)
    batch = {
        **context.batch,
        "action": theirs.normalise_action(action, {}),
        "action_is_pad": torch.zeros(2, 8, dtype=torch.bool),
    }
    lerobot: Any = theirs.theirs.train()
    _, losses = lerobot.forward(batch)
    from ulna.policies.backbones.latent import divergence
    from ulna.policies.contexts.context import Shown

    net: Any = ours.net
    shown = Shown(ours.normalise_action(action, seen), torch.ones(2, 8, dtype=torch.bool), torch.zeros(2, 4))
    kl = divergence(*net.posterior(ours.encode(seen), shown)).mean()
    assert float(kl) == pytest.approx(losses["kld_loss"], abs=1e-4)


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_what_is_not_the_same_is_said(made: Made, tmp_path: Path) -> None:
    diffusion = made("diffusion")
    vqbet = made("vqbet", cameras=("front",), environment=0)
    for source, words in (
        (vqbet, "LeRobot's vqbet is none of our recipes"),
        (edited(diffusion, tmp_path / "a", beta_schedule="linear"), "beta_schedule is linear"),
        (
            edited(made("act"), tmp_path / "b", feedforward_activation="gelu"),
            "feedforward_activation is gelu",
        ),
    ):
        with pytest.raises(NotMapped, match=words) as caught:
            mapped(f"lerobot:{source}")
        assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="begins the recipe diffusion_unet, not flow"):
        started_recipe(small("flow"), f"lerobot:{diffusion}")
    assert started_recipe(small("flow"), "runs/x") == small("flow")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("act", {"cameras": ("front",), "environment": 0}),
        ("diffusion", {**CAMERAS, "crop_shape": (56, 56), "prediction_type": "sample"}),
    ],
)
def test_a_policy_goes_to_lerobot_and_comes_back(
    made: Made, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    """As after training with us: every weight another one."""
    policy = mapped(f"lerobot:{made(kind, **settings)}")
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "temperature" in name:
                value.fill_(1.5)
            else:
                value.add_(
                    0.03 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)))
                )
    save_checkpoint(tmp_path / "ck", policy, TrainingRecord(control_hz=20.0, robot="so101"))
    exported = export_lerobot(tmp_path / "ck", tmp_path / "out")
    assert (exported.type, exported.why) == (kind, "")
    assert exported.off_by < 1e-4
    theirs = open_policy(f"lerobot:{tmp_path / 'out'}")
    assert theirs.control_hz == 20.0
    assert theirs.policy.features == policy.features
    np.testing.assert_allclose(chunks(theirs.policy), chunks(policy), atol=2e-4)
    from lerobot.policies.factory import get_policy_class

    assert get_policy_class(kind).from_pretrained(tmp_path / "out", strict=True) is not None


def test_what_lerobot_has_not_goes_as_our_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {k: f.shape for k, f in FEATURES.items() if not is_image(k)}
    stats = {k: vector_stats(rng.normal(size=(50, *shape))) for k, shape in vectors.items()}
    save_checkpoint(tmp_path / "ck", Policy(small("flow"), FEATURES, stats), TrainingRecord(control_hz=20.0))
    exported = export_lerobot(tmp_path / "ck", tmp_path / "out")
    assert exported.type == "ulna"
    assert "LeRobot" in exported.why
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["type"] == "ulna"
    assert config["output_features"][ACTION] == {"type": "ACTION", "shape": list(FEATURES[ACTION].shape)}
    assert (tmp_path / "out" / "policy_preprocessor.json").is_file()
    assert (tmp_path / "out" / "policy_postprocessor.json").is_file()
    opened = open_policy(f"lerobot:{tmp_path / 'out'}")
    assert opened.is_ours
    assert opened.policy.content_hash == load_checkpoint(tmp_path / "ck").content_hash
    assert LocalPolicy(f"lerobot:{tmp_path / 'out'}").metadata.recipe == small("flow").name
    with pytest.raises(ValueError, match="out"):
        export_lerobot(tmp_path / "ck", tmp_path / "out")
    with pytest.raises(CheckpointError):
        export_lerobot(tmp_path / "nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_it_becomes_a_checkpoint_of_ours_and_an_onnx_file(made: Made, tmp_path: Path) -> None:
    folder = made("act")
    policy = import_lerobot(f"lerobot:{folder}", tmp_path / "ours")
    opened = open_policy(tmp_path / "ours")
    assert (opened.policy.content_hash, opened.control_hz) == (policy.content_hash, 20.0)
    np.testing.assert_allclose(chunks(opened.policy), chunks(load_lerobot(folder)), atol=1e-4)
    assert export_onnx(tmp_path / "ours", tmp_path / "x.onnx")["off_by"] < 1e-3
    with pytest.raises(NotMapped, match="vqbet"):
        import_lerobot(f"lerobot:{made('vqbet', cameras=('front',), environment=0)}", tmp_path / "other")
    assert not (tmp_path / "other").exists()
