"""Words, goals, labels and prompts: from the data through windows and training, over the wire, into a
chunk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small

from ulna.datasets.features import ACTION, ENVIRONMENT, STATE, Feature, Features
from ulna.datasets.stats import vector_stats
from ulna.policies.conditions.goal import Goal
from ulna.policies.conditions.label import Label
from ulna.policies.conditions.prompt import Prompt
from ulna.policies.conditions.words import Words, word_rows
from ulna.policies.contexts.recurrent import Recurrent
from ulna.policies.hooks.guidance import CFG
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.request import Request
from ulna.policies.serving.client import PolicyClient, PolicyServerError
from ulna.policies.serving.local import LocalPolicy
from ulna.policies.serving.metadata import Metadata
from ulna.policies.serving.protocol import BadRequest
from ulna.policies.serving.server import PolicyServer
from ulna.policies.train.data import DataOptions, open_data, window_spec
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train

KINDS: Features = {**FEATURES, "observation.label": Feature((1,), "int64")}
RNG = np.random.default_rng(0)
FLAT = {STATE: np.array([0.1, -0.2, 0.3], np.float32), ENVIRONMENT: np.array([0.2, 0.4], np.float32)}


def recipe(*conditions: object, **changes: object) -> Recipe:
    """Small, and told what the conditions say."""
    base = override(small("flow"), {"backbone": "ResidualMLP", "backbone.width": 32, "sampling_steps": 2})
    return override(base, {"conditions": conditions, **changes})


def policy(*conditions: object, features: Features = FEATURES) -> Policy:
    torch.manual_seed(0)
    stats = {k: vector_stats(RNG.normal(size=(20, *f.shape))) for k, f in features.items()}
    return Policy(recipe(*conditions), features, stats).eval()


def observation(**more: Any) -> dict[str, Any]:
    """Of two rows that see the same."""
    seen = {k: torch.from_numpy(v).expand(2, 2, *v.shape) for k, v in FLAT.items()}
    return {**seen, **more}


def pooled(of: Policy, told: Mapping[str, Any], **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return of.encode(told, **more).pooled


# words


def test_two_instructions_give_two_actions_through_a_server(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    train(recipe(Words(drop=0.2)), tmp_path / "d", tmp_path / "p", device="cpu")
    local = LocalPolicy(tmp_path / "p")
    with PolicyServer(local, port=0).background() as server, PolicyClient(server.url) as client:
        assert client.metadata.conditions == {"task": Feature((), "str")}

        def actions(task: str | None, key: str = "task") -> np.ndarray:
            wire = Request(FLAT, 3).to_wire()
            return client.infer(wire if task is None else {**wire, key: task})["actions"]

        left = actions("push the red puck left")
        assert np.abs(left - actions("push the red puck right")).max() > 1e-4
        np.testing.assert_array_equal(left, actions("Push the RED puck, left!"))
        np.testing.assert_array_equal(left, actions("push the red puck left", "prompt"))
        with pytest.raises(PolicyServerError, match="lacks task"):
            actions(None)
        with pytest.raises(PolicyServerError, match="20 words, and the policy reads at most 16"):
            actions("push " * 20)
        assert client.infer(
            Request(FLAT, 3, task="go", options={"steering": [{"part": "CFG", "weight": 2.0}]}).to_wire()
        )["nfe"] == 4  # fmt: skip


def test_words_keep_their_order_and_a_hash_of_their_letters() -> None:
    p = policy(Words())
    tasks = ["red left of blue", "blue left of red"]
    a, b = pooled(p, observation(task=tasks))
    assert (a - b).abs().max() > 1e-3
    assert word_rows("red", 256, 2) == (246, 206)
    assert Words().split("Push the RED puck, left!") == ["push", "the", "red", "puck", "left"]


def test_a_task_too_long_is_refused_before_training_begins(tmp_path: Path) -> None:
    write_store(tmp_path / "d", meta={"task": "a b c d"})
    with pytest.raises(
        ValueError, match=r"4 words, and the policy reads at most 3.*--conditions.Words.most 4"
    ):
        train(recipe(Words(most=3)), tmp_path / "d", tmp_path / "p", device="cpu")
    assert not (tmp_path / "p").exists()


def test_drop_changes_training_only() -> None:
    p, told = policy(Words(drop=1.0)), observation(task=["go left", "go right"])
    with_words, without = pooled(p, told), pooled(p, told, drop=True)
    assert (with_words[0] - with_words[1]).abs().max() > 1e-3
    torch.testing.assert_close(without[0], without[1])
    torch.testing.assert_close(pooled(p.train(), told), without, msg="every row was dropped")
    torch.testing.assert_close(pooled(p.eval(), told), with_words)
    told["task"] = ["", "go right"]
    torch.testing.assert_close(pooled(p, told)[0], without[0], msg="nothing said is not told")


# guidance


def test_guidance_is_the_condition_at_1_the_play_at_0_and_beyond_it_linear() -> None:
    p = policy(Words(drop=0.1))

    def chunk(steering: list[CFG], task: str = "go left", steps: int = 1):  # type: ignore[no-untyped-def]
        return p.sample(Request(observation(), 5, task=[task, task]), steering, steps)

    told = chunk([])
    assert torch.equal(chunk([CFG(1.0)]).chunk, told.chunk)
    free = chunk([CFG(0.0)])
    assert torch.equal(free.chunk, chunk([CFG(0.0)], "go right").chunk)
    assert (free.chunk - told.chunk).abs().max() > 1e-4
    beyond = chunk([CFG(2.0)])
    torch.testing.assert_close(beyond.chunk, 2 * told.chunk - free.chunk, atol=1e-5, rtol=0)
    assert (told.nfe.tolist(), free.nfe.tolist(), beyond.nfe.tolist()) == ([1, 1], [1, 1], [2, 2])
    near = chunk([CFG(1 + 1e-9)], steps=4)
    torch.testing.assert_close(near.chunk, chunk([], steps=4).chunk, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("conditions", "says"),
    [((), "no condition to leave out"), ((Words(),), "always told its Words.*--conditions.Words.drop 0.1")],
)
def test_guidance_is_refused_where_nobody_knows_what_is_done_without(
    conditions: tuple[object, ...], says: str
) -> None:
    with pytest.raises(BadRequest, match=says):
        policy(*conditions).sample(Request(observation(), 0, task=["go", "go"]), [CFG(2.0)])


# goals, labels, prompts


def test_a_goal_is_normalised_and_read_by_the_policys_own_encoder() -> None:
    p = policy(Goal())
    now = observation()
    goal = {f"goal.{k}": now[k][:, -1] for k in (STATE, ENVIRONMENT)}
    context = p.encode({**now, **goal})
    torch.testing.assert_close(context.tokens[:, 0], context.tokens[:, -1], msg="the goal is what is seen")
    assert not [k for k in p.state_dict() if "conditions" in k and "encoder" in k]
    other = {**goal, "goal.observation.state": goal["goal.observation.state"] + 1}
    assert (pooled(p, {**now, **other}) - pooled(p, {**now, **goal})).abs().max() > 1e-3


def test_a_goal_of_some_vectors_may_hide_their_present() -> None:
    p = policy(Goal(of=(ENVIRONMENT,), hide=True))
    assert p.observation_keys == (STATE,)
    spec = window_spec(p.recipe, FEATURES)
    assert (spec.keys, spec.goal_keys, spec.goal) == ((STATE,), (ENVIRONMENT,), "last")
    assert pooled(p, {STATE: observation()[STATE], "goal." + ENVIRONMENT: torch.zeros(2, 2)}).shape[0] == 2
    with pytest.raises(
        ValueError, match=r"the goal is of observation\.colour, and the vectors of the data are"
    ):
        policy(Goal(of=("observation.colour",)))


def test_a_label_is_seen_by_the_condition_only() -> None:
    p = policy(Label(kinds=3), features=KINDS)
    assert "observation.label" not in p.encoded_keys
    assert "observation.label" in p.observation_keys

    def seen(*kinds: int) -> torch.Tensor:
        return pooled(p, observation(**{"observation.label": torch.tensor(kinds)[:, None, None]}))

    a, b = seen(0, 2)
    assert (a - b).abs().max() > 1e-3
    torch.testing.assert_close(*seen(1, 1))
    with pytest.raises(BadRequest, match=r"is \[0, 3\], and the policy knows the kinds 0 to 2"):
        seen(0, 3)
    with pytest.raises(ValueError, match="how many kinds"):
        policy(Label(), features=KINDS)
    vector = policy(Label(ENVIRONMENT))
    assert vector.encoded_keys == (STATE,)
    assert (pooled(vector, observation()) - pooled(vector, observation(), drop=True)).abs().max() > 1e-3


def prompt(p: int, length: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = {STATE: 3, ENVIRONMENT: 2, ACTION: 3}
    values = {
        f"prompt.{k}": scale * rng.normal(size=(p, length, n)).astype(np.float32) for k, n in shapes.items()
    }
    return {**values, "prompt.mask": np.ones((p, length), bool)}


def test_a_prompt_counts_where_its_mask_says_so() -> None:
    p = policy(Prompt(prompts=2, length=5, tokens=3, width=16, depth=1))

    def told(ticks: int, scale: float = 1.0) -> torch.Tensor:
        shown = {k: torch.from_numpy(v)[None].expand(2, *v.shape).clone() for k, v in prompt(2, 5).items()}
        shown["prompt.mask"][:, :, ticks:] = False
        for k, v in shown.items():
            if k != "prompt.mask":
                v[:, :, ticks:] *= scale
        return pooled(p, observation(**shown))

    torch.testing.assert_close(told(3), told(3, 9.0), msg="padding is not read")
    assert (told(3) - told(4)).abs().max() > 1e-4
    torch.testing.assert_close(told(0), pooled(p, observation(**_torch(prompt(2, 5))), drop=True))


def _torch(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v)[None].expand(2, *v.shape) for k, v in values.items()}


@pytest.fixture(scope="module")
def told_all(tmp_path_factory: pytest.TempPathFactory) -> LocalPolicy:
    """Told by words, a goal drawn from the future, a label and a prompt; two datasets, two names of a key."""
    folder = tmp_path_factory.mktemp("all")
    write_store(folder / "a", (12, 9), KINDS)
    other = {k.replace(STATE, "observation.joints"): f for k, f in KINDS.items()}
    write_store(folder / "b", (10, 8), other)
    parts = (Words(), Goal(mode="future"), Label(kinds=3), Prompt(length=5, width=16, depth=1))
    options = DataOptions(rename={"observation.joints": STATE}, validate=0.5)
    data = open_data([folder / "a", folder / "b"], options=options)
    result = train(recipe(*parts), data, folder / "p", device="cpu")
    assert np.isfinite(result.losses).all()
    return LocalPolicy(folder / "p")


def test_all_that_a_request_must_hold_is_told_and_checked(told_all: LocalPolicy) -> None:
    needs = told_all.metadata.conditions
    assert Metadata.from_json(told_all.metadata.to_json()).conditions == needs
    assert {k: f.shape for k, f in needs.items()} == {
        "task": (), f"goal.{STATE}": (3,), f"goal.{ENVIRONMENT}": (2,),
        f"prompt.{STATE}": (1, 5, 3), f"prompt.{ENVIRONMENT}": (1, 5, 2),
        "prompt.action": (1, 5, 3), "prompt.mask": (1, 5),
    }  # fmt: skip
    assert "observation.label" in told_all.metadata.features, "a client sends it as it sends observations"
    assert needs["prompt.mask"].dtype == "bool"


def test_a_request_is_checked_and_a_short_prompt_padded(told_all: LocalPolicy) -> None:
    goal = {f"goal.{k}": v for k, v in FLAT.items()}
    label = {"observation.label": np.array([1])}

    def infer(shown: dict[str, np.ndarray], **more: Any) -> np.ndarray:
        asked = {**FLAT, **goal, **label, **shown, **more}
        return told_all.infer(
            Request({k: v for k, v in asked.items() if v is not None}, 3, task="go").to_wire()
        )["actions"]

    short = prompt(1, 3)
    padded = {k: np.pad(v, [(0, 0), (0, 2), *[(0, 0)] * (v.ndim - 2)]) for k, v in short.items()}
    np.testing.assert_allclose(infer(short), infer(padded), atol=1e-6)
    for shown, more, says in (
        (prompt(1, 6), {}, r"too long: .* 1 demonstrations of 6 ticks, and the policy reads up to 1 of 5"),
        (prompt(2, 5), {}, "too long: .* 2 demonstrations of 5 ticks"),
        ({**short, "prompt.action": prompt(1, 4)["prompt.action"]}, {}, r"\(1, 4, 3\), the policy wants"),
        ({**short, "prompt.mask": np.ones((1, 3), np.float32)}, {}, "prompt.mask is float32"),
        (short, {"goal." + STATE: None}, rf"lacks goal.{STATE}: the policy wants float32 \(3,\)"),
        (short, {"goal." + STATE: np.zeros(2, np.float32)}, r"\(2,\), the policy wants float32 \(3,\)"),
        (short, {"observation.label": np.array([7])}, "knows the kinds 0 to 2"),
    ):
        with pytest.raises(BadRequest, match=says):
            infer(shown, **more)


def test_windows_hold_what_all_conditions_and_the_memory_need() -> None:
    def spec(*conditions: object, **changes: object):  # type: ignore[no-untyped-def]
        return window_spec(recipe(*conditions, **changes), FEATURES)

    plain = spec()
    assert (plain.task, plain.goal, plain.chain, plain.keys) == (False, "none", 1, (STATE, ENVIRONMENT))
    both = spec(Words(), Goal(of=(STATE,)), Goal(of=(ENVIRONMENT,)), Prompt(length=7))
    assert (both.task, both.goal_keys, both.prompts, both.prompt_length) == (True, (STATE, ENVIRONMENT), 1, 7)
    assert spec(Goal(of=(STATE,)), Goal()).goal_keys == (STATE, ENVIRONMENT)
    chained = spec(context=Recurrent(chain=5), n_action_steps=4)
    assert (chained.chain, chained.chain_stride) == (5, 4)
    with pytest.raises(TrainingError, match="the goal last, another with future"):
        spec(Goal(), Goal(mode="future"))


def test_goals_are_drawn_anew_at_every_step_and_by_the_seed(tmp_path: Path) -> None:
    """So that two trainings differ, and one repeats."""
    write_store(tmp_path / "d", lengths=(30,))
    losses = [
        train(
            recipe(Goal(mode="future"), **{"training.steps": 2}), tmp_path / "d", tmp_path / n, device="cpu"
        ).losses
        for n in ("a", "b")
    ]
    assert losses[0] == losses[1]
    data = open_data(tmp_path / "d")
    windows = data.windows(window_spec(recipe(Goal(mode="future")), data.features))
    from ulna.datasets.reading.loader import batches, step_rng

    drawn = [
        [
            b["goal.ticks"].tolist()
            for b in batches(windows.train, lambda _: np.arange(8), 0, 2, rng_of=step_rng(s))
        ]
        for s in (0, 1)
    ]
    assert drawn[0][0] != drawn[0][1]
    assert drawn[0] != drawn[1]
