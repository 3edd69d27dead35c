"""Several views as one scene: what attends to what, what is learned beside the policy, and that no policy
needs it when it acts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contracts.data import FEATURES
from contracts.recipes import small
from torch import Tensor

from ulna.datasets.episode import StoreError
from ulna.datasets.features import CAMERA_POSE, DEPTH, IMAGES, STATE, Feature, Features, state_keys
from ulna.datasets.reading.windows import Windows, WindowSpec
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.encoders.gp3 import GP3, Geometry, GP3Encoder, Scene, pose_error
from ulna.policies.encoders.vector import SmallCNN
from ulna.policies.parts import override
from ulna.policies.recipe import Recipe
from ulna.policies.request import Request
from ulna.policies.train.data import DataOptions, open_data, window_spec
from ulna.policies.train.loop import train

CNN = SmallCNN(channels=(8, 8), crop=1.0)
PART = GP3(width=8, image=CNN, depth=1, heads=2, tokens=3)
SIZE = (16, 24)
VIEWS: Features = {**FEATURES, **{IMAGES + c: Feature((*SIZE, 3), "uint8") for c in ("left", "right")}}
POSE = (*"xyz", *(f"q{c}" for c in "xyzw"))


def features(scale: str = "mm", depth_size: tuple[int, int] = (8, 12)) -> Features:
    """Two views, of which the left one has depth, and where the right one is."""
    depth = Feature(depth_size, "uint16", (), (scale,) if scale else ())
    pose = Feature((7,), "float32", POSE, ("m",) * 3 + ("1",) * 4)
    return {**VIEWS, DEPTH + "left": depth, CAMERA_POSE + "right": pose}


def metres(t: int, size: tuple[int, int]) -> np.ndarray:
    """Depth at tick t: a slope, and no reading in its first row."""
    depth = 0.5 + 0.01 * t + 0.02 * np.arange(size[0] * size[1]).reshape(size)
    depth[0] = 0
    return depth


def write(path: Path, of: Features, steps_per_m: float = 1000.0, length: int = 12) -> EpisodeStore:
    """An episode of `of`, depth in steps of 1 / steps_per_m."""
    store, rng = EpisodeStore.create(path, of, 20.0, "test robot"), np.random.default_rng(0)
    with EpisodeWriter(store) as writer:
        writer.start({"task": "go"})
        for t in range(length):
            values: dict[str, np.ndarray] = {}
            for key, f in of.items():
                if f.dtype == "uint8":
                    values[key] = rng.integers(0, 256, f.shape, dtype=np.uint8)
                elif f.dtype == "uint16":
                    values[key] = np.round(metres(t, f.shape) * steps_per_m).astype(np.uint16)  # type: ignore[arg-type]
                elif key.startswith(CAMERA_POSE):
                    values[key] = np.array([0.1, 0.2, 0.3, 0, 0, 0, 1], np.float32)
                else:
                    values[key] = np.sin(0.1 * t + np.arange(f.shape[0])).astype(np.float32)
            writer.tick(values, dict.fromkeys(values, (t * 50_000_000, t * 50_000_000)))
        writer.end({"success": True})
    return store


def built(part: GP3 = PART) -> GP3Encoder:
    torch.manual_seed(0)
    return part.build(VIEWS)


def observation(b: int = 2, t: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(1)
    pictures = {
        k: torch.randint(0, 256, (b, t, *f.shape), dtype=torch.uint8)
        for k, f in VIEWS.items()
        if k.startswith(IMAGES)
    }
    return {k: torch.randn(b, t, *VIEWS[k].shape) for k in state_keys(VIEWS)} | pictures


def recipe(part: GP3, **changes: object) -> Recipe:
    return replace(override(small("flow", VIEWS, steps=2), changes), encoder=part)


def test_attention_is_within_views_and_across_them_by_turns() -> None:
    torch.manual_seed(0)
    net = Geometry(8, 2, 2).double()
    left, right, other = torch.randn(3, 2, 5, 8, dtype=torch.float64)
    there, _ = net([left, right])
    assert not torch.allclose(there, net([left, other])[0])
    with torch.no_grad():
        for name, weight in net.across.named_parameters():
            if ".out." in name or ".mlp.2." in name:
                weight.zero_()
    assert torch.allclose(net([left, right])[0], net([left, other])[0], atol=1e-12)


def test_a_layer_is_plain_attention_element_by_element() -> None:
    torch.manual_seed(0)
    layer, x = Geometry(8, 1, 2).double().within[0], torch.randn(1, 3, 8, dtype=torch.float64)
    normal = layer.before(x)  # type: ignore[operator]
    q, k, v = layer.qkv(normal)[0].split(8, dim=-1)  # type: ignore[operator]
    found = torch.zeros(3, 8, dtype=torch.float64)
    for head in (slice(0, 4), slice(4, 8)):
        for i in range(3):
            share = torch.stack([q[i, head] @ k[j, head] / 2 for j in range(3)]).softmax(0)
            found[i, head] = sum(share[j] * v[j, head] for j in range(3))
    x2 = x + layer.out(found[None])  # type: ignore[operator]
    assert torch.allclose(layer(x), x2 + layer.mlp(layer.between(x2)), atol=1e-12)  # type: ignore[operator]


def test_views_in_another_order_with_what_tells_them_apart_are_the_same_scene() -> None:
    torch.manual_seed(0)
    net, scene = Geometry(8, 2, 2).double(), Scene(8, 2, 3).double()
    views = [torch.randn(2, n, 8, dtype=torch.float64) for n in (5, 3, 4)]
    out = net(views)
    again = net([views[i] for i in (2, 0, 1)])
    for i, j in enumerate((2, 0, 1)):
        assert torch.allclose(again[i], out[j], atol=1e-12)
    assert torch.allclose(scene(torch.cat(again, 1)), scene(torch.cat(out, 1)), atol=1e-12)

    encoder, seen = built(), observation()
    left, right = IMAGES + "left", IMAGES + "right"
    swapped = {**seen, left: seen[right], right: seen[left]}
    with torch.no_grad():
        before = encoder(seen)
        assert not torch.allclose(encoder(swapped), before, atol=1e-4)
        encoder.views.copy_(encoder.views.flip(0))
        assert torch.allclose(encoder(swapped), before, atol=1e-5)


def test_of_each_step_a_token_of_each_vector_and_some_of_the_scene() -> None:
    encoder, seen = built(), observation()
    tokens = encoder(seen)
    assert tokens.shape == (2, 2, encoder.tokens_per_frame, encoder.width) == (2, 2, 2 + 3, 8)
    targets = {DEPTH + "left": torch.ones(2, 2, 4, 4)}
    given, losses = encoder.learned(seen, targets)
    assert torch.equal(given, tokens), "what is learned from changes nothing that is seen"
    assert set(losses) == {"depth"}
    (given.square().sum() + losses["depth"]).backward()
    assert not [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_depth_loss_is_the_mean_error_where_there_is_a_reading() -> None:
    encoder, seen = built(GP3(**{**PART.__dict__, "depth_weight": 2.0})), observation(1, 1)
    torch.nn.init.zeros_(encoder.to_depth.weight)
    torch.nn.init.zeros_(encoder.to_depth.bias)
    says = F.softplus(torch.zeros(())).item()
    depth = torch.zeros(1, 1, *SIZE)
    depth[0, 0, 3, 5], depth[0, 0, 9, 20] = 1.0, 0.25
    _, losses = encoder.learned(seen, {DEPTH + "left": depth})
    assert losses["depth"].item() == pytest.approx(2 * (abs(1 - says) + abs(0.25 - says)) / 2, rel=1e-5)
    _, losses = encoder.learned(seen, {DEPTH + "left": torch.zeros(1, 1, *SIZE)})
    assert losses["depth"].item() == 0.0, "nothing is measured"
    # a place of the map tells the pixels under it: the last cell of the first place is row 3, column 3
    assert encoder.fine == 4
    with torch.no_grad():
        encoder.to_depth.bias[15] = 1.0
    shown = encoder.seen_depth(seen)[IMAGES + "left"][0, 0]
    assert shown.shape == SIZE
    third = [torch.arange(n) % 4 == 3 for n in SIZE]
    assert torch.equal(shown > says + 0.1, third[0][:, None] & third[1])


def test_depth_teaches_what_sees_and_a_crop_takes_both() -> None:
    encoder, seen = built(), observation(1, 1)
    encoder.learned(seen, {DEPTH + "left": torch.ones(1, 1, *SIZE)})[1]["depth"].backward()
    first = next(encoder.trunk.parameters())
    assert first.grad is not None
    assert first.grad.any()
    # the same picture as its own depth: cropped at random, each still lies on the other
    part = GP3(**{**PART.__dict__, "image": SmallCNN(channels=(8, 8), crop=0.5)})
    encoder = built(part).train()
    red = torch.rand(4, 1, *SIZE)
    picture = (red * 255).round()[..., None].expand(-1, -1, -1, -1, 3).to(torch.uint8)
    (both, _) = encoder._pictures({IMAGES + "left": picture, IMAGES + "right": picture}, [red, red])
    assert both.shape == (4, 4, 8, 12)
    assert torch.allclose((both[:, 0] + 1) / 2, both[:, 3], atol=1 / 255)


def test_the_same_turn_has_no_error() -> None:
    pose = torch.tensor([[0.1, 0.2, 0.3, 0.5, 0.5, 0.5, 0.5]])
    assert pose_error(pose, pose).item() == 0.0
    turned = torch.cat([pose[:, :3], -3 * pose[:, 3:]], dim=1)
    assert pose_error(turned, pose).item() == pytest.approx(0.0, abs=1e-6)
    moved = pose + torch.tensor([[0.3, 0, 0, 0, 0, 0, 0]])
    assert pose_error(moved, pose).item() == pytest.approx(0.1, rel=1e-5)
    other = torch.tensor([[0.1, 0.2, 0.3, 0, 0, 0, 1.0]])
    assert pose_error(other, pose).item() == pytest.approx((3 * 0.5 + 0.5) / 4, rel=1e-5)


def test_it_learns_how_far_away_things_are() -> None:
    encoder, seen = built(), observation(4, 1)
    depth = 0.3 + seen[IMAGES + "left"][..., 0].float() / 255  # what is red is far
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        loss = encoder.learned(seen, {DEPTH + "left": depth})[1]["depth"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    mean = (depth - depth.median()).abs().mean().item()
    assert losses[-1] < 0.8 * mean < losses[0], "less than the same number for all"


def test_windows_hold_depth_in_metres_to_learn_from(tmp_path: Path) -> None:
    of = features()
    store = write(tmp_path / "d", of)
    spec = window_spec(recipe(replace(PART, of=("left",))), VIEWS)
    assert spec.targets == (DEPTH + "left",)
    windows = Windows(store, spec)
    batch = windows.batch(np.array([0, 5]))
    depth = batch["target." + DEPTH + "left"]
    assert (depth.dtype, depth.shape) == (np.float32, (2, spec.n_obs_steps, 8, 12))
    assert np.allclose(depth[1, -1], metres(5, (8, 12)), atol=6e-4)
    assert not depth[:, :, 0].any(), "no reading"
    assert not [k for k in windows.vectors(np.array([0])) if "depth" in k]
    assert not [k for k in Windows(store, replace(spec, targets=())).batch(np.array([0])) if "target" in k]
    chain = Windows(store, replace(spec, chain=3)).batch(np.array([0]))
    assert chain["target." + DEPTH + "left"].shape == (1, 3, spec.n_obs_steps, 8, 12)
    both = replace(PART, of=("right",), depth_weight=0.0, pose_weight=1.0)
    poses = Windows(store, window_spec(recipe(both), VIEWS)).batch(np.array([3]))
    assert poses["target." + CAMERA_POSE + "right"].shape == (1, spec.n_obs_steps, 7)


def test_datasets_of_different_steps_of_depth_are_one_in_metres(tmp_path: Path) -> None:
    write(tmp_path / "mm", features("mm"))
    write(tmp_path / "tenths", features("0.1 mm"), 10000.0)
    data = open_data([tmp_path / "mm", tmp_path / "tenths"], options=DataOptions(validate=0.0))
    windows = data.windows(window_spec(recipe(replace(PART, of=("left",))), data.features)).train
    batch = windows.batch(np.array([4, 12 + 4]))["target." + DEPTH + "left"]
    assert np.allclose(batch[0], batch[1], atol=6e-4)
    assert batch[0].max() > 0.5


def test_a_policy_learns_with_depth_and_acts_without(tmp_path: Path) -> None:
    write(tmp_path / "d", features())
    part = replace(PART, of=("left",))
    train(recipe(part), tmp_path / "d", tmp_path / "c", device="cpu", track=())
    policy = load_checkpoint(tmp_path / "c").eval()
    assert not [k for k in (*policy.features, *policy.observation_keys) if "depth" in k or "pose" in k]
    seen = observation(1, policy.recipe.n_obs_steps)
    depth = {DEPTH + "left": torch.full((1, 2, 8, 12), 700), CAMERA_POSE + "right": torch.zeros(1, 2, 7)}
    with torch.no_grad():
        without = policy.sample(Request(seen, seed=3)).chunk
        assert torch.equal(policy.sample(Request({**seen, **depth}, seed=3)).chunk, without)

    batch = {
        **seen,
        "action": torch.zeros(1, policy.recipe.horizon, 3),
        "mask": torch.ones(1, policy.recipe.horizon, dtype=torch.bool),
    }
    torch.manual_seed(0)
    alone = policy.loss(batch)
    torch.manual_seed(0)
    more = {"target." + DEPTH + "left": torch.ones(1, 2, 8, 12)}
    _, losses = policy.encoder.learned(
        seen | _normalised(policy, seen), {DEPTH + "left": torch.ones(1, 2, 8, 12)}
    )  # type: ignore[operator]
    assert policy.loss({**batch, **more}).item() == pytest.approx((alone + losses["depth"]).item(), rel=1e-4)
    kept = policy.state_dict()
    poses = replace(PART, of=("right",), depth_weight=0.0, pose_weight=1.0)
    train(recipe(poses), tmp_path / "d", tmp_path / "p", device="cpu", track=())
    assert "encoder.to_pose.weight" in load_checkpoint(tmp_path / "p").state_dict()
    assert "encoder.to_pose.weight" not in kept


def _normalised(policy: object, seen: dict[str, Tensor]) -> dict[str, Tensor]:
    return policy.normalised(seen)  # type: ignore[attr-defined]


def test_what_cannot_be_learned_is_a_sentence(tmp_path: Path) -> None:
    write(tmp_path / "d", features())
    write(tmp_path / "unknown", features(""))

    def learn(part: GP3, data: str = "d", **more: object) -> None:
        train(recipe(part), tmp_path / data, tmp_path / "c", device="cpu", track=(), overwrite=True, **more)  # type: ignore[arg-type]

    with pytest.raises(
        ValueError, match=r"learns from observation\.depth\.right, which .* has not: name the"
    ):
        learn(PART)
    with pytest.raises(StoreError, match=r"depth\.left does not say its unit"):
        learn(replace(PART, of=("left",)), "unknown")
    with pytest.raises(ValueError, match=r"crop shifts pictures, and not observation\.depth\.left"):
        learn(replace(PART, of=("left",)), augment=("crop",))
    with pytest.raises(ValueError, match=r"no camera 'top'.* sees left, right"):
        learn(replace(PART, of=("top",)))
    with pytest.raises(ValueError, match="pictures, and the policy sees none"):
        PART.build(FEATURES)
    with pytest.raises(ValueError, match="multiple of 4 and of heads"):
        replace(PART, width=10).build(VIEWS)
    with pytest.raises(ValueError, match="at least 1, and weights 1 and -1"):
        replace(PART, pose_weight=-1.0).build(VIEWS)
    learn(replace(PART, depth_weight=0.0))
    policy = load_checkpoint(tmp_path / "c")
    assert "encoder.to_depth.weight" not in policy.state_dict()
    with pytest.raises(ValueError, match="has not learned depth"):
        policy.encoder.seen_depth(observation(1))  # type: ignore[operator]


def test_spec_by_itself_reads_no_targets() -> None:
    assert WindowSpec(1, 4, keys=(STATE,)).targets == ()
