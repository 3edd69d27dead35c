"""Look at a dataset in a browser: cameras, joints, findings; trim, delete and label episodes. Or write a
rerun file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from ..bar import progress
from ..parsing import Output, episode_list, unset

if TYPE_CHECKING:
    from ....datasets.store import EpisodeStore

EXAMPLE = "ulna data view runs/x/data"


@dataclass
class Args:
    data: tyro.conf.Positional[str]
    """Folder of the dataset."""
    episodes: Annotated[str, unset("all")] = ""
    """Show only these, like 0-9,12."""
    host: str = "127.0.0.1"
    """Address to listen on. On any but this machine's own, the page comes over HTTPS, and the key in the URL
    is needed to see anything."""
    port: int = 0
    """0 picks a free one."""
    no_browser: bool = False
    """Print the URL and open nothing (as where there is no screen, and with --json)."""
    read_only: bool = False
    """Allow no edits."""
    rerun: Annotated[str, unset("none; serve a page", "FILE.rrd")] = ""
    """Write this .rrd file for the rerun viewer instead, and serve nothing."""
    json: bool = False
    """Print one JSON object, with the URL, when the page can be opened."""


def run(args: Args, out: Output) -> int:
    from ....datasets.store import EpisodeStore

    selection = episode_list(args.episodes) if args.episodes else None
    store = EpisodeStore.open(args.data, recover=False)
    if args.rerun:
        return _write_rerun(store, selection, args, out)

    import logging
    import sys

    from ...viewer.server import Viewer, open_in_browser

    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port must lie in 0..65535, not {args.port}")
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(name)s %(message)s")
    viewer = Viewer(store, args.host, args.port, selection, args.read_only)

    def ready(url: str) -> None:
        value = {"url": url, "episodes": len(viewer.library.episodes()), "read_only": args.read_only}
        lines = [f"{args.data} is shown at {url} (Ctrl-C stops)", viewer.site.warning]
        out.answer(value, "\n".join(filter(None, lines)))
        if not (args.no_browser or args.json):
            open_in_browser(url)

    viewer.run(ready)
    return 0


def _write_rerun(store: EpisodeStore, selection: list[int] | None, args: Args, out: Output) -> int:
    from ...viewer.rerun_export import write_rrd

    with progress("writing") as bar:
        counts = write_rrd(
            store,
            args.rerun,
            selection,
            bar.update,
        )
    text = (
        f"{args.rerun}: {counts['episodes']} episodes, {counts['rows']} rows "
        f"(open it with: rerun {args.rerun})"
    )
    out.answer({"rrd": args.rerun, **counts}, text)
    return 0
