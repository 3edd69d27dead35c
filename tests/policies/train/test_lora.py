"""Low-rank adapters, what stays beside them, and gradient checkpointing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import SMALL, small
from safetensors.torch import load_file
from torch import nn

from ulna.policies.checkpoint import load_checkpoint, read_train
from ulna.policies.matrices import matrices
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Training
from ulna.policies.request import Request
from ulna.policies.train.data import TrainingData, open_data, tensors, window_spec
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.lora import LowRank, adapt, is_adapter, merge, plain
from ulna.policies.train.optimiser import freeze
from ulna.policies.train.recompute import blocks, recompute
from ulna.policies.train.state import STATE_FILE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return open_data(write_store(tmp_path_factory.mktemp("data") / "d").path)


@pytest.fixture(scope="module")
def first(data: TrainingData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "p"
    return train(small("diffusion_transformer"), data, folder, device="cpu").checkpoint


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def lora(first: Path, *modules: str, **training: Any) -> Any:
    given = {"start": str(first), "lora": modules, "lora_rank": 3, "lora_alpha": 6.0, "learning_rate": 1e-2}
    return small("diffusion_transformer", **{**given, **training})


@pytest.mark.parametrize("kind", ["linear", "conv", "grouped", "attention"])
def test_an_adapter_adds_a_product_of_thin_matrices(kind: str) -> None:
    torch.manual_seed(0)
    module, x = {
        "linear": (nn.Linear(5, 4), torch.randn(2, 5)),
        "conv": (nn.Conv1d(5, 4, 3), torch.randn(2, 5, 7)),
        "grouped": (nn.Conv2d(4, 4, 3, groups=2), torch.randn(2, 4, 5, 5)),
        "attention": (nn.MultiheadAttention(4, 2, batch_first=True), torch.randn(2, 3, 4)),
    }[kind]
    net = nn.Sequential()
    net.add_module("it", module)
    (matrix, *_) = matrices(net)
    name, before = matrix.name, matrix.value.detach().clone()
    call = (lambda: module(x, x, x)[0]) if kind == "attention" else (lambda: module(x))
    same = call()
    adapt(net, Training(lora=("it",), lora_rank=2, lora_alpha=3.0))
    assert torch.equal(call(), same), "at first an adapter changes nothing"
    of = {plain(n): p for n, p in net.named_parameters()}
    a, b = of[f"it.{name}.lora_A"], of[f"it.{name}.lora_B"]
    b.data.normal_()
    wanted = before + 1.5 * (b @ a).detach().reshape(before.shape)
    adapted = call()
    merge(net)
    torch.testing.assert_close(getattr(module, name).detach(), wanted)
    torch.testing.assert_close(call(), adapted)
    assert f"it.{name}" in net.state_dict()
    assert not any("lora" in n or "parametrizations" in n for n in net.state_dict())


def test_dropout_leaves_whole_inputs_out_and_only_in_training() -> None:
    torch.manual_seed(0)
    adapter = LowRank(torch.zeros(4, 1000), 2, 2.0, 0.25)
    adapter.lora_B.data.normal_()
    full = adapter.eval()(torch.zeros(4, 1000))
    dropped = adapter.train()(torch.zeros(4, 1000))
    out = (dropped == 0).all(0)
    assert 0.15 < out.float().mean() < 0.35
    torch.testing.assert_close(dropped[:, ~out], full[:, ~out] / 0.75)


def test_only_adapters_train_and_the_checkpoint_is_like_any_other(
    data: TrainingData, first: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    train(lora(first, "net.decoder.*"), data, tmp_path / "p", device="cpu", say=notes.append)
    before, after = weights(first), weights(tmp_path / "p")
    assert after.keys() == before.keys()
    for name, value in after.items():
        moved = name.startswith("net.decoder.") and value.ndim > 1
        assert torch.equal(value, before[name]) != moved, name
        if moved:
            assert torch.linalg.matrix_rank((value - before[name]).double(), rtol=1e-4) <= 3, name
    trained = [n for n in notes if "have adapters" in n]
    assert trained == [n for n in trained if n.startswith("12 matrices have adapters; ")]
    policy = load_checkpoint(tmp_path / "p")
    assert read_train(tmp_path / "p").parameters == sum(p.numel() for p in policy.parameters())
    observation = {k: torch.zeros(1, 2, *f.shape) for k, f in FEATURES.items() if k != "action"}
    assert policy.sample(Request(observation, 0)).chunk.isfinite().all()
    # and may be begun from
    recipe = small("diffusion_transformer", start=str(tmp_path / "p"), steps=1, learning_rate=0.0)
    train(recipe, data, tmp_path / "q", device="cpu")
    assert all(torch.equal(v, after[k]) for k, v in weights(tmp_path / "q").items())


def test_what_is_unfrozen_and_what_is_new_trains_beside_adapters(
    data: TrainingData, first: Path, tmp_path: Path
) -> None:
    recipe = override(lora(first, "net.decoder.*", unfreeze=("net.memory.*",)), {"horizon": 12})
    train(recipe, data, tmp_path / "p", device="cpu")
    before, after = weights(first), weights(tmp_path / "p")
    new = {n for n, v in after.items() if v.shape != before[n].shape}
    assert new == {"net.action_positions"}
    for name in after.keys() - new:
        adapted = name.startswith("net.decoder.") and after[name].ndim > 1
        moves = name.startswith("net.memory.") or adapted
        assert torch.equal(after[name], before[name]) != moves, name
    policy = Policy(recipe, FEATURES, load_checkpoint(tmp_path / "p").stats)
    taken = {n for n, v in policy.state_dict().items() if v.shape == before[n].shape}
    adapt(policy, recipe.training)
    freeze(policy, recipe.training, taken)
    assert new <= {plain(n) for n, p in policy.named_parameters() if p.requires_grad}


def test_freezing_keeps_weights_and_lets_their_adapters_learn(
    data: TrainingData, first: Path, tmp_path: Path
) -> None:
    recipe = lora(first, "net.out", freeze=("net.*",), unfreeze=("net.time.*",))
    train(recipe, data, tmp_path / "p", device="cpu")
    before, after = weights(first), weights(tmp_path / "p")
    moved = {n for n, v in after.items() if not torch.equal(v, before[n])}
    assert moved == {"net.out.weight", *(n for n in after if n.startswith("net.time."))}


@pytest.mark.parametrize("name", sorted({*SMALL} - {"harmodt"}))  # which refuses them
def test_every_recipe_takes_adapters(name: str, data: TrainingData) -> None:
    recipe = small(name)
    windows = data.windows(window_spec(recipe, data.features))
    stats = windows.stats() | recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    torch.manual_seed(0)
    policy = Policy(recipe, data.features, stats)
    before = {n: v.clone() for n, v in policy.state_dict().items()}
    t = override(recipe, {"training.lora": "*"}).training
    adapt(policy, t)
    freeze(policy, t, set(before))
    batch = tensors(windows.train.batch(windows.indices(4, 0, 0)), "cpu")
    if "IMC" in type(recipe.objective).__name__:
        batch["table"] = torch.full((4, 3), 1 / 3)
    policy.train().loss(batch).backward()
    gradients = {plain(n): p.grad for n, p in policy.named_parameters() if p.requires_grad}
    assert all(is_adapter(n) for n in gradients)
    assert any(g is not None and bool(g.any()) for g in gradients.values())
    merge(policy)
    after = policy.state_dict()
    counted = ("settled", "joint", "calls", "known")  # buffers that training moves
    same = [n for n in after if n in before and n.rsplit(".", 1)[-1] not in counted]
    assert all(torch.equal(after[n], before[n]) for n in same)
    assert after.keys() == before.keys()


def test_a_resumed_training_with_adapters_is_that_of_an_unbroken_run(
    data: TrainingData, first: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.step == 5:
            raise Stop

    whole = train(lora(first, "net.*", lora_dropout=0.2), data, tmp_path / "whole", device="cpu")
    recipe = lora(first, "net.*", lora_dropout=0.2)
    with pytest.raises(Stop):
        train(recipe, data, tmp_path / "p", device="cpu", report=stop)
    assert any("lora_A" in k for k in load_file(tmp_path / "p" / STATE_FILE))
    resumed = train(recipe, data, tmp_path / "p", device="cpu", resume=True)
    assert resumed.content_hash == whole.content_hash
    longer = lora(first, "net.*", lora_dropout=0.2, steps=8)
    assert train(longer, data, tmp_path / "p", device="cpu", resume=True).steps == 8


def test_what_cannot_be_adapted_is_said(data: TrainingData, first: Path, tmp_path: Path) -> None:
    def refused(sentence: str, **training: Any) -> None:
        with pytest.raises(TrainingError, match=sentence):
            train(lora(first, **{"lora": ("net.*",), **training}), data, tmp_path / "p", device="cpu")
        assert not (tmp_path / "p").exists()

    refused(r"--training.lora net.decodr.\* matches no linear layer.*net.decoder.\*", lora=("net.decodr.*",))
    refused("training.lora-rank 0 is at least 1", lora_rank=0)
    refused("training.lora-dropout 1 from 0 to below 1", lora_dropout=1.0)
    refused(r"--training.unfreeze encodr.\* matches no weight", unfreeze=("encodr.*",))
    notes: list[str] = []
    train(lora(first, "net.*", start=""), data, tmp_path / "q", device="cpu", say=notes.append)
    assert any("training.start names no checkpoint" in n for n in notes)


@pytest.mark.parametrize(
    "name", ["flow", "diffusion_transformer", "act", "moh", "vq_bet", "regression_mlp", "pi05_small"]
)
def test_computing_blocks_again_gives_the_same_gradients_for_less_memory(
    name: str, data: TrainingData
) -> None:
    recipe = small(name)
    if hasattr(recipe.backbone, "dropout"):
        recipe = override(recipe, {"backbone.dropout": 0.1})
    windows = data.windows(window_spec(recipe, data.features))
    stats = windows.stats() | recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    results = []
    for again in (False, True):
        torch.manual_seed(0)
        policy = Policy(recipe, data.features, stats).train()
        if again:
            recompute(policy)
        batch, kept = tensors(windows.train.batch(windows.indices(8, 0, 0)), "cpu"), [0]

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept[0] += tensor.numel()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = policy.loss(batch, 0.5)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in policy.parameters()], kept[0]))
    (loss, gradients, memory), (other_loss, other, less) = results
    assert torch.equal(loss, other_loss)
    for mine, theirs in zip(gradients, other, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs)
    assert less < 0.8 * memory, (less, memory)


def test_a_training_that_recomputes_ends_in_the_same_checkpoint(data: TrainingData, tmp_path: Path) -> None:
    both = [
        train(small("diffusion_transformer", recompute=v), data, tmp_path / str(v), device="cpu")
        for v in (False, True)
    ]
    assert both[0].losses == both[1].losses
    plain_weights, other = (weights(r.checkpoint) for r in both)
    assert all(torch.equal(v, other[k]) for k, v in plain_weights.items())


def test_what_cannot_be_computed_again_is_said(data: TrainingData, tmp_path: Path) -> None:
    for name, sentence in (("flow_map", "does not go with FlowMap"), ("ebt", "does not go with EBT")):
        with pytest.raises(TrainingError, match=sentence):
            train(small(name, recompute=True), data, tmp_path / name, device="cpu")
    net = nn.Module()
    net.layers = nn.ModuleList(nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1)) for _ in range(2))
    assert not list(blocks(net)), "its statistics would be taken twice"
