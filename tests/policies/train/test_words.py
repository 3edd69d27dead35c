"""Co-training with words: a policy goes on writing text beside its actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.data import FEATURES, write_store
from contracts.recipes import small
from torch import Tensor

from ulna.datasets.edit import relabel
from ulna.datasets.features import ACTION
from ulna.datasets.store import EpisodeStore
from ulna.policies.checkpoint import load_checkpoint
from ulna.policies.cotraining import END, Writes, likelihoods
from ulna.policies.parts import override
from ulna.policies.policy import Policy
from ulna.policies.recipe import Recipe
from ulna.policies.request import Request
from ulna.policies.train.data import DataOptions, open_data, tensors, window_spec
from ulna.policies.train.error import TrainingError
from ulna.policies.train.loop import train
from ulna.policies.train.state import STATE_FILE

WRITERS = ("pi05_small", "smolvla_small", "pi05_ki_small", "pi0_fast_small", "openvla_small")
STEPS = [("grasp the cube", 0.4), ("put it into the bowl", None)]
TEXTS = [words for words, _ in STEPS]


def labelled(path: Path, which: tuple[int, ...] = (0,)) -> EpisodeStore:
    """Two episodes of 20 and 13 ticks, of which some have steps, the first done at tick 8."""
    if not path.exists():
        relabel(write_store(path), which, {"steps": STEPS})
    return EpisodeStore.open(path)


def writing(name: str, **training: Any) -> Recipe:
    recipe = override(
        small(name, FEATURES), {f"training.{k}": v for k, v in {"words": 1.0, **training}.items()}
    )
    return override(recipe, {"encoder.language.gives": "words"})


def learning(
    path: Path, recipe: Recipe, rows: tuple[int, ...] = (3, 12, 25)
) -> tuple[Policy, dict[str, Any]]:
    data = open_data(path)
    windows = data.windows(window_spec(recipe, data.features))
    stats = windows.stats() | recipe.codec.fit(windows.train, data.features, recipe.n_past_actions)
    torch.manual_seed(0)
    policy = Policy(recipe, data.features, stats)
    return policy, tensors(windows.train.batch(np.array(rows)), "cpu")


def quiet(recipe: Recipe) -> Recipe:
    return override(recipe, {"training.words": 0.0})


def test_a_window_says_the_step_under_way_and_nothing_without_a_label(tmp_path: Path) -> None:
    labelled(tmp_path / "d")
    recipe = writing("pi05_ki_small")
    _, batch = learning(tmp_path / "d", recipe, (3, 7, 8, 12, 25))
    assert batch["answer"] == ["grasp the cube"] * 2 + ["put it into the bowl"] * 2 + [""]
    assert batch["task"] == ["task 0"] * 4 + ["task 1"]
    assert "answer" not in learning(tmp_path / "d", quiet(recipe))[1]


def test_or_the_task_as_it_was_recorded_where_it_is_told_otherwise(tmp_path: Path) -> None:
    relabel(write_store(tmp_path / "d"), [1], {"phrases": ["do the second", "the other one"]})
    _, batch = learning(tmp_path / "d", writing("pi05_ki_small", words_of="task"), (3, 22, 23, 24, 25, 26))
    assert batch["answer"] == ["", *["task 1"] * 5]
    assert len(set(batch["task"][1:])) > 1, "told in several wordings"


@pytest.mark.parametrize("name", WRITERS)
def test_what_acts_is_exactly_as_without(name: str, tmp_path: Path) -> None:
    """Of one draw: what was read, the loss of the actions and its gradients for what only acts are bit for
    bit those of a training without words, and so is a decision."""
    labelled(tmp_path / "d")
    recipe = writing(name)
    policy, batch = learning(tmp_path / "d", recipe)
    plain, without = learning(tmp_path / "d", quiet(recipe))
    assert {k: v for k, v in policy.state_dict().items() if not torch.equal(v, plain.state_dict()[k])} == {}
    read, before = policy.examples(batch)[1], plain.examples(without)[1]
    assert torch.equal(read.tokens, before.tokens)

    def gradients(of: Policy, given: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        torch.manual_seed(1)
        loss = of.loss(given)
        loss.backward()
        return loss.detach(), {k: p.grad for k, p in of.named_parameters() if p.grad is not None}

    (loss, moved), (alone, acted) = gradients(policy, batch), gradients(plain, without)
    context = policy.examples(batch)[1]
    nats, there = Writes(policy).nats(context, batch["answer"])
    torch.testing.assert_close(loss, alone + nats.sum() / there.sum())
    assert loss > alone + 1
    acts = [k for k in acted if k.startswith("net.")]
    assert all(torch.equal(moved[k], acted[k]) for k in acts)
    table = "encoder.language.embed_tokens.weight"
    assert not torch.equal(moved[table], acted.get(table, torch.zeros_like(moved[table])))
    request = Request({k: batch[k] for k in policy.observation_keys}, [1, 2, 3], task=batch["task"])
    assert torch.equal(policy.eval().sample(request).chunk, plain.eval().sample(request).chunk)


def test_only_the_text_is_learned_each_word_told_those_before(tmp_path: Path) -> None:
    """By hand, word for word: a pass for each prefix of the text, without its rest."""
    labelled(tmp_path / "d")
    policy, batch = learning(tmp_path / "d", writing("pi05_ki_small"))
    context = policy.eval().examples(batch)[1]
    writes = Writes(policy)
    with torch.no_grad():
        nats, there = writes.nats(context, batch["answer"])
        assert there.sum(1).tolist() == [4, 6, 0], "three and five words, the end of each, and no text"
        assert not nats[~there].any()
        assert not nats[2].any()
        row = writes.tokens(batch["answer"][0])
        assert row[-1] == END
        (before, mask), said = _read(policy, context), [2]
        for n, word in enumerate(row):
            tokens = writes.language.embed(torch.tensor([said]))
            hidden, _ = writes.language.further(tokens, before, mask, causal=True)
            expected = -writes.language.logits(hidden[:, -1]).log_softmax(-1)[0, word]
            torch.testing.assert_close(nats[0, n], expected)
            said.append(word)


def _read(policy: Policy, context: Any) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Of the first row."""
    layers = policy.context_net.layers
    assert layers is not None
    keys_values = [(k[:1].transpose(1, 2), v[:1].transpose(1, 2)) for k, v in layers.of(context.tokens)]
    return keys_values, context.mask[:1]


