"""LeRobot's policies behind ours: equal to what LeRobot itself gives, steered where there is a field, and
refused in a sentence where something cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_folders import JOINTS, policy_folder
from torch import Tensor

from ulna.datasets.features import ACTION, Features
from ulna.policies.export.onnx import export_onnx
from ulna.policies.export.program import NotExportable
from ulna.policies.field import Field
from ulna.policies.hashed import CheckpointError
from ulna.policies.hooks.hook import Hook
from ulna.policies.lerobot.folder import (
    checkpoint_folder,
    content_hash,
    named_hash,
    read_folder,
    state_units,
    undo_stated,
)
from ulna.policies.opened import open_policy
from ulna.policies.request import Request
from ulna.policies.serving.batch import BatchPolicy
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.protocol import BadRequest
from ulna.robot.statement import Statement

Made = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Folders of policies, each made once."""
    folders: dict[str, Path] = {}

    def of(kind: str, **settings: Any) -> Path:
        name = f"{kind} {settings}"
        if name not in folders:
            folders[name] = policy_folder(
                tmp_path_factory.mktemp(kind) / "pretrained_model", kind, **settings
            )
        return folders[name]

    return of


def local(folder: Path, **options: Any) -> LocalPolicy:
    return LocalPolicy(f"lerobot:{folder}", **options)


