"""The Hugging Face hub, or another server that speaks its API (`HF_ENDPOINT`): whole folders go there in one
commit, and come from there into huggingface_hub's own cache on this computer.

The token is the one of `hf auth login`, or `HF_TOKEN`. It is sent, and stands in no message. Nothing that is
fetched is run or unpickled; what arrives is compared with the hash that the hub keeps it by."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["dataset", "model"]
DATASET: Kind = "dataset"
MODEL: Kind = "model"
PREFIX = "hub:"
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REVISION = re.compile(r"\w[\w./-]*")
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
VERIFIED = "ulna-verified"  # beside the blobs of a repository: those whose hash was found right
TRIES = 3  # of a download whose connection breaks; each goes on with the files that are still missing
HASH_BYTES = 1 << 22
log = logging.getLogger("ulna.datasets")


class HubError(ValueError):
    """The hub refused, or what it has cannot be used; the message is one sentence."""


class Unreachable(HubError):
    """The hub does not answer, or only that it cannot now."""

    answered = False


class NotThere(HubError):
    """The hub has no such repository or revision, or does not show it to this token."""


@dataclass(frozen=True)
class Snapshot:
    """A commit of a repository in the cache. offline: the hub could not be asked whether there is a newer
    one."""

    repo: str
    kind: Kind
    commit: str
    path: Path
    offline: bool


@dataclass(frozen=True)
class Pushed:
    """bytes: of all files. url: of the repository's page."""

    url: str
    commit: str
    files: int
    bytes: int
    private: bool


def hub_name(source: str | Path) -> tuple[str, str] | None:
    """(OWNER/NAME, revision or "") of `hub:OWNER/NAME[@REVISION]`; None of any other source. HubError where
    it is written otherwise."""
    text = str(source)
    if not text.startswith(PREFIX):
        return None
    repo, _, revision = text.removeprefix(PREFIX).partition("@")
    require_repo(repo, revision)
    return repo, revision


