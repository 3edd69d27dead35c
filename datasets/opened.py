"""A dataset by its name: the folder of a store, a LeRobot folder that is read where it is, or
`hub:OWNER/NAME`, of which only the files that are needed are fetched."""

from __future__ import annotations

from pathlib import Path

from .episode import StoreError
from .formats.lerobot_store import LeRobotStore
from .hub import DATASET, Hub, HubError, hub_name
from .store import EpisodeStore

META = ("meta/*", "meta/**")


def open_dataset(source: str | Path, recover: bool = True) -> EpisodeStore:
    """recover: as for `EpisodeStore.open`. StoreError or HubError in one sentence."""
    if (name := hub_name(source)) is not None:
        return _on_the_hub(*name)
    if (Path(source) / "meta" / "info.json").is_file() and not (Path(source) / "ulna.json").exists():
        return LeRobotStore(source)
    return EpisodeStore.open(source, recover)


def _on_the_hub(repo: str, revision: str) -> LeRobotStore:
    hub = Hub()
    snapshot = hub.pull(repo, DATASET, revision, META)

    def fetch(file: Path) -> None:
        if not file.exists():
            try:
                hub.fetch(snapshot, file.relative_to(snapshot.path).as_posix())
            except HubError as error:
                raise StoreError(str(error)) from None

    return LeRobotStore(snapshot.path, fetch, snapshot.commit)
