"""An optimiser in 8 bits. What bitsandbytes itself does is tested where it is installed; the suite needs it
not."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.data import write_store
from contracts.recipes import small
from safetensors.torch import load_file

from ulna.policies.parts import override
from ulna.policies.recipe import Recipe
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.state import STATE_FILE

QMAP = torch.linspace(-1, 1, 256)


class Like(torch.optim.Optimizer):
    """Keeps what bitsandbytes keeps, in its shapes: an int, bytes in a dict of their own, one table for
    all. Steps are as long as the moment says, so that a lost one is noticed."""

    def __init__(self, params: Any, lr: float, **more: Any) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                entry = self.state[p]
                if not entry:
                    entry |= {"step": 0, "state1": torch.zeros(p.shape, dtype=torch.uint8), "qmap1": QMAP}
                assert isinstance(entry["step"], int)
                entry["step"] += 1
                entry["state1"].add_(3)
                moment = entry["qmap1"][entry["state1"].long()]
                p.sub_(group["lr"] * (p.grad.sign() + moment / entry["step"]))

    def state_dict(self) -> dict[str, Any]:
        plain = super().state_dict()
        wrapped = {
            i: {"step": e["step"], "quantised": {k: e[k] for k in ("state1", "qmap1")}}
            for i, e in plain["state"].items()
        }
        return {**plain, "state": wrapped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        places = [p for group in self.param_groups for p in group["params"]]
        for i, entry in state_dict["state"].items():
            assert entry["state1"].dtype == torch.uint8
            self.state[places[i]] = dict(entry)


@pytest.fixture
def like(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the package."""
    package = types.ModuleType("bitsandbytes")
    package.optim = types.SimpleNamespace(AdamW8bit=Like)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)


def asked(**training: Any) -> Recipe:
    changes = {"optimiser": "adamw8bit", "checkpoint_every": 4, "steps": 10, **training}
    return override(small("flow"), {f"training.{k}": v for k, v in changes.items()})


def resumes(tmp_path: Path) -> None:
    """A run that is broken after a state was written goes on as the unbroken one."""
    write_store(tmp_path / "d")
    whole = train(asked(), tmp_path / "d", tmp_path / "whole", device="cpu")

    def stop(progress: Any) -> None:
        if progress.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked(), tmp_path / "d", tmp_path / "cut", device="cpu", report=stop)
    cut = load_file(tmp_path / "cut" / STATE_FILE)
    assert {v.dtype for k, v in cut.items() if k.endswith("/state1")} >= {torch.uint8}
    assert {int(v) for k, v in cut.items() if k.startswith("adam/") and k.endswith("/step")} == {4}
    resumed = train(asked(), tmp_path / "d", tmp_path / "cut", device="cpu", resume=True)
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    states = [load_file(tmp_path / name / STATE_FILE) for name in ("whole", "cut")]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_its_state_resumes(like: None, tmp_path: Path) -> None:
    resumes(tmp_path)


def test_without_the_package_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    write_store(tmp_path / "d")
    with pytest.raises(TrainingError, match=r"needs the package bitsandbytes, .*`uv pip install bitsandb"):
        train(asked(), tmp_path / "d", tmp_path / "p", device="cpu")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("fails", ["raises", "does nothing"])
def test_a_device_that_it_cannot_step_on_is_named(
    like: None, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(optimizer: Like, closure: Any = None) -> None:
        if fails == "raises":
            raise NotImplementedError("no kernel")

    monkeypatch.setattr(Like, "step", step)
    write_store(tmp_path / "d")
    with pytest.raises(TrainingError, match="has no 8-bit AdamW for cpu"):
        train(asked(), tmp_path / "d", tmp_path / "p", device="cpu")


def test_the_package_itself_trains_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    resumes(tmp_path)
    plain = train(asked(optimiser="adamw"), tmp_path / "d", tmp_path / "plain", device="cpu")
    whole = load_file(tmp_path / "whole" / STATE_FILE)
    assert plain.losses[-1] > 0
    sizes = [
        sum(v.nbytes for k, v in state.items() if k.startswith("adam/"))
        for state in (whole, load_file(tmp_path / "plain" / STATE_FILE))
    ]
    assert sizes[0] < sizes[1] / 2, "small weights keep 32 bits"
