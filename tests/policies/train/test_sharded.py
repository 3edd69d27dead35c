"""Weights that are spread over processes while they are trained (FSDP), by two processes of one core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from safetensors.torch import load_file

from ulna.datasets.edit import relabel
from ulna.datasets.stats import Stats
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.train.data import DataOptions, open_data, window_spec
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.sharded import is_sharded, require_shardable, units
from ulna.policies.train.state import STATE_FILE, read_header

SIX = {
    "training.steps": 6,
    "training.checkpoint_every": 2,
    "training.accumulate": 2,
    "training.grad_clip": 0.05,
}
FROZEN = {
    **SIX,
    "training.words": 1.0,
    "training.freeze": ["encoder.language.layers.0.*"],
    "training.lora": ["net.inner.*"],
}
OPTIONS = DataOptions(validate=0.34)

# what runs in each process: as without FSDP, with it, and with it once killed in step 5 and resumed
SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from policies.train.test_sharded import OPTIONS, recipe
from ulna.policies.train import loop
from ulna.policies.train.data import open_data
from ulna.policies.train.spread import part

folder, sizes, follower = Path(sys.argv[2]), {}, loop.follower

def watched(average, policy, move):
    for name, of in (("weights", policy), ("average", average.module)):
        sizes[name] = [part(p).numel() for p in of.parameters()]
    return follower(average, policy, move)

loop.follower = watched

def run(name, resume=False):
    return loop.train(recipe(), open_data(folder / "data", options=OPTIONS), folder / name, device="cpu",
                      resume=resume)

os.environ.pop("ACCELERATE_USE_FSDP")
run("whole")
all_of = sizes["weights"]
os.environ["ACCELERATE_USE_FSDP"] = "true"
run("spread")
(folder / f"sizes-{os.environ['RANK']}.json").write_text(json.dumps({**sizes, "all": all_of}))
plain, steps = loop.set_learning_rate, [0]

def stop(*args):
    steps[0] += 1
    if steps[0] == 5:
        raise KeyboardInterrupt
    plain(*args)

loop.set_learning_rate = stop
try:
    run("cut")
except KeyboardInterrupt:
    pass
loop.set_learning_rate = plain
run("cut", resume=True)
"""


def recipe() -> Recipe:
    return override(small("pi05_ki_small", FEATURES), FROZEN)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of three trainings of two processes, started by accelerate with its own option."""
    folder = tmp_path_factory.mktemp("sharded")
    store = write_store(folder / "data", (20, 13, 16))
    relabel(store, [0, 2], {"steps": [("grasp the cube", 0.3), ("lift it", None)]})
    (folder / "script.py").write_text(SCRIPT)
    launch = ["-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0"]
    arguments = [str(folder / "script.py"), str(Path(__file__).parents[2]), str(folder)]
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    }
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield folder
    shutil.rmtree(folder)


def test_each_process_keeps_its_part(runs: Path) -> None:
    both = [json.loads((runs / f"sizes-{rank}.json").read_text()) for rank in range(2)]
    for of in ("weights", "average"):
        sums = [a + b for a, b in zip(both[0][of], both[1][of], strict=True)]
        assert sums == both[0]["all"], "together they have all, and nothing twice"
        assert sum(both[0][of]) < 0.55 * sum(both[0]["all"])


def test_it_computes_what_is_computed_without(runs: Path) -> None:
    """Losses, the held-out ones, weights, averages and moments, clipped and accumulated."""
    headers = [read_header(runs / name / STATE_FILE) for name in ("whole", "spread")]
    assert headers[1]["losses"] == pytest.approx(headers[0]["losses"], rel=1e-5)
    assert headers[1]["validation"] == pytest.approx(headers[0]["validation"], rel=1e-5)
    assert len(headers[1]["validation"]) == 3
    for file in ("model.safetensors", STATE_FILE):
        torch.testing.assert_close(
            *(load_file(runs / n / file) for n in ("whole", "spread")), atol=1e-5, rtol=1e-4
        )


def test_the_checkpoint_is_whole_and_ordinary(runs: Path) -> None:
    spread = load_checkpoint(runs / "spread")
    assert not [m for m in spread.modules() if "FSDP" in type(m).__name__]
    assert not [k for k in spread.state_dict() if "lora" in k], "adapters are added to their weights"
    assert spread.recipe == recipe()


def test_a_killed_run_resumes_and_may_go_on_alone(runs: Path, tmp_path: Path) -> None:
    headers = [read_header(runs / name / STATE_FILE) for name in ("spread", "cut")]
    assert headers[1]["losses"] == pytest.approx(headers[0]["losses"], rel=1e-5)
    torch.testing.assert_close(
        *(load_file(runs / n / "model.safetensors") for n in ("spread", "cut")), atol=1e-5, rtol=1e-4
    )
    shutil.copytree(runs / "cut", tmp_path / "alone")
    more = override(recipe(), {"training.steps": 8})
    alone = train(
        more, open_data(runs / "data", options=OPTIONS), tmp_path / "alone", device="cpu", resume=True
    )
    assert alone.losses[:6] == headers[1]["losses"]
    assert len(alone.losses) == 8


def policy_of(name: str, changes: dict[str, Any], path: Path) -> Policy:
    data = open_data(path)
    made = override(small(name, data.features), changes)
    windows = data.windows(window_spec(made, data.features))
    stats: dict[str, Stats] = windows.stats()
    stats |= made.codec.fit(windows.train, data.features, made.n_past_actions)
    return Policy(made, data.features, stats)


def test_what_cannot_be_spread_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "d")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("flow", {"training.optimiser": "adamw8bit"}, "adamw8bit"),
        ("flow", {"training.compile": True}, "training.compile"),
        ("flow_map", {}, "FlowMap, which differentiates"),
        ("imc", {}, "IMC, which measures"),
        ("harmodt", {}, "masks its weights"),
        ("grif", {}, "single numbers, as grif has"),
    ]
    for name, changes, says in cases:
        with pytest.raises(TrainingError, match=says):
            require_shardable(policy_of(name, changes, tmp_path / "d"))
    plain = policy_of("flow", {}, tmp_path / "d")
    require_shardable(plain)
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(TrainingError, match="FSDP_OFFLOAD_PARAMS"):
        require_shardable(plain)


def test_a_block_that_is_not_called_is_spread_by_its_parts(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    of = {type(m).__name__ for m in units(policy_of("pi05_ki_small", {}, tmp_path / "d"))}
    assert of == {"GatedMLP", "AdaptiveNorm"}
    assert {type(m).__name__ for m in units(policy_of("hyperzero", {}, tmp_path / "d"))}.isdisjoint(
        {"TaskNet"}
    )


def test_a_process_that_was_not_launched_has_nobody_to_share_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert Accelerator(cpu=True).num_processes == 1
    assert not is_sharded()