def test_rows_without_text_change_nothing_and_weights_count(tmp_path: Path) -> None:
    labelled(tmp_path / "d")
    policy, batch = learning(tmp_path / "d", writing("pi05_ki_small", words=0.5))
    policy.eval()
    texts = ["grasp the cube", "put it into the bowl", ""]

    def text(answers: list[str], weight: Tensor | None = None) -> float:
        from ulna.policies.cotraining import written

        context = policy.examples(batch)[1]
        return float(written(policy, context, {"answer": answers}, weight)["text"])

    with torch.no_grad():
        nats, _ = Writes(policy).nats(policy.examples(batch)[1], texts)
        assert text(texts) == pytest.approx(0.5 * float(nats.sum()) / 10)
        assert text(["", "", ""]) == 0.0
        weight = torch.tensor([2.0, 0.0, 1.0])
        assert text(texts, weight) == pytest.approx(0.5 * 2 * float(nats[0].sum()) / 10)


def test_the_words_are_learned_and_the_run_resumes(tmp_path: Path) -> None:
    store = labelled(tmp_path / "d", (0, 1))
    recipe = writing("pi05_ki_small", steps=150, checkpoint_every=50, learning_rate=3e-3, warmup=5)
    said: list[str] = []
    result = train(recipe, tmp_path / "d", tmp_path / "p", device="cpu", say=said.append)
    assert "it learns to write 2 texts, such as 'grasp the cube'" in said
    policy, batch = load_checkpoint(tmp_path / "p"), learning(tmp_path / "d", recipe, (1, 2, 15, 28))[1]
    with torch.no_grad():
        request = Request({k: batch[k] for k in policy.observation_keys}, 0, task=batch["task"])
        likely = likelihoods(policy, policy.context(request), TEXTS)
        start = learning(tmp_path / "d", recipe)[0]
        at_first = likelihoods(start.eval(), start.context(request), TEXTS)
    assert likely.logsumexp(1).min() > np.log(0.5), "it says one of the two"
    assert at_first.logsumexp(1).max() < np.log(0.01)
    relabel(store, [1], {"steps": [("something else", None)]})
    more = override(recipe, {"training.steps": 155})
    with pytest.raises(TrainingError, match="the labels that say what the policy is told"):
        train(more, tmp_path / "d", tmp_path / "p", device="cpu", resume=True)
    relabel(store, [1], {"steps": STEPS})
    longer = train(more, tmp_path / "d", tmp_path / "p", device="cpu", resume=True)
    assert longer.losses[:150] == pytest.approx(result.losses)
    assert (tmp_path / "p" / STATE_FILE).exists()


def test_what_has_no_words_is_refused_in_a_sentence(tmp_path: Path) -> None:
    write_store(tmp_path / "d")
    labelled(tmp_path / "steps")

    def refused(recipe: Recipe, path: str, says: str) -> None:
        with pytest.raises(ValueError, match=says) as error:
            train(recipe, tmp_path / path, tmp_path / "p", device="cpu")
        assert "\n" not in str(error.value)

    refused(writing("pi05_ki_small"), "d", "no episode is labelled with steps")
    refused(writing("pi05_ki_small", words_of="task"), "d", "no episode is labelled with other wordings")
    refused(
        override(small("flow"), {"training.words": 1.0}), "steps", "flow has no language model that reads"
    )
    gives_keys = override(small("pi05_small", FEATURES), {"training.words": 1.0})
    refused(gives_keys, "steps", "set --encoder.language.gives words")
    refused(writing("pi05_ki_small", words=-1.0), "steps", "not negative")
    refused(writing("pi05_ki_small", freeze=("encoder.*",)), "steps", "all of it is frozen")
    refused(writing("litevlp_small"), "steps", "windows in a row")
    told = open_data(tmp_path / "steps", options=DataOptions(told="steps"))
    with pytest.raises(TrainingError, match="learns nothing by writing it"):
        train(writing("pi05_ki_small"), told, tmp_path / "p", device="cpu")
    assert not (tmp_path / "p").exists()
    assert ACTION in told.features