def require_repo(repo: str, revision: str = "") -> None:
    """HubError unless `repo` and `revision` are names that a repository and a branch, tag or commit of it can
    have."""
    if not REPO.fullmatch(repo) or "--" in repo or ".." in repo or len(repo) > 96:
        raise HubError(f"{repo!r:.80} is no name on the hub: write OWNER/NAME")
    if revision and (not REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(f"{revision!r:.80} is no name of a branch, tag or commit")


class Hub:
    """The hub at `HF_ENDPOINT`, and its cache, `HF_HUB_CACHE`."""

    def __init__(self) -> None:
        from huggingface_hub import HfApi, constants

        self.endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self.cache = Path(os.environ.get("HF_HUB_CACHE") or constants.HF_HUB_CACHE).expanduser()
        self.api: HfApi = HfApi(endpoint=self.endpoint, library_name="ulna")

    def kinds(self, repo: str, revision: str = "") -> list[Kind]:
        """Which of a dataset and a model the repository is; it can be both. Where the hub cannot be reached,
        what the cache has."""
        require_repo(repo, revision)
        found: list[Kind] = []
        refused: HubError | None = None
        for kind in (DATASET, MODEL):
            try:
                with self._speaking(repo, kind):
                    self.api.repo_info(repo, repo_type=kind, revision=revision or None)
                found.append(kind)
            except NotThere as error:
                refused = error
            except Unreachable as error:
                refused = error
                if (self._storage(repo, kind) / "snapshots").is_dir():
                    found.append(kind)
        if not found and refused is not None:
            raise refused
        return found

    def pull(
        self,
        repo: str,
        kind: Kind,
        revision: str = "",
        patterns: Sequence[str] | None = None,
        verify_all: bool = False,
    ) -> Snapshot:
        """Bring the files that `patterns` match (all by default) into the cache. Those that are there are not
        fetched again. Where the hub cannot be reached, what the cache has of that revision is used, if it is
        whole, and a warning says so.

        verify_all: hash what was in the cache before, too. HubError in one sentence."""
        from huggingface_hub import snapshot_download

        require_repo(repo, revision)
        arguments: dict[str, Any] = {
            "repo_type": kind,
            "revision": revision or None,
            "cache_dir": self.cache,
            "endpoint": self.endpoint,
            "library_name": "ulna",
            "allow_patterns": None if patterns is None else list(patterns),
        }
        try:
            with self._speaking(repo, kind):
                self.api.repo_info(repo, repo_type=kind, revision=revision or None)
        except Unreachable as error:
            path = self._cached(repo, arguments, error)
            log.warning("%s: %s of the cache is used", error, path.name[:8])
            offline = True
        else:
            path = Path(self._trying(repo, kind, lambda: snapshot_download(repo, **arguments)))
            offline = False
        self._verify(repo, kind, [f for f in sorted(path.rglob("*")) if f.is_file()], verify_all)
        return Snapshot(repo, kind, path.name, path, offline)

    def fetch(self, snapshot: Snapshot, file: str) -> Path:
        """Bring one file of a snapshot into the cache, if it is not there; where it is then. HubError."""
        from huggingface_hub import hf_hub_download

        path = snapshot.path / file
        if not path.exists():
            arguments: dict[str, Any] = {
                "repo_type": snapshot.kind,
                "revision": snapshot.commit,
                "cache_dir": self.cache,
                "endpoint": self.endpoint,
                "library_name": "ulna",
            }
            self._trying(
                snapshot.repo, snapshot.kind, lambda: hf_hub_download(snapshot.repo, file, **arguments)
            )
            self._verify(snapshot.repo, snapshot.kind, [path])
        return path

    def push(
        self,
        files: Mapping[str, Path | bytes],
        repo: str,
        kind: Kind,
        public: bool,
        owned: Callable[[str], bool],
        tags: Sequence[str] = (),
        message: str = "Upload by ulna push",
    ) -> Pushed:
        """Make `files` (by their path there) what the repository holds, in one commit: until then nobody sees
        any of them. Large files are uploaded before, and those that an earlier try brought there are not sent
        again. A repository that is not there is created, private unless `public`.

        owned: whether a path that is there and not in `files` is to be removed. tags: are moved to this
        commit. HubError in one sentence."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token

        require_repo(repo)
        if get_token() is None:
            raise HubError("there is no token for the hub: log in with `hf auth login`, or set HF_TOKEN")
        with self._speaking(repo, kind, writing=True):
            self._require_repository(repo, kind, public)
            there = self.api.list_repo_files(repo, repo_type=kind)
            additions = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content.resolve()))
                for name, content in files.items()
            ]
            self.api.preupload_lfs_files(repo, additions, repo_type=kind, free_memory=False)
            removals = [CommitOperationDelete(f) for f in there if f not in files and owned(f)]
            commit = self.api.create_commit(
                repo, [*additions, *removals], commit_message=message, repo_type=kind
            )
            for tag in tags:
                self._move_tag(repo, kind, tag, commit.oid)
        size = sum(a.upload_info.size for a in additions)
        url = f"{self.endpoint}/{'datasets/' if kind == DATASET else ''}{repo}"
        return Pushed(url, commit.oid, len(files), size, not public)

    def _require_repository(self, repo: str, kind: Kind, public: bool) -> None:
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            info = self.api.repo_info(repo, repo_type=kind)
        except RepositoryNotFoundError:
            self.api.create_repo(repo, repo_type=kind, private=not public)
            return
        if public == bool(info.private):
            raise HubError(
                f"{repo} is private on the hub: leave --public out, or make it public in its settings there"
                if public
                else f"{repo} is public on the hub, and so would be what is pushed: say --public if it may be"
            )

    def _move_tag(self, repo: str, kind: Kind, tag: str, commit: str) -> None:
        from huggingface_hub.errors import RevisionNotFoundError

        with contextlib.suppress(RevisionNotFoundError):
            self.api.delete_tag(repo, tag=tag, repo_type=kind)
        self.api.create_tag(repo, tag=tag, revision=commit, repo_type=kind)

    def _cached(self, repo: str, arguments: dict[str, Any], error: Unreachable) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import IncompleteSnapshotError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(repo, **arguments, local_files_only=True))
        except IncompleteSnapshotError:
            raise Unreachable(
                f"{error}, and the cache on this computer has only a part of {repo}: pull again when it can"
            ) from None
        except LocalEntryNotFoundError:
            raise Unreachable(f"{error}, and the cache on this computer has nothing of {repo}") from None

    def _trying(self, repo: str, kind: Kind, download: Callable[[], Any]) -> Any:
        for attempt in range(1, TRIES + 1):
            try:
                with self._speaking(repo, kind):
                    return download()
            except Unreachable as error:
                if error.answered or attempt == TRIES:
                    raise Unreachable(f"{error}; what has arrived is kept: pull again to go on") from None

    def _verify(self, repo: str, kind: Kind, files: Sequence[Path], all_of_them: bool = False) -> None:
        """HubError unless each file is what its name in the cache says: its SHA-256, or git's hash of it. One
        that is not is removed. Those that were found right before are only looked at with `all_of_them`."""
        record = self._storage(repo, kind) / VERIFIED
        known = set() if all_of_them or not record.is_file() else set(record.read_text().split())
        wrong, right = [], []
        for file in files:
            blob = Path(os.path.realpath(file))
            if blob.name in known or not HASH.fullmatch(blob.name):
                continue
            if _hash(blob) == blob.name:
                right.append(blob.name)
            else:
                wrong.append(file.name)
                file.unlink()
                blob.unlink(missing_ok=True)
        if right:
            with contextlib.suppress(OSError), record.open("a") as lines:  # a cache that is only read
                lines.write("".join(f"{name}\n" for name in right))
        if wrong:
            raise HubError(
                f"{', '.join(wrong[:3])} did not arrive as the hub keeps it (its hash differs), and was "
                "removed: pull again"
            )

    def _storage(self, repo: str, kind: Kind) -> Path:
        return self.cache / f"{kind}s--{repo.replace('/', '--')}"

    @contextlib.contextmanager
    def _speaking(self, repo: str, kind: Kind, writing: bool = False) -> Iterator[None]:
        """Raise HubError in one sentence for what huggingface_hub and httpx raise."""
        import httpx
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

        again = "; what was uploaded is kept: push again to go on" if writing else ""
        try:
            yield
        except HubError:
            raise
        except Exception as caught:
            error: BaseException = caught
            # the threads that upload wrap it, and so does the look into the cache
            while isinstance(error, RuntimeError | LocalEntryNotFoundError) and error.__cause__ is not None:
                error = error.__cause__
            if isinstance(error, HfHubHTTPError):
                raise self._refusal(error, repo, kind, again) from None
            if isinstance(error, OfflineModeIsEnabled):
                raise Unreachable("the hub is not asked, as HF_HUB_OFFLINE is set") from None
            if isinstance(error, httpx.HTTPError):
                why = _clean(str(error)) or type(error).__name__
                raise Unreachable(f"the hub at {self.endpoint} cannot be reached ({why}){again}") from None
            if isinstance(error, OSError | ValueError):
                raise HubError(f"the hub: {_clean(str(error))}{again}") from None
            raise

    def _refusal(self, error: Any, repo: str, kind: Kind, again: str) -> HubError:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        status, what = error.response.status_code, f"the {kind} {repo}"
        said = _clean(getattr(error, "server_message", None) or "")
        said = f" ({said})" if said else ""
        if isinstance(error, RevisionNotFoundError):
            return NotThere(f"{what} has no such revision: leave it out, or name a branch, tag or commit")
        if isinstance(error, EntryNotFoundError):
            return NotThere(f"{what} lacks a file that it lists{said}: pull again")
        if isinstance(error, GatedRepoError):
            return HubError(f"{what} is given out on request only: ask for it on {self.endpoint}/{repo}")
        if isinstance(error, RepositoryNotFoundError):
            return NotThere(
                f"the hub at {self.endpoint} shows no {kind} {repo}: mind the spelling; one that is private "
                "needs `hf auth login`, or HF_TOKEN"
            )
        if status == 401:
            return HubError(f"the hub does not take the token{said}: log in with `hf auth login`")
        if status == 403:
            return HubError(f"the token may not do that to {what}{said}: it needs write access there")
        if status >= 500 or status == 429:
            busy = Unreachable(f"the hub at {self.endpoint} answers {status}{said}{again}")
            busy.answered = True
            return busy
        return HubError(f"the hub refuses {what}: {status}{said}{again}")


def _clean(text: str) -> str:
    """The first line of a message of others, without the token."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "…")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:200] if lines else ""


def _hash(file: Path) -> str:
    """The SHA-256 of a file whose name has 64 digits, else git's hash of a blob."""
    digest = hashlib.sha256() if len(file.name) == 64 else hashlib.sha1(usedforsecurity=False)
    if len(file.name) != 64:
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as f:
        while piece := f.read(HASH_BYTES):
            digest.update(piece)
    return digest.hexdigest()