def observation(features: Features, n_obs_steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    drawn = {}
    for key, f in features.items():
        if key != ACTION:
            shape = (n_obs_steps, *f.shape)
            drawn[key] = rng.integers(0, 256, shape) if f.dtype == "uint8" else rng.uniform(-1, 1, shape)
            drawn[key] = drawn[key].astype(f.dtype)
    return drawn


def theirs(folder: Path, seen: dict[str, np.ndarray]) -> tuple[Any, dict[str, Any], Any]:
    """(LeRobot's own policy, what its processor makes of each observation in turn, its post-processor)."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config: Any = PreTrainedConfig.from_pretrained(folder)
    policy: Any = get_policy_class(config.type).from_pretrained(folder).eval()
    prepare, finish = make_pre_post_processors(config, pretrained_path=str(folder))
    steps = []
    for t in range(len(next(iter(seen.values())))):
        batch: dict[str, Any] = {}
        for key, value in seen.items():
            tensor = torch.from_numpy(value[t])
            batch[key] = tensor.permute(2, 0, 1).float() / 255 if tensor.dtype == torch.uint8 else tensor
        steps.append(prepare({k: v[None] for k, v in batch.items()}))
    return policy, {"steps": steps}, finish


@pytest.mark.parametrize("settings", [{}, {"cameras": ("front", "wrist"), "environment": 0}])
def test_act_gives_what_lerobot_gives(made: Made, settings: dict[str, Any]) -> None:
    folder = made("act", **settings)
    policy = local(folder)
    m = policy.metadata
    assert (m.recipe, m.n_obs_steps, m.horizon, m.n_action_steps, m.control_hz) == (
        "lerobot act",
        1,
        8,
        4,
        20,
    )
    assert (m.features[ACTION].names, set(m.features[ACTION].units)) == (JOINTS, {"rad"})
    seen = observation(m.features, 1)
    lerobot, prepared, finish = theirs(folder, seen)
    expected = finish(lerobot.predict_action_chunk(prepared["steps"][0]))[0].numpy()
    reply = policy.infer(Request(seen, 0).to_wire())
    np.testing.assert_allclose(reply["actions"], expected, atol=1e-6)
    assert reply["nfe"] == 1
    assert reply["checkpoint"] == content_hash(folder) == named_hash(f"lerobot:{folder}")


def test_acts_ensemble_is_ours(made: Made) -> None:
    m = local(made("act", temporal_ensemble_coeff=0.05, n_action_steps=1)).metadata
    assert (m.decoder, m.ensemble_decay, m.n_action_steps) == ("ensemble", 0.05, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 5},
        {"num_inference_steps": 7, "prediction_type": "sample", "cameras": ("front",), "environment": 0},
        {"noise_scheduler_type": "DDIM", "clip_sample": False, "beta_schedule": "linear"},
    ],
)
def test_diffusion_gives_what_lerobot_gives_from_the_same_noise(made: Made, settings: dict[str, Any]) -> None:
    """Levels, steps, clipping and what is drawn on the way, of DDPM and of DDIM."""
    folder = made("diffusion", **settings)
    policy = local(folder)
    m = policy.metadata
    assert (m.n_obs_steps, m.horizon, m.n_past_actions, m.n_action_steps) == (2, 8, 1, 4)
    seen = observation(m.features, 2)
    lerobot, prepared, finish = theirs(folder, seen)
    first = torch.empty(0)
    for step in prepared["steps"]:  # as on a robot: an observation a tick, and the queue is used up between
        lerobot._queues[ACTION].clear()
        torch.manual_seed(3)
        first = lerobot.select_action(dict(step))
    rest = torch.stack(list(lerobot._queues[ACTION]), dim=1)
    expected = finish(torch.cat([first[:, None], rest], dim=1))[0].numpy()
    torch.manual_seed(3)
    shape = (1, m.horizon, 6)
    request = Request({k: torch.from_numpy(v)[None] for k, v in seen.items()}, 0)
    sampled = policy.policy.sample(request, noise=lambda: torch.randn(shape))
    ours = sampled.chunk[0, m.n_past_actions :][: m.n_action_steps].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert int(sampled.nfe) == m.sampling_steps


def test_vqbet_gives_what_lerobot_gives(made: Made) -> None:
    """At a temperature at which its draw is none."""
    folder = made("vqbet", cameras=("front",), environment=0, bet_softmax_temperature=1e-6)
    policy = local(folder)
    m = policy.metadata
    assert (m.n_obs_steps, m.horizon, m.n_past_actions) == (3, 4, 0)
    seen = observation(m.features, 3)
    lerobot, prepared, finish = theirs(folder, seen)
    first = torch.empty(0)
    for step in prepared["steps"]:
        lerobot._queues[ACTION].clear()
        first = lerobot.select_action(dict(step))
    expected = finish(torch.stack([first, *lerobot._queues[ACTION]], dim=1))[0].numpy()
    np.testing.assert_allclose(policy.infer(Request(seen, 0).to_wire())["actions"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("act", {}),
        ("diffusion", {}),
        ("vqbet", {"cameras": ("front",), "environment": 0, "bet_softmax_temperature": 5.0}),
    ],
)
def test_a_row_of_a_batch_is_what_it_is_alone(made: Made, kind: str, settings: dict[str, Any]) -> None:
    policy = local(made(kind, **settings))
    n = policy.metadata.n_obs_steps
    requests = [Request(observation(policy.metadata.features, n, i), i) for i in range(3)]
    together = BatchPolicy(policy).infer_many([r.to_wire() for r in requests])
    for request, reply in zip(requests, together, strict=True):
        assert isinstance(reply, dict)
        np.testing.assert_allclose(reply["actions"], policy.infer(request.to_wire())["actions"], atol=1e-5)
    answers = BatchPolicy(policy).decide(requests)
    np.testing.assert_allclose(answers.chunks[1], together[1]["actions"], atol=1e-5)  # type: ignore[index]
    same = [policy.infer(Request(requests[0].observation, s).to_wire())["actions"] for s in (5, 5, 6, 7, 8)]
    np.testing.assert_array_equal(same[0], same[1])
    differs = any(not np.array_equal(same[0], other) for other in same[2:])
    assert differs == (kind != "act"), "seeds count where something is drawn"


@dataclass(frozen=True)
class Highest(Hook):
    """Of several chunks the one whose first action ahead is highest."""

    @property
    def wants_candidates(self) -> int:
        return 8

    def score(self, chunks_BNHA: Tensor, field: Field) -> Tensor:
        return field.unnormalise(chunks_BNHA.flatten(0, 1))[:, field.n_past_actions, 0].reshape(
            chunks_BNHA.shape[:2]
        )


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("diffusion", {}),
        ("vqbet", {"cameras": ("front",), "environment": 0, "bet_softmax_temperature": 5.0}),
    ],
)
def test_the_best_of_several_is_chosen(made: Made, kind: str, settings: dict[str, Any]) -> None:
    """H5, with a field and without."""
    folder = made(kind, **settings)
    plain, choosing = local(folder), local(folder, hooks=[Highest()])
    request = Request(observation(plain.metadata.features, plain.metadata.n_obs_steps), 1).to_wire()
    one, best = plain.infer(request), choosing.infer(request)
    assert best["nfe"] == 8 * one["nfe"]
    assert best["actions"][0, 0] >= one["actions"][0, 0]
    seeds = [
        choosing.infer(request | {"_rt": {"seed": s}})["actions"][0, 0]
        - plain.infer(request | {"_rt": {"seed": s}})["actions"][0, 0]
        for s in range(4)
    ]
    assert max(seeds) > 0


def wire(policy: LocalPolicy, steering: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    n = policy.metadata.n_obs_steps
    seen = observation(policy.metadata.features, n)
    return Request(seen, 1, options={"steering": steering}, **more).to_wire()


def test_diffusions_field_is_steered(made: Made) -> None:
    """H1 RTI, H2 RTC, H3 Inpaint, H5 PastVerification, as for a policy of ours."""
    policy = local(made("diffusion"))
    past = np.zeros((1, 6), np.float32) + 0.2
    left = np.zeros((4, 6), np.float32) + 0.3
    plain = policy.infer(wire(policy, []))
    rti = policy.infer(wire(policy, [{"part": "RTI", "steps": 3}], previous=left, past=past))
    assert rti["nfe"] == 3 < plain["nfe"]
    free = policy.infer(wire(policy, [{"part": "RTC"}], delay=2))
    np.testing.assert_array_equal(free["actions"], plain["actions"])  # nothing is left: bit-identical
    held = policy.infer(wire(policy, [{"part": "RTC"}], previous=left, past=past, delay=2))

    def apart(reply: dict[str, Any]) -> float:
        return float(np.abs(reply["actions"][:2] - left[:2]).mean())

    assert apart(held) < 0.7 * apart(plain)
    inpainted = policy.infer(wire(policy, [{"part": "Inpaint"}], past=past))
    assert not np.array_equal(inpainted["actions"], plain["actions"])
    request = Request(
        {k: torch.from_numpy(v)[None] for k, v in observation(policy.metadata.features, 2).items()},
        1,
        torch.from_numpy(past)[None],
    )
    from ulna.policies.hooks.inpaint import Inpaint

    chunk = policy.policy.sample(request, [Inpaint()]).chunk
    np.testing.assert_allclose(chunk[0, :1].numpy(), past, atol=1e-4)
    verified = policy.infer(wire(policy, [{"part": "PastVerification", "candidates": 3}], past=past))
    assert verified["nfe"] == 3 * plain["nfe"]
    fewer = policy.infer(Request(observation(policy.metadata.features, 2), 1, options={"steps": 5}).to_wire())
    assert fewer["nfe"] == 5


@pytest.mark.parametrize("kind", ["act", "vqbet"])
def test_what_has_no_field_says_so(made: Made, kind: str) -> None:
    settings: dict[str, Any] = {"cameras": ("front",), "environment": 0} if kind == "vqbet" else {}
    policy = local(made(kind, **settings))
    for part, words in (
        ("RTC", "has no such way: use the strategy overlap or ensemble"),
        ("RTI", "has no such way"),
        ("PastVerification", "has n_past_actions 0"),
        ("CFG", "no condition to leave out"),
    ):
        with pytest.raises(BadRequest, match=words) as caught:
            policy.infer(wire(policy, [{"part": part}]))
        assert "\n" not in str(caught.value)
    seen = observation(policy.metadata.features, policy.metadata.n_obs_steps)
    with pytest.raises(BadRequest, match=r"in one step|own number of steps"):
        policy.infer(Request(seen, 1, options={"steps": 5}).to_wire())


def test_units_that_are_stated_are_converted_both_ways(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(made("act"), folder)
    before = local(folder)
    (folder / "train_config.json").unlink()
    silent = read_folder(folder)
    assert (silent.features[ACTION].names, silent.features[ACTION].units, silent.control_hz) == ((), (), None)
    statement = Statement("degrees", JOINTS, arm="so101")
    features = state_units(folder, statement.applied)
    assert (features[ACTION].names, set(features[ACTION].units)) == (JOINTS, {"rad"})
    policy = local(folder)
    assert policy.metadata.checkpoint != before.metadata.checkpoint, "it is another policy"
    with pytest.raises(CheckpointError, match="was stated already"):
        state_units(folder, statement.applied)
    elements = {k: statement.applied(silent.features, "").elements[k] for k in ("observation.state", ACTION)}
    scale, offset = (
        np.array([getattr(e, n) for e in elements[ACTION]], np.float32) for n in ("scale", "offset")
    )
    assert 0 < scale[0] < 0.02
    seen = observation(policy.metadata.features, 1)
    in_degrees = {**seen, "observation.state": (seen["observation.state"] - offset) / scale}
    expected = before.infer(Request(in_degrees, 0).to_wire())["actions"] * scale + offset
    np.testing.assert_allclose(policy.infer(Request(seen, 0).to_wire())["actions"], expected, atol=1e-5)
    undo_stated(folder)
    assert not (folder / "ulna.json").exists()


def test_a_constant_element_does_not_break_hooks(made: Made) -> None:
    """Of a joint that never moved nothing is to be divided by."""
    policy: Any = local(made("diffusion")).policy
    policy.codec.scale[2] = 0
    chunk = policy.normalise_action(torch.ones(1, 8, 6), {})
    assert bool(torch.isfinite(chunk).all())
    assert float(chunk[0, 0, 2]) == 0


def edited(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_what_cannot_be_loaded_is_one_sentence(made: Made, tmp_path: Path) -> None:
    act = made("act")
    (tmp_path / "empty").mkdir()
    empty = edited(act, tmp_path / "typeless", type=3)
    foreign = edited(act, tmp_path / "foreign", type="nothing_known")
    planner = edited(act, tmp_path / "planner", type="tdmpc")
    odd = edited(act, tmp_path / "odd", surprising=3)
    other = edited(act, tmp_path / "other", dim_model=64)
    blind = edited(act, tmp_path / "blind", input_features=None)
    broken = edited(act, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no weights")
    for source, words in (
        (f"lerobot:{tmp_path / 'nowhere'}", "there is no folder .*nowhere with a policy of LeRobot"),
        (f"lerobot:{tmp_path / 'empty'}", "holds no policy of LeRobot: name the folder pretrained_model"),
        ("lerobot:nobody/nothing", "fetch it with `ulna pull nobody/nothing`"),
        (f"lerobot:{empty}", "names no type"),
        (f"lerobot:{foreign}", "install the plug-in lerobot_policy_nothing_known"),
        (f"lerobot:{planner}", "LeRobot's tdmpc is not served: it plans from its last plan"),
        (f"lerobot:{odd}", "that LeRobot cannot load"),
        (f"lerobot:{other}", "that LeRobot cannot load"),
        (f"lerobot:{blind}", "does not say what the policy sees and commands"),
        (f"lerobot:{broken}", "that LeRobot cannot load"),
        (str(act), f"is a policy of LeRobot: name it lerobot:{act}"),
    ):
        with pytest.raises(CheckpointError, match=words) as caught:
            open_policy(source)
        assert "\n" not in str(caught.value), source


def test_a_package_that_lacks_is_named(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("lerobot")
    try:
        import transformers  # noqa: F401  # pyright: ignore[reportMissingImports]

        pytest.skip("it is installed here")
    except ImportError:
        pass
    folder = tmp_path / "vla"
    shutil.copytree(made("act"), folder)
    config = json.loads((folder / "config.json").read_text())
    kept = {k: config[k] for k in ("input_features", "output_features", "device")}
    (folder / "config.json").write_text(json.dumps({"type": "smolvla", **kept}))
    with pytest.raises(CheckpointError, match=r"smolvla needs a package more.*transformers.*ulna\[vla\]"):
        open_policy(f"lerobot:{folder}")


def test_the_folder_of_a_training_is_found(made: Made, tmp_path: Path) -> None:
    act = made("act")
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "000002").mkdir(parents=True)
    (checkpoints / "000002" / "pretrained_model").symlink_to(act)
    (checkpoints / "last").symlink_to("000002")
    for name in (tmp_path / "run", checkpoints, checkpoints / "last", checkpoints / "000002"):
        assert checkpoint_folder(f"lerobot:{name}").resolve() == act.resolve()


def test_a_policy_in_the_hubs_cache_needs_no_network(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act, repo, revision = made("act"), tmp_path / "models--someone--act", "0" * 40
    shutil.copytree(act, repo / "snapshots" / revision)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert named_hash("lerobot:someone/act") == content_hash(act)
    with pytest.raises(CheckpointError, match="ulna pull someone/other"):
        checkpoint_folder("lerobot:someone/other")


def test_pictures_of_other_names_get_ours(made: Made, tmp_path: Path) -> None:
    """As in LeRobot's pusht: `observation.image`."""
    features = {
        "observation.state": {"type": "STATE", "shape": [2]},
        "observation.image": {"type": "VISUAL", "shape": [3, 8, 9]},
    }
    out = {"action": {"type": "ACTION", "shape": [2]}}
    folder = edited(made("act"), tmp_path / "p", input_features=features, output_features=out)
    found = read_folder(folder)
    assert found.features["observation.images.image"].shape == (8, 9, 3)
    assert found.keys["observation.images.image"] == "observation.image"


def test_it_is_not_exported_as_ours(made: Made, tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match="begin one of ours from it"):
        export_onnx(f"lerobot:{made('act')}", tmp_path / "x.onnx")
