"""Rounds of correction: the policy acts, a person takes over where it goes wrong, and the next policy begins
from this one and learns what the person did (HG-DAgger, Kelly et al. 2019)."""

from __future__ import annotations

import contextlib
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.features import ACTION, is_image
from ..datasets.flags import INTERVENTION
from ..datasets.store import EpisodeStore
from .beside import ULNA, NotStarted, beside
from .statistics import wilson

CONFIG, STAMP = "config.toml", "hash.json"  # of a checkpoint that is complete


class CollectError(ValueError):
    """A round cannot be done; the message is one sentence."""


@dataclass(frozen=True)
class Round:
    """What became of one round. alone: attempts that succeeded without a person's help. policy: the
    checkpoint that acted; learned: the one that came of it, "" where nobody corrected anything."""

    policy: str
    corrections: str
    attempts: int
    successes: int
    alone: int
    taken_over: int
    person_share: float
    """Of all ticks."""
    learned: str

    @property
    def wilson_95(self) -> tuple[float, float]:
        """95 % interval of the share of attempts that succeeded alone."""
        return wilson(self.alone, self.attempts)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "wilson_95": list(self.wilson_95)}


def collect(
    checkpoint: str | Path,
    out: str | Path,
    rounds: int,
    attempts: int,
    record: Callable[[str, Path, int, int, tuple[int, int] | None], object],
    *,
    data: Sequence[str] = (),
    weights: str = "iwr",
    steps: int = 500,
    device: str = "cpu",
    report: Callable[[Round], None] = lambda done: None,
) -> list[Round]:
    """Improve the policy `checkpoint` in `rounds` rounds of `attempts` attempts, in the folder `out`: round
    k's attempts in `corrections-k`, its policy in `round-k`. What an earlier run finished there is kept. It
    ends early where a person took over in no attempt of a round, since there is nothing to learn.

    record: `record(url, folder, attempts, seed, image_size)` runs the policy served at `url` under somebody's
    eyes and stores so many whole attempts in the dataset `folder`, with pictures of `image_size` (height,
    width), None: as the cameras give them; fewer end the collection. data: what the policy was trained on;
    empty: what its own config names. CollectError, or what `record` raises."""
    policy, out = Path(checkpoint), Path(out)
    _config(policy)
    learn_from = list(data) or _data_of(policy)
    stores = [EpisodeStore.open(folder) for folder in learn_from]  # before people work for an hour
    size = _image_size(stores[0])
    out.mkdir(parents=True, exist_ok=True)
    done: list[Round] = []
    for k in range(1, rounds + 1):
        corrections, learned = out / f"corrections-{k}", out / f"round-{k}"
        missing = attempts - _attempts(corrections)
        if missing > 0 and not (learned / STAMP).exists():
            kept = None if (corrections / "ulna.json").exists() else size  # what is begun keeps its own
            with served(policy, device) as url:
                record(url, corrections, missing, 10_000 * k + attempts - missing, kept)
        if _attempts(corrections) < attempts:
            break  # whoever quits may go on later
        learn_from.append(str(corrections))
        this = _judge(policy, corrections)
        if this.taken_over and not (learned / STAMP).exists():
            _train(policy, learned, learn_from, weights, steps, device)
        this = Round(**{**asdict(this), "learned": str(learned) if this.taken_over else ""})
        done.append(this)
        report(this)
        if not this.taken_over:
            break
        policy = learned
    return done


@contextlib.contextmanager
def served(checkpoint: Path, device: str) -> Iterator[str]:
    """`ulna serve` for the length of a `with` block; yields its address. A process of its own: the loop that
    moves the arm shares no interpreter with the network."""
    try:
        with beside("serve", str(checkpoint), "--port", "0", "--device", device, own_session=True) as answer:
            yield answer["url"]
    except NotStarted as error:
        raise CollectError(f"{checkpoint} is not served: {error}") from None


def _train(policy: Path, out: Path, data: Sequence[str], weights: str, steps: int, device: str) -> None:
    """As `policy` was trained, but from it, and on `data`."""
    from ..policies.train.config import to_toml, write_atomically

    config = _config(policy)
    config["training"] = {**config.get("training", {}), "start": str(policy), "steps": steps}
    config |= {"data": list(data), "weights": weights, "device": device, "track": ["none"]}
    config.pop("episodes", None)
    file = out.with_suffix(".toml")
    write_atomically(file, to_toml(config))
    # one that was cut off begins anew
    words = [*ULNA, "train", "--config", str(file), "--out", str(out), "--overwrite", "--json"]
    if subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode:
        raise CollectError(f"the training of {out} failed: its own words are above; the attempts are kept")


def _config(policy: Path) -> dict[str, Any]:
    try:
        return tomllib.loads((policy / CONFIG).read_text())
    except (OSError, ValueError):
        raise CollectError(
            f"{policy} has no {CONFIG} that says how it was trained: is it a checkpoint of `ulna train`?"
        ) from None


def _data_of(policy: Path) -> list[str]:
    """What a policy was trained on, by its config."""
    config = _config(policy)
    data = [str(d) for d in config.get("data", [])]
    if config.get("episodes"):
        raise CollectError(
            f"{policy} was trained on some episodes of {' '.join(data)}: part them with `ulna data split` "
            "and name the part with --data"
        )
    missing = [d for d in data if not Path(d).is_dir()]
    if missing or not data:
        what = missing[0] if missing else "nothing that it names"
        raise CollectError(
            f"{policy} was trained on {what}, which is not here: name the datasets with --data"
        )
    return data


def _image_size(store: EpisodeStore) -> tuple[int, int] | None:
    """(height, width) of its pictures, since no training mixes sizes; None where they have several."""
    sizes = {f.shape[:2] for key, f in store.features.items() if is_image(key)}
    if len(sizes) != 1:
        return None
    height, width = sizes.pop()
    return height, width


def _attempts(folder: Path) -> int:
    """Whole ones in the dataset `folder`, which may not be there yet."""
    if not (folder / "ulna.json").exists():
        return 0
    return sum(not e.interrupted for e in EpisodeStore.open(folder).episodes)


def _judge(policy: Path, corrections: Path) -> Round:
    whole = [e for e in EpisodeStore.open(corrections).episodes if not e.interrupted]
    shares = [float(np.mean(e.flags(ACTION) & INTERVENTION != 0)) for e in whole]
    succeeded = [e.attrs.get("success") is True for e in whole]
    ticks = np.array([e.length for e in whole])
    return Round(
        str(policy),
        str(corrections),
        len(whole),
        sum(succeeded),
        sum(s and not share for s, share in zip(succeeded, shares, strict=True)),
        sum(share > 0 for share in shares),
        float(np.average(shares, weights=ticks)),
        "",
    )
