"""Words to write beside actions (`policies/cotraining.py`): whether the data have any, and whether the policy
can learn them."""

from __future__ import annotations

from collections.abc import Callable

from ..cotraining import Writes
from ..policy import Policy
from .data import TrainingData
from .error import TrainingError

LABEL = {"steps": "steps (ulna data relabel --steps)", "task": "other wordings (ulna data relabel --phrases)"}


def require_words(policy: Policy, data: TrainingData, say: Callable[[str], None]) -> None:
    """Once it is known what is frozen; says how many texts there are to write. Does nothing where the
    training has no words. TrainingError, or ValueError, in one sentence."""
    t = policy.recipe.training
    if t.words < 0:
        raise TrainingError(f"training.words is {t.words:g}: it is not negative")
    if not t.words:
        return
    writes = Writes(policy)
    if not any(p.requires_grad for p in writes.language.parameters()):
        raise TrainingError(
            "training.words teaches the language model, and all of it is frozen: leave it out, or freeze "
            "less (--training.freeze, --training.lora)"
        )
    texts = data.answers(t.words_of)
    if not texts:
        raise TrainingError(
            f"{' and '.join(data.paths)} has no words to write: no episode is labelled with "
            f"{LABEL[t.words_of]}; label some, or leave out training.words"
        )
    for text in texts:
        writes.tokens(text)
    say(f"it learns to write {len(texts)} texts, such as {texts[0]!r}")
